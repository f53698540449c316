"""Exact likelihood by the probability-flow ODE, in nats (Song et al. 2021, section 4.3 and eq. 39).

    dx/dt = v(x, t) = f(t) x - g(t)^2/2 score(x, t) = alpha' x0 + sigma' eps,    t from t_min to T = 1
    -log p(x) = -log N(x_T; 0, prior_std^2 I) - integral of div v along the path

It is exact for the model that draws x_T from the prior and follows the ODE back to t_min: p is the model's density of
x_{t_min}, evaluated at the data (on VE that is smoothed by sigma_min). The integral is the mean over probes z of the
integrals of z^T (dv/dx) z (Hutchinson): unbiased for E z z^T = I, its spread over probes the error bar.

Clipping has no part in it: a clipped x0 has no slope, and its eps is no score. x0 and eps are those before clipping,
whatever the denoiser's `clip` says.

Data with levels are dequantised first: dequantise.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from adpm.denoiser import Counted, Denoise, require_finite, unclipped_x0
from adpm.errors import UserError
from adpm.families import Kind, built
from adpm.noise import KeyedNoise
from adpm.process import Process
from sde.process import END, SDE


@dataclass(frozen=True)
class FlowLikelihood:
    """-log p of a batch by the probability flow; float64.

    Attributes:
        nats: [B], -log p = prior - divergence.
        prior: [B], -log N(x_T; 0, prior_std^2 I).
        divergence: [B], integral of div v from t_min to T, the mean over probes.
        standard_error: [B], of that mean over probes, or None for one probe; the solver's error is not in it.
        latent: x_T, of x's shape.
        nfe: evaluations of the denoiser; each also costs one vector-Jacobian product per probe.
    """

    nats: Tensor
    prior: Tensor
    divergence: Tensor
    standard_error: Tensor | None
    latent: Tensor
    nfe: int


PROBES: dict[str, Kind] = {
    "rademacher": Kind(lambda: lambda noise: torch.ones_like(noise).copysign(noise), "signs: the smaller variance"),
    "gaussian": Kind(lambda: lambda noise: noise, "standard normal"),
}
"""Standard normal noise -> probes z with E z z^T = I. With J the symmetric part of the integrated Jacobian, one probe
has variance 2 ||J||_F^2 (Gaussian), or that without J's diagonal (Rademacher): the smaller, and 0 for diagonal J.
On VP and sub-VP the drift's f takes most of the diagonal away, on VE nothing does: Gaussian probes are poor there."""


