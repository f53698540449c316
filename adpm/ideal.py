"""Exact denoisers for data whose posterior is known: the ground truth of the tests.

Data x_0 ~ sum_k w_k N(m_k, C_k) with C_k = U_k diag(l_k) U_k^T. Given x = x_t, component k has

    p(k | x)          ~ w_k N(x; alpha m_k, alpha^2 C_k + sigma^2 I)
    E[x_0 | x, k]     = m_k + U_k diag(alpha l_k / (alpha^2 l_k + sigma^2)) U_k^T (x - alpha m_k)
    Cov[x_0 | x, k]   = U_k diag(l_k sigma^2 / (alpha^2 l_k + sigma^2)) U_k^T

and the mixture's mean and variance follow. A Gaussian is one component, a finite data set has l_k = 0. Where U_k holds
r < d directions, C_k = U_k diag(l_k) U_k^T + rest_k (I - U_k U_k^T): the others share one more eigenvalue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import Prediction, per_sample
from adpm.parametrisation import eps_from_x0
from adpm.process import Array, Process


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over images.

    Attributes:
        weights: [K], summing to 1.
        means: [K, d].
        spectrum: [K, r], eigenvalues l_k >= 0 of the covariances; r = d unless there is a `rest`.
        basis: [K, d, r] with the eigenvectors in columns, or None for diagonal covariances.
        shape: the image shape (C, H, W), d = C H W.
        rest: [K], the variance in every direction outside `basis`; None: there are no such directions.
    """

    weights: Tensor
    means: Tensor
    spectrum: Tensor
    basis: Tensor | None
    shape: tuple[int, ...]
    rest: Tensor | None = None

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def mean(self) -> Tensor:
        """E[x_0], [d]."""
        return self.weights @ self.means

    def variance(self) -> float:
        """tr Cov[x_0] / d."""
        spread = (self.means - self.mean()).square().sum(1) + self.spectrum.sum(1)
        if self.rest is not None:
            spread = spread + (self.dim - self.spectrum.shape[1]) * self.rest
        return float(self.weights @ spread) / self.dim

    def to(self, device: torch.device) -> Mixture:
        """The same mixture on another device."""
        basis, rest = (None if part is None else part.to(device) for part in (self.basis, self.rest))
        means, spectrum = self.means.to(device), self.spectrum.to(device)
        return Mixture(self.weights.to(device), means, spectrum, basis, self.shape, rest)

    def sample(self, n: int, seed: int) -> Tensor:
        """n draws [n, C, H, W], float64."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.spectrum.shape[1], dtype=torch.float64, generator=generator) * self.spectrum[k].sqrt()
        x = self.means[k]
        if self.basis is None:
            return (x + z).reshape(n, *self.shape)
        wide = torch.zeros(n, self.dim, dtype=torch.float64)
        if self.rest is not None:
            wide = torch.randn(n, self.dim, dtype=torch.float64, generator=generator) * self.rest[k].sqrt()[:, None]
        for component, basis in enumerate(self.basis):
            own = k == component
            x[own] += z[own] @ basis.mT + wide[own] - (wide[own] @ basis) @ basis.mT
        return x.reshape(n, *self.shape)

    def posterior(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t = x] and the diagonal of Cov[x_0 | x_t = x], both of x's shape, float64, on x's device."""
        if x.device != self.means.device:
            return self.to(x.device).posterior(x, alpha, sigma)
        alpha, sigma = (torch.as_tensor(c, dtype=torch.float64, device=x.device).reshape(-1, 1) for c in (alpha, sigma))
        flat = x.double().reshape(len(x), 1, -1)
        delta = flat - alpha[:, None] * self.means  # [B, K, d]
        alpha3, sigma3 = alpha[:, None], sigma[:, None]
        marginal = alpha3**2 * self.spectrum + sigma3**2  # [B or 1, K, r], eigenvalues of Cov[x_t | k]
        rotated = delta if self.basis is None else torch.einsum("kji,bkj->bki", self.basis, delta)
        log_weight = self.weights.log() - 0.5 * (rotated.square() / marginal + marginal.log()).sum(2)
        shift = alpha3 * self.spectrum / marginal * rotated
        variance = (self.spectrum * sigma3**2 / marginal).expand_as(rotated)
        if self.basis is not None:
            shift = torch.einsum("kij,bkj->bki", self.basis, shift)
            variance = torch.einsum("kij,bkj->bki", self.basis.square(), variance)
            if self.rest is not None:
                outside = delta - torch.einsum("kij,bkj->bki", self.basis, rotated)
                more = self._outside(outside, self.basis, self.rest[:, None], alpha3, sigma3)
                log_weight, shift, variance = log_weight + more[0], shift + more[1], variance + more[2]
        responsibility = torch.softmax(log_weight, dim=1)[:, :, None]
        component_mean = self.means + shift
        mean = (responsibility * component_mean).sum(1)
        total = (responsibility * (variance + (component_mean - mean[:, None]).square())).sum(1)
        return mean.reshape(x.shape), total.reshape(x.shape)

    @staticmethod
    def _outside(delta: Tensor, basis: Tensor, rest: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """What the directions outside the basis add to log-weights [B, K], shift and variance [B, K, d].

        Args:
            delta: [B, K, d], the part of x - alpha m_k in these directions.
            basis, rest: [K, d, r] and [K, 1].
            alpha, sigma: [B or 1, 1, 1].
        """
        marginal = alpha**2 * rest + sigma**2
        left = basis.shape[1] - basis.shape[2]
        log_weight = -0.5 * (delta.square().sum(2, keepdim=True) / marginal + left * marginal.log()).sum(2)
        share = 1.0 - basis.square().sum(2)  # of each pixel, the diagonal of I - U U^T
        return log_weight, alpha * rest / marginal * delta, rest * sigma**2 / marginal * share


def gaussian(mean: ArrayLike, variance: ArrayLike, shape: Sequence[int]) -> Mixture:
    """N(mean, diag variance), both broadcast to d."""
    d = int(np.prod(shape))
    return diagonal_mixture([1.0], np.broadcast_to(mean, (1, d)), np.broadcast_to(variance, (1, d)), shape)


def diagonal_mixture(weights: ArrayLike, means: ArrayLike, variances: ArrayLike, shape: Sequence[int]) -> Mixture:
    """Components N(m_k, diag v_k); `variances` [K, d] or [K]."""
    means_ = torch.as_tensor(np.asarray(means, dtype=np.float64).copy())
    v = np.asarray(variances, dtype=np.float64)
    v = np.broadcast_to(v[:, None] if v.ndim == 1 else v, means_.shape)
    return Mixture(_weights(weights), means_, torch.as_tensor(v.copy()), None, tuple(shape))


def full_mixture(weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, shape: Sequence[int]) -> Mixture:
    """Components N(m_k, C_k) with full covariances [K, d, d]."""
    spectrum, basis = np.linalg.eigh(np.asarray(covariances, dtype=np.float64))
    means_ = torch.as_tensor(np.asarray(means, dtype=np.float64).copy())
    return Mixture(
        _weights(weights), means_, torch.as_tensor(spectrum).clamp_min(0), torch.as_tensor(basis), tuple(shape)
    )


def finite(points: Tensor) -> Mixture:
    """The uniform distribution on the rows of `points` [n, C, H, W]."""
    flat = points.double().reshape(len(points), -1)
    return Mixture(_weights(np.ones(len(flat))), flat, torch.zeros_like(flat), None, tuple(points.shape[1:]))


def classwise(images: Tensor, labels: Tensor, ridge: float = 1e-3) -> Mixture:
    """One full-covariance Gaussian per class: class means, class covariances + ridge I, class frequencies."""
    flat = images.double().reshape(len(images), -1).numpy()
    classes, counts = np.unique(labels.numpy(), return_counts=True)
    groups = [flat[labels.numpy() == c] for c in classes]
    covariances = [np.cov(g.T, bias=True) + ridge * np.eye(flat.shape[1]) for g in groups]
    return full_mixture(counts, [g.mean(0) for g in groups], covariances, images.shape[1:])


def _weights(weights: ArrayLike) -> Tensor:
    w = torch.as_tensor(np.asarray(weights, dtype=np.float64).copy())
    return w / w.sum()


class IdealDenoiser:
    """The exact denoiser of a mixture under a process: x0 = E[x_0 | x_t], eps = E[eps | x_t].

    Attributes:
        mixture, process: what it is exact for.
    """

    def __init__(self, mixture: Mixture, process: Process) -> None:
        self.mixture, self.process = mixture, process

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        alpha, sigma = self._scales(x, t)
        mean, _ = self.mixture.posterior(x, alpha, sigma)
        x0 = mean.to(x.dtype)
        eps = eps_from_x0(x, x0, alpha, sigma)
        return Prediction(x0, eps, eps, x0_network=x0)

    def label(self, t: Array) -> Array:
        """Time itself, of which `raw` makes no use."""
        return t

    def raw(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, label: float | Tensor) -> Tensor:
        """E[eps | x_t] at these scales; see `adpm.denoiser.Raw`."""
        return eps_from_x0(x, self.mixture.posterior(x, alpha, sigma)[0].to(x.dtype), alpha, sigma)

    def variance(self, x: Tensor, t: ArrayLike) -> Tensor:
        """The diagonal of Cov[x_0 | x_t = x], of x's shape."""
        return self.mixture.posterior(x, *self._scales(x, t))[1]

    def squared_noise(self, x: Tensor, t: ArrayLike) -> Tensor:
        """E[eps^2 | x_t = x] = ((x - alpha E[x_0|x])^2 + alpha^2 Var[x_0|x]) / sigma^2, elementwise."""
        alpha, sigma = self._scales(x, t)
        mean, variance = self.mixture.posterior(x, alpha, sigma)
        return ((x.double() - alpha * mean).square() + alpha**2 * variance) / sigma**2

    def _scales(self, x: Tensor, t: ArrayLike) -> tuple[float | Tensor, float | Tensor]:
        time = np.asarray(t, dtype=np.float64)
        like = x.double()
        return per_sample(self.process.alpha(time), like), per_sample(self.process.sigma(time), like)
