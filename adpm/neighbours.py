"""Two neighbouring methods, for comparison: a deterministic solver and a rule of coloured noise.

aDDIM, Heek et al. (2403.06807), section 3.2 and algorithm 3: the scale of eps_hat (eq. 14), x_var from measured errors,
0.75. Ours: the mean error of a time comes from the moments, and the last step returns x0_hat, as all solvers here do.

CNS, Davidson et al. (2605.30332), made for flow matching: white noise is multiplied at each frequency by sqrt(1 - P),
P the progress that the network has made there, and scaled to unit variance. Taken from the released code, whose power
is an option and 1 unless set, and from others' accounts of the paper's algorithm 1, which have the root. The drift
stays as it was, and so does our mean: what is coloured is noise of variance lambda2, whatever `eta` makes it; on their
path, alpha = 1 - sigma, their diffusion sigma_t is eta^2 = alpha_t in short steps. Ours: P in the coordinates of any
basis, as a ratio of means and of errors on data, where they average the ratios of the network's own samples; unit
variance in expectation, not of each batch. Left out: P stretched to [0, 1] at each frequency, and a tilt exp(a_t f)
tuned for SiT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from adpm.coordinates import Axes
from adpm.denoiser import Denoise, Prediction
from adpm.families import Field, Kind
from adpm.gaussian import ZERO, Covariance, InBasis, Number
from adpm.kernel import Kernel, reverse_kernel
from adpm.moments import MomentTable
from adpm.noise import Noise
from adpm.process import Array, Process
from adpm.solver import SolverFacts, Step
from adpm.variance import Rule, RuleFacts, number


class ADDIM:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 + inflation gain^2 Var_t d/|eps_hat|^2) eps_hat, with the gain of eta = 0.

    Args:
        process: forward process.
        statistics: gives the moments, of which Var_t = E|x_0 - x0_hat|^2 / d; asked for at the first step.
        inflation: of Var_t; 0 is DDIM.
    """

    def __init__(self, process: Process, statistics: Callable[[], MomentTable], inflation: float = 0.75) -> None:
        self._process, self._given, self._inflation = process, statistics, inflation

    @cached_property
    def _variance(self) -> Callable[[Array], Array]:
        return self._given().variance("residual", self._process)

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: object = None) -> Step:
        """The state itself; nothing is drawn."""
        kernel = reverse_kernel(self._process, t, s, 0.0)
        added = self._inflation * float(kernel.gain**2 * self._variance(kernel.t)) if s > 0 else 0.0
        prediction = denoise(x, t)
        square = prediction.eps.square().flatten(1).mean(1).clamp_min(1e-12)
        scale = (float(kernel.sigma_s**2) + added / square).sqrt().reshape(-1, *[1] * (x.ndim - 1))
        state = float(kernel.alpha_s) * prediction.x0 + scale * prediction.eps
        return Step(t, s, state, prediction, state, ZERO)


@dataclass(frozen=True)
class ColouredNoise(Rule):
    """lambda2 energy^2 w_f / mean_f w_f along an axis f, w_f = (1 - P_f / divider)^(2 power).

    1 - P_f = r_f / Var_f, at most 1; for an axis along which the data do not vary, 1.

    Attributes:
        axes: r_f(t), the data's variance Var_f and the basis.
        power, divider, energy: see the rule's options.
    """

    axes: Axes
    power: float = 0.5
    divider: float = 1.0
    energy: float = 1.0

    def parameter(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        """energy^2 w_f / mean_f w_f."""
        residual, variance = self.axes.residual(kernel.t), self.axes.spectrum.variance
        left = np.divide(residual, variance, out=np.ones_like(residual), where=residual < variance)
        share = (1.0 - (1.0 - left) / self.divider) ** (2.0 * self.power)
        share = self.energy**2 * share / share.mean(-1, keepdims=True)
        return InBasis(self.axes.laid_out(share), basis=self.axes.spectrum.basis)

    def variance(self, kernel: Kernel, values: Number) -> Number:
        return values * number(kernel.lambda2)


SOLVERS: dict[str, Kind] = {
    "addim": Kind(
        ADDIM,
        "aDDIM: DDIM with eps made longer by the scalar residual (Heek et al. 2024)",
        SolverFacts(statistics="moments"),
        {"inflation": Field(0.75, "of the measured residual; published: 0.75, DDIM: 0", low=0)},
    ),
}
RULES: dict[str, Kind] = {
    "cns": Kind(
        lambda needs, power=0.5, divider=1.0, energy=1.0: ColouredNoise(
            Axes(needs.spectrum, needs.process), power, divider, energy
        ),
        "DDPM's beta-tilde, coloured by what the network has still to resolve (CNS: Davidson et al. 2026)",
        RuleFacts(statistics="coordinates", per_axis=True),
        {
            "power": Field(0.5, "of 1 - P in the noise's amplitude; released, for SiT: 0.75 without guidance", low=0),
            "divider": Field(1.0, "of P; released, for SiT: 1.73 without guidance, 25 with it", low=1),
            "energy": Field(1.0, "factor of the noise; released, for SiT: 0.98 without guidance, 0.998 with", above=0),
        },
        reads=("moments.statistics=coordinates",),
    ),
}
