"""What a network's output stands for: x0 and eps of it.

    output     what it stands for         x0                                         eps
    eps        eps                        (x - sigma eps) / alpha                    eps
    x0         x0                         x0                                         (x - alpha x0) / sigma
    score      grad log q = -eps/sigma    (x + sigma^2 score) / alpha                -sigma score
    v          alpha eps - sigma x0       (alpha x - sigma v) / (alpha^2 + sigma^2)  (sigma x + alpha v) / (same)
    flow  u    eps - x0                   (x - sigma u) / (alpha + sigma)            (x + alpha u) / (alpha + sigma)
    edm        -v                         as v                                       as v

all from x = alpha_t x0 + sigma_t eps, for any process. v is that of Salimans & Ho (2022). With alpha = 1 - t, sigma = t
(rectified flow, Liu et al. 2023, time running from the data to noise) u is the velocity dx/dt. eps and score leave x0
undefined where alpha = 0; the others say both everywhere.

EDM's network F (Karras et al. 2022), D(y) = c_skip y + c_out F(c_in y), is -v of the data divided by sigma_data = 0.5
where alpha^2 + sigma^2 = 1: c_in y is x, and c_skip and c_out have the ratio of alpha and sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from adpm.errors import UserError
from adpm.families import Kind
from adpm.process import Process


def x0_from_eps(x: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """x0 = (x - sigma eps) / alpha."""
    return (x - sigma * eps) / alpha


def eps_from_x0(x: Tensor, x0: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """eps = (x - alpha x0) / sigma."""
    return (x - alpha * x0) / sigma


Interpretation = Callable[[Tensor, Tensor, "float | Tensor", "float | Tensor"], tuple[Tensor, Tensor]]


def _predicts_eps(x: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    return x0_from_eps(x, out, alpha, sigma), out


def _predicts_x0(x: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    return out, eps_from_x0(x, out, alpha, sigma)


def _predicts_score(x: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    return _predicts_eps(x, -sigma * out, alpha, sigma)


def _predicts_v(x: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    squared = alpha**2 + sigma**2
    return (alpha * x - sigma * out) / squared, (sigma * x + alpha * out) / squared


def _predicts_edm(x: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    return _predicts_v(x, -out, alpha, sigma)


def _predicts_flow(x: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    return (x - sigma * out) / (alpha + sigma), (x + alpha * out) / (alpha + sigma)


def require_alpha(process: Process, what: str, instead: str) -> None:
    """Refuse what divides by alpha on a process that ends in pure noise.

    Args:
        process: the forward process.
        what: divides.
        instead: what would do, as an imperative.

    Raises:
        UserError: if alpha stands for 0 at the last time.
    """
    if process.pure_noise:
        raise UserError(
            f"{what} divides by alpha, which is 0 at t = {process.times[-1]:g}, where this process is pure noise; "
            f"{instead}."
        )


@dataclass(frozen=True)
class PredictionFacts:
    """Attributes: divides_by_alpha: whether x0 comes of a division by alpha, which may be 0."""

    divides_by_alpha: bool = False


PREDICTIONS: dict[str, Kind] = {
    "eps": Kind(lambda: _predicts_eps, "the noise, x = alpha x0 + sigma eps", PredictionFacts(True)),
    "x0": Kind(lambda: _predicts_x0, "the data", PredictionFacts()),
    "score": Kind(
        lambda: _predicts_score, "the score grad log q(x_t) = -eps/sigma, as VE networks do", PredictionFacts(True)
    ),
    "v": Kind(lambda: _predicts_v, "alpha eps - sigma x0 (Salimans & Ho 2022)", PredictionFacts()),
    "edm": Kind(
        lambda: _predicts_edm, "-v, of data divided by 0.5: EDM's networks (Karras et al. 2022)", PredictionFacts()
    ),
    "flow": Kind(
        lambda: _predicts_flow, "eps - x0, the velocity of rectified flow (Liu et al. 2023)", PredictionFacts()
    ),
}
