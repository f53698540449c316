"""What the tests of Gaussian scores and of jumps share: Karras' process, and the stored worlds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm import ideal
from adpm.draws import Source
from adpm.process import Array
from sde.process import SDE, checked
from tests.goldens import golden


class Edm(SDE):
    """alpha = 1, sigma = scale t (Karras et al. 2022 with scale 1; here t ends at 1)."""

    NOISE = ("scale",)

    def __init__(self, steps: int = 18, t_min: float = 0.002 / 80.0, grid: str = "edm", scale: float = 80.0) -> None:
        self.scale = self.prior_std = scale
        super().__init__(steps, t_min, grid)

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones_like(checked(t))

    def sigma(self, t: ArrayLike) -> Array:
        return self.scale * checked(t)

    def log_snr(self, t: ArrayLike) -> Array:
        with np.errstate(divide="ignore"):
            return -2.0 * np.log(self.sigma(t))

    def drift(self, t: ArrayLike) -> Array:
        return np.zeros_like(checked(t))

    def diffusion(self, t: ArrayLike) -> Array:
        return self.scale * np.sqrt(2.0 * checked(t))

    def time_of(self, log_snr: ArrayLike) -> Array:
        return np.exp(-0.5 * np.asarray(log_snr, dtype=np.float64)) / self.scale


def tensor(name: str, key: str) -> Tensor:
    return torch.as_tensor(golden(name)[key])


def source_of(images: Tensor) -> Source:
    return Source.of(lambda index: images[index], len(images))


def low_rank(rank: int, rest: float | None) -> ideal.Mixture:
    """The stored Gaussian in 6 dimensions with its first `rank` directions."""
    mean, basis, spectrum = (tensor("gaussian_flow", key) for key in ("mu", "U", "eig"))
    outside = None if rest is None else torch.tensor([rest], dtype=torch.float64)
    weight = torch.ones(1, dtype=torch.float64)
    return ideal.Mixture(weight, mean[None], spectrum[None, :rank], basis[None, :, :rank], (6,), outside)


def digit_classes() -> ideal.Mixture:
    """Five classes of digits as Gaussians with full covariances: the true model of the stored jumps."""
    stored = golden("teleport_digits")
    return ideal.full_mixture(stored["w"], stored["mu"], stored["S"], (64,))


def digit_gaussian() -> ideal.Mixture:
    """The Gaussian with the mean and the covariance of `digit_classes`."""
    stored = golden("teleport_digits")
    return ideal.full_mixture([1.0], stored["mean"][None], stored["cov"][None], (64,))