def keyed_probes(kind: str, count: int, seed: int, images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`count` probes of each image, [P, B, *shape] float64: functions of (seed, image, number of the probe) alone.

    Args:
        kind: a key of PROBES.
        images: [B], the images' numbers.

    Raises:
        UserError: for an unknown kind, or count < 1.
    """
    draw = built(PROBES, kind, "`probe`")
    if count < 1:
        raise UserError(f"`probes` = {count} must be at least 1; from 2 on there is an error bar.")
    keyed = KeyedNoise(seed, "probe")
    return torch.stack([draw(keyed(images, number, shape).double()) for number in range(count)])


class ProbabilityFlow:
    """The right-hand side of the ODE and its divergence: (x, t) -> v [B, ...] and z^T (dv/dx) z [P, B], float64.

    Args:
        denoise: differentiable in x, no image of a batch acting on another (normalisation layers in eval mode).
        process: an SDE, see sde/process.py.
        probes: [P, B, ...].
        dtype: what the denoiser computes in.
    """

    def __init__(self, denoise: Denoise, process: SDE, probes: Tensor, dtype: torch.dtype = torch.float64) -> None:
        self._denoise, self.process, self.dtype = Counted(denoise), process, dtype
        self.probes = probes.double()

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser so far."""
        return self._denoise.calls

    def __call__(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        signal, noise = (float(rate) for rate in self.process.rates(t))
        with torch.inference_mode(False), torch.enable_grad():
            # a copy: what was made in inference mode carries no gradient
            leaf = x.detach().to(self.dtype, copy=True).requires_grad_()
            prediction = require_finite(self._denoise(leaf, t), t)
            if not prediction.eps_network.requires_grad:
                raise UserError(
                    "the likelihood needs a denoiser that can be differentiated in x; this one cuts gradients."
                )
            velocity = signal * unclipped_x0(prediction, leaf, alpha, sigma) + noise * prediction.eps_network
            return velocity.detach().double(), self._quadratic_forms(velocity, leaf)

    def _quadratic_forms(self, velocity: Tensor, leaf: Tensor) -> Tensor:
        """z^T (dv/dx) z for each probe and image, [P, B]."""
        forms = []
        for probe in self.probes:
            (product,) = torch.autograd.grad(velocity, leaf, probe.to(velocity.dtype), retain_graph=True)
            forms.append((product.double() * probe).flatten(1).sum(1))
        return torch.stack(forms)


def flow_likelihood(
    denoise: Denoise,
    process: Process,
    x: Tensor,
    probes: Tensor,
    *,
    t_min: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int = 1000,
) -> FlowLikelihood:
    """-log p(x) by one adaptive integration from t_min to 1 (Dormand-Prince of order 5, float64).

    Step sizes are chosen for the whole batch: an error is measured in the root mean square over all images, and over
    all divergences, the larger of the two. So the nats of an image depend on its batch and on the number of probes, to
    within the tolerance.

    Args:
        denoise: the model, see ProbabilityFlow; it computes in x's dtype, the ODE's state is float64.
        process: an SDE, see sde/process.py.
        x: images [B, ...], dequantised where data have levels.
        probes: [P, B, ...], see keyed_probes.
        t_min: where the data are put.
        rtol, atol: tolerances of one step.
        max_nfe: evaluations allowed.

    Raises:
        UserError: for bad input, when max_nfe is used up, or when the step size has vanished.
    """
    check_options(t_min, rtol, atol, len(probes))
    _check_input(x, probes)
    sde = require_sde(process)
    with torch.no_grad():
        flow = ProbabilityFlow(denoise, sde, probes.to(x.device), x.dtype)
        start = (x.double(), torch.zeros(probes.shape[:2], dtype=torch.float64, device=x.device))
        latent, integrals = _integrate(flow, start, t_min, rtol, atol, max_nfe)
    prior = gaussian_nats(latent, sde.prior_std)
    divergence, count = integrals.mean(0), len(probes)
    error = integrals.std(0) / math.sqrt(count) if count > 1 else None
    return FlowLikelihood(prior - divergence, prior, divergence, error, latent, flow.nfe)


def require_sde(process: Process) -> SDE:
    """The process, if the flow has one.

    Raises:
        UserError: for a process without drift and diffusion.
    """
    if not isinstance(process, SDE):
        raise UserError(
            f"the probability flow needs an SDE (vp, subvp, ve, rectified_flow), got {type(process).__name__}."
        )
    return process


def check_options(t_min: float, rtol: float, atol: float, probes: int) -> None:
    """Refuse what no integration can work with.

    Raises:
        UserError: naming the field.
    """
    if not 0.0 < t_min < END:
        raise UserError(f"`t_min` = {t_min} must lie in (0, 1); 1e-5 is the published choice.")
    if not (rtol > 0.0 and atol > 0.0):
        raise UserError(f"`rtol` = {rtol} and `atol` = {atol} must be positive.")
    if probes < 1:
        raise UserError(f"`probes` = {probes} must be at least 1; from 2 on there is an error bar.")


def _check_input(x: Tensor, probes: Tensor) -> None:
    if not x.isfinite().all():
        raise UserError("an image holds values that are not finite: its likelihood is not defined.")
    if probes.shape[1:] != x.shape:
        raise UserError(f"`probes` must have shape [P, *{tuple(x.shape)}] with P >= 1, got {tuple(probes.shape)}.")


def _integrate(
    flow: ProbabilityFlow, start: tuple[Tensor, Tensor], t_min: float, rtol: float, atol: float, max_nfe: int
) -> tuple[Tensor, Tensor]:
    """(x, divergences) at T."""

    def failed(reason: str) -> UserError:
        return UserError(
            f"the probability-flow ODE of the likelihood from t = {t_min:g} to 1 was not solved: {reason}; allow more "
            f"evaluations, loosen `rtol` = {rtol:g} and `atol` = {atol:g}, or start at a larger `t_min`."
        )

    def velocity(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        now = min(max(float(time), t_min), END)  # beyond the interval when the first step size is tried out
        if flow.nfe >= max_nfe:
            raise failed(f"`max_nfe` = {max_nfe} evaluations were spent at t = {now:.4g}")
        return flow(state[0], now)

    interval = torch.tensor([t_min, END], dtype=torch.float64, device=start[0].device)
    try:
        # step_t: without it the last step would overshoot T and evaluate there
        options = {"step_t": interval[1:]}
        x, divergences = odeint(velocity, start, interval, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:
        raise failed("its step size vanished, or its state is not finite") from error
    return x[-1], divergences[-1]


def gaussian_nats(x: Tensor, std: float) -> Tensor:
    """-log N(x; 0, std^2 I) per image, [B]."""
    return (0.5 * (x / std).square() + math.log(std) + 0.5 * math.log(2.0 * math.pi)).flatten(1).sum(1)
