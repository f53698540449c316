"""The spectral head: variances along the axes of a basis, trained by the bound of a step.

With Q an orthonormal basis, e = Q (x_0 - x0_hat(x_t)), r_f(t) = E[e_f^2] from moments per coordinate and h_f(x_t) the
head's output, the variance along axis f is w_f = r_f(t) q(h_f), q = relative_factor: a head of zeros, as it starts, is
rule `spectral`. The bound term of a step t -> s at eta = 1 with these variances is, in nats per dimension,

    1/2 mean_f [ log1p(D w_f) + D (e_f^2 - w_f) / (1 + D w_f) ],    D = gamma_s - gamma_t,

and the objective is this term for steps of one length in log-SNR, D = gamma_t (exp(length) - 1), less what it is
expected to be at q = 1. For every length its minimum is at w_f = E[e_f^2 | x_t]. What a length weighs: coordinates and
times at which D r_f is small, where a step's own noise lambda2 hides the variance, count as (D r_f)^2, as they do on a
planned path; in the limit of long steps, log q + e_f^2/w_f, all count alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.objective import Objective
from adpm.process import Array, Process
from adpm.scale import Scale
from covariance.relative import relative_factor
from covariance.second_output import second_output

_HIDDEN = 1e30
"""1/(D r_f) that is as good as infinite, as where a process ends in pure noise."""


def spectral_head(scale: Scale, process: Process, bound_step: float) -> Objective:
    """The bound term of a step [B], nats per dimension, less that of rule `spectral`.

    Args:
        scale: r_f and the basis.
        process: whose times they are.
        bound_step: the step's length in log-SNR; 0: the limit of long ones.

    Raises:
        UserError: for data of another shape.
    """
    inverse = 1.0 / math.expm1(bound_step) if bound_step else 0.0  # of D/gamma_t

    def loss(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
        if tuple(x0.shape[1:]) != scale.shape:
            raise UserError(f"the head's variances are of data of shape {scale.shape}, not of {tuple(x0.shape[1:])}.")
        log_snr = process.log_snr(t)
        r = torch.as_tensor(scale.laid_out(scale(log_snr)), device=x0.device)
        snr = torch.as_tensor(log_snr, device=x0.device).exp().reshape(-1, *[1] * (x0.ndim - 1))
        hidden = (inverse / (snr * r)).clamp_max(_HIDDEN).to(x0.dtype)  # 1/(D r_f)
        e = scale.basis.forward((x0 - prediction.x0).detach()) * (1.0 / r.sqrt()).to(x0.dtype)
        q = relative_factor(second_output(prediction))
        terms = torch.log((hidden + q) / (hidden + 1.0)) + (e.square() - q) / (hidden + q)
        return 0.5 * terms.flatten(1).mean(1)

    return loss
