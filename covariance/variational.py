"""Improved DDPM's objectives: the variational bound with a learned variance, and its mixture with L_simple.

On a discrete process, for the step t -> t - 1 and the network's second output v,

    log variance = (1 - f) log lambda2 + f log Var[x_t | x_{t-1}],   f = (v + 1)/2, not limited to [0, 1]
    vb_t         = KL( q(x_{t-1} | x_t, x_0) || N(mean, variance) )  t > 1, per dimension
    vb_1         = -log p(x_0 | x_1), discretised for data with levels, around x0_hat
    vlb          = N vb_t                                            both outputs are trained
    hybrid       = mean (eps - eps_network)^2 + (N/1000) vb_t        vb_t trains v alone

(Nichol & Dhariwal 2021, eqs. 15 and 16), vb in bits per dimension. lambda2 of the first step is zero; that of the
second stands in for it. x0_hat is not clipped in training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Prediction, per_sample
from adpm.errors import UserError
from adpm.kernel import reverse_kernel
from adpm.likelihood import Levels, first_posterior_variance, pixel_nats
from adpm.objective import Objective, ObjectiveNeeds, eps_matching
from adpm.process import Array, Process
from covariance.interpolation import log_bounds
from covariance.second_output import second_output


class StepBound:
    """vb_t of the steps t -> t - 1 of a discrete process.

    Args:
        process: discrete, of at least 2 steps.
        levels: levels of the data.

    Raises:
        UserError: for an SDE, which has no steps of its own, and for a process of one step, because the learned
            variance of the first step takes a bound from the second.
    """

    def __init__(self, process: Process, levels: Levels) -> None:
        if process.continuous:
            raise UserError(
                "the objectives 'hybrid' and 'vlb' bound the steps of a discrete process, and an SDE has "
                "none of its own; use `process.name` = linear, cosine, vp_integral or custom."
            )
        self._levels, self._first = levels, process.times[1]
        kernel = reverse_kernel(process, process.times[1:], process.times[:-1])
        self._low, self._width = log_bounds(kernel, first_posterior_variance(process))
        # mean of q minus the model's = gain (x_0 - x0_hat) = gain sigma/alpha (eps_network - eps), without a difference
        # of large numbers at low SNR
        self._shift = kernel.gain * kernel.sigma_t / kernel.alpha_t
        self._times = process.times[1:]

    def log_variance(self, v: Tensor, t: Array) -> Tensor:
        """The log variance of the step that leaves t, of v's shape; v = -1 is lambda2, v = 1 the forward variance."""
        row = np.searchsorted(self._times, t)
        return per_sample(self._low[row], v) + 0.5 * (v + 1.0) * per_sample(self._width[row], v)

    def __call__(self, v: Tensor, eps_network: Tensor, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
        """vb_t in bits per dimension, [B]; t [B]."""
        row = np.searchsorted(self._times, t)
        shift = per_sample(self._shift[row], x0) * (eps_network - eps)
        excess = -0.5 * (v + 1.0) * per_sample(self._width[row], v)  # log(lambda2 / variance)
        log_variance = per_sample(self._low[row], v) - excess
        kl = 0.5 * (torch.expm1(excess) - excess + shift.square() * torch.exp(-log_variance))
        decoded = pixel_nats(x0, x0 - shift, log_variance.exp(), self._levels)  # gain = 1 in the first step
        first = torch.as_tensor(t == self._first, device=x0.device).reshape(-1, *[1] * (x0.ndim - 1))
        return torch.where(first, decoded, kl).flatten(1).mean(1) / math.log(2.0)


def hybrid(needs: ObjectiveNeeds) -> Objective:
    """L_hybrid = L_simple + (N/1000) vb_t, the mean held fixed in vb_t."""
    bound, weight = StepBound(needs.process, needs.levels), needs.process.steps / 1000.0

    def loss(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
        vb = bound(second_output(prediction), prediction.eps_network.detach(), x0, eps, t)
        return eps_matching(prediction, x0, eps, t) + weight * vb

    return loss


def vlb(needs: ObjectiveNeeds) -> Objective:
    """L_vlb = N vb_t; for uniform times its expectation is the sum of all steps' terms, in bits per dimension."""
    bound, steps = StepBound(needs.process, needs.levels), needs.process.steps

    def loss(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
        return steps * bound(second_output(prediction), prediction.eps_network, x0, eps, t)

    return loss
