"""What a network is trained to minimise: objectives, and what assembly has to know about each of them.

An objective is a loss per example of a prediction at x_t = alpha_t x_0 + sigma_t eps. Most train the whole network;
some train a head (its second output) on a frozen trunk, some both outputs at once.

The mean squared errors of what a network may predict (parametrisation.py) are one loss with four weights,

    eps - eps_hat = -(alpha/sigma) (x0 - x0_hat)      v - v_hat    = -(alpha^2 + sigma^2)/sigma (x0 - x0_hat)
    score: sigma^2 times it is eps's loss             flow - hat   = -(alpha + sigma)/sigma (x0 - x0_hat)

so any of them trains a network of any prediction; its own is the usual one, whose targets are of order 1 at all times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adpm.denoiser import Denoise, Prediction, Raw, per_sample, require_finite, unclipped_x0
from adpm.derivative import slope
from adpm.errors import UserError
from adpm.families import Kind
from adpm.likelihood import Levels
from adpm.process import Array, Process
from adpm.scale import Scale

Factor = float | Tensor
Objective = Callable[[Prediction, Tensor, Tensor, Array], Tensor]
"""(prediction at x_t, x0, eps, t) -> loss per example [B]; t is [B], float64."""


@dataclass(frozen=True)
class Probing:
    """An objective that also asks how eps_network changes with x_t, along random signs v.

    Attributes:
        loss: (prediction, x0, eps, t, v, J v) -> loss per example [B], with J = d eps_network / d x_t.
    """

    loss: Callable[..., Tensor]

    def __call__(self, prediction: Prediction, x0: Tensor, eps: Tensor, t: Array, *probe: Tensor) -> Tensor:
        return self.loss(prediction, x0, eps, t, *probe)


@torch.no_grad()
def probed(denoise: Denoise, process: Process, x: Tensor, eps: Tensor, t: Array) -> tuple[Tensor, Tensor]:
    """v and J v for x [B, ...] at times t [B], by a central difference: two calls of the network.

    v are the signs of the next example's noise, of which x knows nothing: nothing else is drawn.

    Raises:
        UserError: for a batch of one, and for a denoiser that cannot be called between its reference times.
    """
    if len(x) < 2 or not isinstance(denoise, Raw):
        raise UserError("slopes of eps_hat want at least two examples (`batch_size`), and a network.")
    signs = torch.where(eps.roll(1, 0) < 0.0, -1.0, 1.0).to(x.dtype)
    alpha, sigma = (torch.as_tensor(per_sample(scale(t), x)) for scale in (process.alpha, process.sigma))
    label = torch.as_tensor(denoise.label(t), dtype=x.dtype, device=x.device)
    return signs, slope(lambda d: denoise.raw(x + d * signs, alpha, sigma, label), x)


@dataclass(frozen=True)
class ObjectiveNeeds:
    """What an objective's builder may ask for.

    Attributes:
        process: the forward process.
        levels: levels of the data.
        variance: Var_t as a function of time by the chosen estimator, from moments of the trunk; made when asked.
        scale: r_f in a basis, from moments per coordinate of the trunk; made when asked.
    """

    process: Process
    levels: Levels
    variance: Callable[[], Callable[[Array], Array]]
    scale: Callable[[], Scale]


@dataclass(frozen=True)
class ObjectiveFacts:
    """What may be asked of an objective without building it.

    Attributes:
        freeze: (network, trunk_dropout) -> the module whose parameters are the head's, for objectives that train a
            head on a frozen trunk; None for those that train the whole network.
        learns_variance: whether the network's own second output (`learned_variance`) is trained.
        loss_aware: whether times may be drawn by the size of the loss: only where the loss is a bound, whose terms
            differ by orders of magnitude between times.
        uses_moments: whether it needs Var_t.
        statistics: what else it needs to know of the network, a member of the family `statistics`; the head is then
            about the coordinates that these are about, and not about pixels. "": nothing.
    """

    freeze: Callable[..., nn.Module] | None = None
    learns_variance: bool = False
    loss_aware: bool = False
    uses_moments: bool = False
    statistics: str = ""

    @property
    def trains_head(self) -> bool:
        return self.freeze is not None

    @property
    def pixel_head(self) -> bool:
        return self.trains_head and not self.statistics

    @property
    def basis_head(self) -> bool:
        return self.trains_head and bool(self.statistics)


def eps_matching(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
    """mean over elements of (eps - eps_network)^2, L_simple of Ho et al. 2020."""
    return (eps - prediction.eps_network).square().flatten(1).mean(1)


def _matching(target: Callable[[Tensor, Tensor, Factor, Factor], Tensor]) -> Callable[[ObjectiveNeeds], Objective]:
    """mean over elements of (target - its prediction)^2, of x0 and eps before clipping."""

    def build(needs: ObjectiveNeeds) -> Objective:
        def loss(prediction: Prediction, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
            alpha, sigma = per_sample(needs.process.alpha(t), x0), per_sample(needs.process.sigma(t), x0)
            x0_hat = unclipped_x0(prediction, alpha * x0 + sigma * eps, alpha, sigma)
            off = target(x0, eps, alpha, sigma) - target(x0_hat, prediction.eps_network, alpha, sigma)
            return off.square().flatten(1).mean(1)

        return loss

    return build


def losses(objective: Objective, denoise: Denoise, process: Process, x0: Tensor, eps: Tensor, t: Array) -> Tensor:
    """The loss per example [B] of a denoiser at x_t = alpha_t x0 + sigma_t eps; t is [B].

    Raises:
        UserError: if the network returned numbers that are not finite, which an objective of a clipped x0 does not see.
    """
    x = per_sample(process.alpha(t), x0) * x0 + per_sample(process.sigma(t), x0) * eps
    prediction = require_finite(denoise(x, t), t)
    if isinstance(objective, Probing):
        return objective(prediction, x0, eps, t, *probed(denoise, process, x, eps, t))
    return objective(prediction, x0, eps, t)


OBJECTIVES: dict[str, Kind] = {
    "eps": Kind(lambda needs: eps_matching, "mean (eps - eps_hat)^2, L_simple (Ho et al. 2020)", ObjectiveFacts()),
    "x0": Kind(_matching(lambda x0, eps, alpha, sigma: x0), "mean (x0 - x0_hat)^2", ObjectiveFacts()),
    "v": Kind(
        _matching(lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0),
        "mean (v - v_hat)^2, v = alpha eps - sigma x0 (Salimans & Ho 2022)",
        ObjectiveFacts(),
    ),
    "flow": Kind(
        _matching(lambda x0, eps, alpha, sigma: eps - x0),
        "mean (u - u_hat)^2, u = eps - x0, flow matching (Lipman et al. 2023)",
        ObjectiveFacts(),
    ),
}
