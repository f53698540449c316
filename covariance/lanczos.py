"""The whole covariance of a state by products with vectors: LGS (2605.22723), training-free.

Tweedie's second order: Cov[x_0 | x_t] = C = rho^2 (I - sigma J), J = d eps_hat/d x_t, rho = sigma/alpha. A step's noise
(lambda2 I + gain^2 C)^(1/2) z needs no matrix: Lanczos from z finds, in m products of C with a vector, V [d, m] with
orthonormal columns and T = V^T C V, tridiagonal, and

    f(C) z ~ |z| V f(T) e_1,      f(c) = sqrt(lambda2 + gain^2 max(c, 0)),

exact where C has no more than m different eigenvalues. A product is a central difference of eps_hat, two calls of the
denoiser, counted as such: a step takes 1 + 2 m. Taken from the abstract of the paper, which takes three products a
step; the limit at 0 is ours, for networks whose derivative is no covariance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise
from adpm.derivative import slope
from adpm.families import Field, Kind
from adpm.gaussian import ZERO, Diagonal
from adpm.kernel import reverse_kernel
from adpm.noise import Noise
from adpm.process import Process
from adpm.solver import SolverFacts, Step, reverse_mean

Product = Callable[[Tensor], Tensor]
"""v [B, ...] -> A v, A symmetric, one for each example."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[B, 1, ...]."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def tridiagonal(product: Product, z: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """Columns of V and T [B, m, m] of Lanczos from z; columns past the last direction that A z, A^2 z, .. have are 0.

    Every vector is made orthogonal to all before it, twice: there are few.
    """
    columns, t = [z / _dot(z, z).sqrt()], z.new_zeros(len(z), steps, steps)
    for k in range(steps):
        w = product(columns[k])
        t[:, k, k] = _dot(w, columns[k]).flatten()
        size = _dot(w, w).sqrt()
        for _ in range(2):
            for column in columns:
                w = w - _dot(w, column) * column
        left = _dot(w, w).sqrt()
        if k + 1 < steps:
            on = left > torch.finfo(z.dtype).eps ** 0.5 * size
            columns.append(torch.where(on, w / left, 0.0))
            t[:, k, k + 1] = t[:, k + 1, k] = torch.where(on, left, 0.0).flatten()
    return columns, t


class Lanczos:
    """x_s ~ N(mean, lambda2 I + gain^2 Cov[x_0 | x_t]) by Lanczos; at s = 0 the mean itself.

    Args:
        process: forward process.
        eta: 1 = DDPM's lambda2, 0 = DDIM's, which is 0.
        products: m, of a step.
    """

    def __init__(self, process: Process, eta: float = 1.0, products: int = 3) -> None:
        self.process, self.eta, self.products = process, eta, products

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: object = None) -> Step:
        """The step's `covariance` is its mean, z^T Cov z/|z|^2; `clipped` is the share of T's values below 0."""
        kernel = reverse_kernel(self.process, t, s, self.eta)
        prediction = denoise(x, t)
        mean = reverse_mean(kernel, prediction)
        if s == 0.0:
            return Step(t, s, mean, prediction, mean, ZERO)
        columns, tri = tridiagonal(lambda v: self._product(denoise, x, t, v), z := noise(), self.products)
        values, vectors = torch.linalg.eigh(tri)
        variances = float(kernel.lambda2) + float(kernel.gain**2) * values.clamp_min(0.0)
        weights = vectors[:, 0, :]
        along = torch.einsum("bij,bj->bi", vectors, variances.sqrt() * weights)
        shape = (-1, *[1] * (x.ndim - 1))
        root = sum(a.reshape(shape) * v for a, v in zip(along.unbind(1), columns, strict=True))
        average = (weights.square() * variances).sum(1).reshape(shape)
        covariance = Diagonal(average, (values < 0.0).double().mean())
        return Step(t, s, mean + _dot(z, z).sqrt() * root, prediction, mean, covariance)

    def _product(self, denoise: Denoise, x: Tensor, t: float, v: Tensor) -> Tensor:
        """rho^2 (v - sigma J v), for v of length 1; its entries are made of the state's size for the difference."""
        sigma, size = float(self.process.sigma(t)), float(np.sqrt(v[0].numel()))
        along = slope(lambda d: denoise(x + d * size * v, t).eps_network, x) / size
        return (sigma / float(self.process.alpha(t))) ** 2 * (v - sigma * along)


SOLVERS: dict[str, Kind] = {
    "lanczos": Kind(
        Lanczos,
        "the reverse Gaussian with the network's own whole covariance, by Lanczos: after LGS (2026)",
        SolverFacts(uses_eta=True),
        {"products": Field(3, "with the covariance, two network calls each, in a step", low=1)},
        reads=("sampling.eta",),
    ),
}
