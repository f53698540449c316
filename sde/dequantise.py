"""Where the flow starts on data with levels, and what that adds to -log p.

The flow has a density p of x at t_min > 0. For any q(x | x_0), a bound on the code length of the levels is

    -log P(x_0) <= E_q[ -log p(x) + log q(x | x_0) - log P(x_0 | x) ]

    uniform     x = x_0 + (u - 1/2) w, u uniform, w the distance of levels: log q = -d log w, and x names x_0: P = 1.
                score_sde's; their "+ 7" is -log2 w.
    diffusion   x = alpha x_0 + sigma z at t_min, as the model was trained to see data: log q is that Gaussian's, and
                P(x_0 | x) the data term of the variational bound with its decoder variance.

A network that was trained on levels has never seen data between them, so at t_min = 1e-5 `uniform` asks for densities
that it does not have: with few levels that dominates the figure. `diffusion` is then the sensible one, at a t_min
where sigma is of the order of w. Data without levels are a density themselves: `uniform` leaves them as they are.

At other scales of the data: score_sde puts its 256 levels at (k + 1/2) / 128 - 1: Levels(256, -1 + 1/256, 1 - 1/256),
w = 1/128; on data that are not centred, Levels(256, 1/512, 1 - 1/512), w = 1/256 and so "+ 8"; Levels(256, -1, 1) has
w = 2/255 and log2(127.5) = 6.994. All are the same quantity, comparable with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adpm.denoiser import Denoise, require_finite
from adpm.families import Kind
from adpm.likelihood import Decoder, Levels, decoder_nats
from adpm.process import Process

Dequantise = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(x_0 [B, ...], standard normal noise, t_min) -> (x, nats to add to -log p(x), [B]); float64."""


def uniform(levels: Levels) -> Dequantise:
    """Uniform noise over the bins, u = Phi(noise)."""

    def start(x0: Tensor, noise: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        if not levels.count:
            return x0.double(), torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        x = x0.double() + (torch.special.ndtr(noise.double()) - 0.5) * levels.width
        nats = -x0[0].numel() * math.log(levels.width)
        return x, torch.full((len(x0),), nats, dtype=torch.float64, device=x0.device)

    return start


def diffusion(denoise: Denoise, process: Process, decoder: Decoder, levels: Levels) -> Dequantise:
    """The forward process at t_min, paid back by the bound's decoder."""

    def start(x0: Tensor, noise: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        x0, z = x0.double(), noise.double()
        sigma = float(process.sigma(t_min))
        x = float(process.alpha(t_min)) * x0 + sigma * z
        log_q = -(0.5 * z.square() + math.log(sigma) + 0.5 * math.log(2.0 * math.pi)).flatten(1).sum(1)
        return x, log_q + decoder_nats(x0, require_finite(denoise(x, t_min), t_min).x0, decoder(t_min), levels)

    return start


@dataclass(frozen=True)
class Start:
    """What a dequantisation's builder may ask for: the model, levels of the data, and the decoder where it is used."""

    denoise: Denoise
    process: Process
    levels: Levels
    decoder: Decoder | None


@dataclass(frozen=True)
class DequantisationFacts:
    """Attributes: uses_decoder: whether it ends in the bound's decoder."""

    uses_decoder: bool = False


def _diffusion(start: Start) -> Dequantise:
    assert start.decoder is not None, "the facts say that it is used"
    return diffusion(start.denoise, start.process, start.decoder, start.levels)


DEQUANTISATIONS: dict[str, Kind] = {
    "uniform": Kind(
        lambda start: uniform(start.levels), "uniform noise over the bins, score_sde's", DequantisationFacts()
    ),
    "diffusion": Kind(
        _diffusion,
        "the forward process at t_min, paid back by the bound's decoder",
        DequantisationFacts(uses_decoder=True),
        reads=("likelihood.decoder",),
    ),
}
