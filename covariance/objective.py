"""Objectives of heads on a frozen trunk. Each one's minimiser is a conditional expectation, per pixel:

    sn        mean (eps^2 - h)^2                      h = E[eps^2 | x_t]                  squared noise
    npr       mean ((eps - eps_network)^2 - h)^2      h = E[(eps - eps_network)^2 | x_t]  noise prediction residual
    relative  mean log q + r^2 / (Var_t q)            Var_t q = E[r^2 | x_t], r = x_0 - x0_hat, q = relative_factor(h)
    ocm       mean (1 - sigma_t v . J v - h)^2        h_i = 1 - sigma_t J_ii,  J = d eps_network/d x_t, v random signs

sn and npr are Bao et al. 2022b's (theirs are sums over elements, these are means) and use the network's raw noise
prediction. relative is ours: -2 log N(r; 0, Var_t q) up to a constant, so it is the variational bound of a step in
which the posterior variance dominates; r is about the x0_hat that the kernel uses, clipping included. It weighs all
times alike, because r^2 / Var_t averages 1 at each, where sn and npr hear most of the times at which eps is uncertain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Prediction, per_sample
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.objective import Objective, ObjectiveFacts, ObjectiveNeeds, Probing
from adpm.process import Array, Process
from covariance.heads import FrozenTrunk
from covariance.relative import relative_factor
from covariance.second_output import second_output
from covariance.spectral import spectral_head
from covariance.variational import hybrid, vlb


def _mean(loss: Tensor) -> Tensor:
    return loss.flatten(1).mean(1)


def squared_noise(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
    """mean over elements of (eps^2 - h)^2, [B]: SN (Bao et al. 2022b)."""
    return _mean((eps.square() - second_output(prediction)).square())


def residual(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
    """mean over elements of ((eps - eps_network)^2 - h)^2, [B], the target held fixed: NPR (Bao et al. 2022b)."""
    target = (eps - prediction.eps_network).square().detach()
    return _mean((target - second_output(prediction)).square())


def relative(variance: Callable[[Array], Array]) -> Objective:
    """mean over elements of log q + (x_0 - x0_hat)^2 / (Var_t q), [B], q = relative_factor(h).

    Args:
        variance: Var_t as a function of time.
    """

    def loss(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
        scale = np.asarray(variance(t), dtype=np.float64)
        if not np.all(scale > 0.0):
            raise UserError(
                f"the relative objective divides by Var_t, which is {scale.min():.3g} at t = {t[scale.argmin()]:g}; "
                "use `rule.estimator` = 'residual', which is positive."
            )
        q = relative_factor(second_output(prediction))
        # scaled before it is squared: r^2 alone would leave float32's accurate range at high SNR
        r = (x0 - prediction.x0).detach() * per_sample(1.0 / np.sqrt(scale), x0)
        return _mean(torch.log(q) + r.square() / q)

    return loss


def hessian_diagonal(process: Process) -> Probing:
    """mean over elements of (1 - sigma_t v . (J v) - h)^2, [B], the target held fixed: OCM (Ou et al. 2025).

    Off the diagonal v_i v_j averages 0, so that the target is diag(I - sigma_t J) on average, which is Var[eps | x_t]
    where the network is exact (Tweedie's second order); of a network in error it knows nothing.
    """

    def loss(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array, *probe: Tensor) -> Tensor:
        head = second_output(prediction)
        signs, along = probe
        return _mean((1.0 - per_sample(process.sigma(t), x0) * signs * along - head).square())

    return Probing(loss)


def _relative(needs: ObjectiveNeeds) -> Objective:
    return relative(needs.variance())


def _spectral_head(needs: ObjectiveNeeds, bound_step: float = 4.0) -> Objective:
    return spectral_head(needs.scale(), needs.process, bound_step)


_HEAD = {"trunk_dropout": Field(False, "leave the trunk's dropout on in training, as published", given=False)}

OBJECTIVES: dict[str, Kind] = {
    "sn": Kind(lambda needs: squared_noise, "a head for rule sn: (eps^2 - h)^2", ObjectiveFacts(FrozenTrunk), _HEAD),
    "npr": Kind(
        lambda needs: residual, "a head for rule npr: ((eps - eps_hat)^2 - h)^2", ObjectiveFacts(FrozenTrunk), _HEAD
    ),
    "ocm": Kind(
        lambda needs: hessian_diagonal(needs.process),
        "a head for rule ocm, by the network's slopes along random signs (Ou et al. 2025); three calls a step",
        ObjectiveFacts(FrozenTrunk),
        _HEAD,
    ),
    "relative": Kind(
        _relative,
        "a head for rule relative, by the bound itself",
        ObjectiveFacts(FrozenTrunk, uses_moments=True),
        _HEAD,
        reads=("denoiser.clip", "rule.estimator"),
    ),
    "spectral_head": Kind(
        _spectral_head,
        "a head for rule spectral_head, by the bound itself along the axes of a basis",
        ObjectiveFacts(FrozenTrunk, statistics="coordinates"),
        {
            "bound_step": Field(
                4.0, "length in log-SNR of the steps whose bound it is; 0 = the limit of long ones", low=0
            ),
            **_HEAD,
        },
        reads=("denoiser.clip", "moments.statistics=coordinates"),
    ),
    "hybrid": Kind(
        hybrid, "L_simple + N/1000 of the bound (Nichol & Dhariwal 2021)", ObjectiveFacts(learns_variance=True)
    ),
    "vlb": Kind(
        vlb, "the bound itself (Nichol & Dhariwal 2021)", ObjectiveFacts(learns_variance=True, loss_aware=True)
    ),
}
