"""The covariance along a basis from one Jacobian-vector product a step, without training.

Tweedie's second order: Cov[x_0 | x_t] = rho^2 (I - sigma J), J = d eps_hat/d x_t, rho = sigma/alpha. Along the axes of
Q, with signs s that the state does not know,

    c_f = rho^2 (1 - sigma s_f (Q J Q^T s)_f)  =  sum_g s_f s_g (Q Cov[x_0 | x_t] Q^T)_fg,

which is the variance along f where Q makes the covariance diagonal, and on average over signs. What the other entries
add is taken down by averaging c_f / r_f over neighbours in the order of the data's variance.

Schioppa & Salimans (2605.13910) have the covariance in Fourier coordinates by one product a step; how they take the
noise of one product down was not at hand. Ours: any basis, the units r_f, the averages. The product is a central
difference, two calls of the network, and counted as such; where the signal is weak, rho^2 makes much of its rounding,
which is why c_f / r_f is limited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.basis import Basis
from adpm.coordinates import by_variance
from adpm.denoiser import Denoise, Prediction, Raw, per_sample
from adpm.derivative import slope
from adpm.errors import UserError
from adpm.gaussian import Covariance, InBasis
from adpm.kernel import Kernel
from adpm.noise import KeyedNoise
from adpm.process import Process
from adpm.scale import Scale
from adpm.variance import PosteriorRule
from covariance.relative import FLOOR
from covariance.second_output import second_output

_MOST = 10.0


class Sloped:
    """A denoiser whose second output is c_f, laid out as the basis's coordinates.

    Signs depend on the time alone: no sample's on those beside it.

    Args:
        denoise: a network's or an exact one.
        process: its own.
        basis: Q.
        seed: of the signs.

    Attributes:
        evaluations: network calls of one prediction.

    Raises:
        UserError: for a denoiser that is not called at other states than x_t, such as a guided one.
    """

    evaluations = 3

    def __init__(self, denoise: Denoise, process: Process, basis: Basis, seed: int = 0) -> None:
        if not isinstance(denoise, Raw):
            raise UserError("the rule 'one_jvp' differentiates a network or an exact mean, not a guided one.")
        self._denoise, self._process, self._basis = denoise, process, basis
        self._noise = KeyedNoise(seed, "slopes")

    def given(self, classes: Tensor | None) -> Denoise:
        """See `adpm.classes.Conditional`."""
        own: Any = self._denoise
        told = Sloped(own.given(classes), self._process, self._basis)
        told._noise = self._noise
        return told

    def signs(self, t: ArrayLike, x: Tensor) -> Tensor:
        """s for x at a time, [1, ...], or at times [B], [B, ...]."""
        keys = np.atleast_1d(np.asarray(t, dtype=np.float64)).view(np.int64)
        drawn = self._noise(torch.from_numpy(keys.copy()).to(x.device), 0, x.shape[1:])
        return torch.where(drawn < 0.0, -1.0, 1.0).to(x.dtype)

    def __call__(self, x: Tensor, t: ArrayLike) -> Prediction:
        time, signs = np.asarray(t, dtype=np.float64), self.signs(t, x)
        alpha, sigma = (
            torch.as_tensor(per_sample(scale(time), x)) for scale in (self._process.alpha, self._process.sigma)
        )
        label, direction = torch.as_tensor(self._raw.label(time), dtype=x.dtype), self._basis.inverse(signs)
        along = slope(lambda d: self._raw.raw(x + d * direction, alpha, sigma, label.to(x.device)), x)
        product = signs * self._basis.forward(along)
        return replace(self._denoise(x, t), head=(sigma / alpha) ** 2 * (1.0 - sigma * product))

    @property
    def _raw(self) -> Raw:
        assert isinstance(self._denoise, Raw)
        return self._denoise


@dataclass(frozen=True)
class OneProduct(PosteriorRule):
    """Cov[x_0 | x_t] = r_f(t) mean of c_g / r_g over neighbours g of f, in [1e-4, 10], along the axes of a basis.

    Attributes:
        scale: gives r_f and the basis; asked for at the first step.
        process: whose times they are.
        neighbours: on either side, in the order of the data's variance; 0: none.
    """

    scale: Callable[[], Scale]
    process: Process
    neighbours: int = 8

    @property
    def state_dependent(self) -> bool:
        return True

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        said, scale = second_output(prediction), self._scale
        r = torch.as_tensor(scale(self.process.log_snr(kernel.t)), dtype=said.dtype, device=said.device)
        ratio = (said.flatten(1) / r)[:, self._order]
        q = torch.empty_like(ratio)
        q[:, self._order] = self._smooth(ratio).clamp(FLOOR, _MOST)
        return InBasis((r * q).reshape(said.shape), basis=scale.basis)

    def _smooth(self, ratio: Tensor) -> Tensor:
        """Means over neighbours, fewer at the ends."""
        if not self.neighbours:
            return ratio
        window = {
            "kernel_size": 2 * self.neighbours + 1,
            "stride": 1,
            "padding": self.neighbours,
            "count_include_pad": False,
        }
        return torch.nn.functional.avg_pool1d(ratio[:, None], **window)[:, 0]  # type: ignore[arg-type]

    @cached_property
    def _scale(self) -> Scale:
        return self.scale()

    @cached_property
    def _order(self) -> Tensor:
        """The coordinates, those of most variance first, as they are where noise hides the data."""
        return torch.from_numpy(by_variance(self._scale.variance[-1]))
