"""The Gaussian with the data's mean and covariance: fitting it, and its probability flow in closed form.

At low SNR a network's score is that of the Gaussian N(m, C) of its data: the next term of the score is the third
cumulant's, smaller by (sqrt(c_max) alpha/sigma)^3 (Wang & Vastola, "The Unreasonable Effectiveness of Gaussian Score
Approximation for Diffusion Models", TMLR 2024). With C = U diag(c) U^T + rest (I - U U^T), the flow of that score goes
from (alpha_t, sigma_t) to (alpha_s, sigma_s) by

    x_s = alpha_s m + sum_f sqrt((alpha_s^2 c_f + sigma_s^2) / (alpha_t^2 c_f + sigma_t^2)) U_f U_f^T (x_t - alpha_t m)

with `rest` for c_f outside U. A mixture has no closed form. In v = x/sigma and l = log(sigma/alpha) its flow, as that
of any denoiser, is

    dv/dl = -(alpha/sigma) E[x_0 | x]

which is slow at low SNR, where v is the noise that the state was made of. Nothing here knows the process but by alpha
and sigma: discrete schedules, VP, sub-VP and VE are served alike.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from adpm.draws import AT_ONCE, Source
from adpm.errors import UserError
from adpm.ideal import Mixture
from adpm.process import Process

LARGEST = 4096
"""Dimensions up to which the covariance is made and taken apart as a whole: 128 MiB, and some minutes on one core."""

_SPARE, _ROUNDS = 10, 6
"""Directions more than asked for, and passes over the data, of the search in higher dimensions."""


def fit_gaussian(source: Source, rank: int = 0) -> Mixture:
    """The Gaussian of a set of images, its covariance with 1/n; one component, float64, on the images' device.

    Up to LARGEST dimensions in one pass and one eigendecomposition, beyond by subspace iteration (Halko et al. 2011),
    whose passes over the data hold no d x d matrix.

    Args:
        source: the images.
        rank: r, directions kept, those of most variance; outside them the variance is its mean there. 0: all.

    Raises:
        UserError: if the images do not vary, are not finite, or have not so many dimensions; if all directions are
            asked for in more than LARGEST dimensions.
    """
    shape = tuple(source.mean.shape)
    check_rank(rank, shape)
    mean, total = _mean(source)
    if not bool(torch.isfinite(mean).all()) or not np.isfinite(total):
        raise UserError("a Gaussian is fitted to finite images; some are NaN or infinite.")
    if not total > 0.0:
        raise UserError("all images are the same: their covariance is singular, and no Gaussian describes them.")
    dim = mean.numel()
    if dim <= LARGEST:
        spectrum, basis = leading(_times(source, mean))
    else:
        spectrum, basis = _iterated(source, mean, rank)
    return one_component(mean, spectrum, basis, rank, shape, total)


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Refuse a rank that images of a shape do not have.

    Raises:
        UserError: naming it.
    """
    dim = int(np.prod(shape))
    if not 0 <= rank <= dim:
        raise UserError(f"`rank` = {rank} must lie in 1..{dim}, the dimensions of the data, or be 0 for all of them.")
    if not rank and dim > LARGEST:
        raise UserError(
            f"`rank` = 0 keeps all {dim} directions of the data, more than {LARGEST}; keep fewer, such as 256."
        )


def leading(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], the largest first, negative ones from rounding made zero, and eigenvectors in columns [d, d]."""
    spectrum, basis = torch.linalg.eigh(covariance)
    return spectrum.flip(0).clamp_min(0.0), basis.flip(1)


def one_component(
    mean: Tensor, spectrum: Tensor, basis: Tensor, rank: int, shape: tuple[int, ...], total: float
) -> Mixture:
    """A Gaussian that keeps the first directions.

    Args:
        mean: [d].
        spectrum, basis: eigenvalues, the largest first, with their directions.
        rank: how many to keep; 0: all.
        shape: of an image.
        total: the trace of the covariance, of which what is not kept is spread evenly.
    """
    kept = rank or len(spectrum)
    left = mean.numel() - kept
    rest = (total - float(spectrum[:kept].sum())) / left if left else 0.0
    return Mixture(
        torch.ones(1, dtype=torch.float64, device=mean.device),
        mean[None],
        spectrum[None, :kept],
        basis[None, :, :kept].contiguous(),
        shape,
        torch.tensor([max(rest, 0.0)], dtype=torch.float64, device=mean.device) if left else None,
    )


def _mean(source: Source) -> tuple[Tensor, float]:
    """Mean [d] and trace of the covariance. Sums are of x less the float32 mean, so that nothing large cancels."""
    about = source.mean.double().flatten()
    first, square = torch.zeros_like(about), 0.0
    for part in torch.arange(source.size).split(AT_ONCE):
        delta = source.images(part).double().flatten(1) - about
        first += delta.sum(0)
        square += float(delta.square().sum())
    off = first / source.size
    return about + off, square / source.size - float(off.square().sum())


def _times(source: Source, mean: Tensor, directions: Tensor | None = None) -> Tensor:
    """C Q for directions Q [d, q], or C itself, in one pass."""
    out = torch.zeros(1, dtype=torch.float64, device=mean.device)
    for part in torch.arange(source.size).split(AT_ONCE):
        delta = source.images(part).double().flatten(1) - mean
        out = out + delta.mT @ (delta if directions is None else delta @ directions)
    return out / source.size


def _iterated(source: Source, mean: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs by subspace iteration from a fixed random start; a few more than `rank`."""
    generator = torch.Generator().manual_seed(0)
    width = min(rank + _SPARE, mean.numel())
    basis = torch.randn(mean.numel(), width, dtype=torch.float64, generator=generator).to(mean.device)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(_times(source, mean, torch.linalg.qr(basis)[0]))[0]
    spectrum, inside = leading(basis.mT @ _times(source, mean, basis))
    return spectrum, basis @ inside


def largest_variance(mixture: Mixture) -> float:
    """The largest eigenvalue of the covariance of the whole mixture, between components included.

    Exact where no direction that is kept varies less than those that are not, as in every fit of this project.
    """
    w, spread = mixture.weights[:, None], mixture.spectrum
    rest = torch.zeros_like(mixture.weights) if mixture.rest is None else mixture.rest
    roots = (w * (spread - rest[:, None]).clamp_min(0.0)).sqrt()
    if mixture.basis is None:
        columns = torch.diag(roots.square().sum(0).sqrt())
    else:
        columns = (mixture.basis * roots[:, None]).permute(1, 0, 2).flatten(1)
    between = (w.sqrt() * (mixture.means - mixture.mean())).mT
    return float(torch.linalg.matrix_norm(torch.cat([columns, between], dim=1), 2) ** 2 + mixture.weights @ rest)


def gaussian_flow(gaussian: Mixture, process: Process, x: Tensor, t: float, s: float) -> Tensor:
    """x_t [B, ...] carried along the probability flow of one Gaussian to x_s, exactly, in x's dtype.

    Raises:
        ValueError: for a mixture of several.
    """
    if len(gaussian.weights) != 1:
        raise ValueError("only one Gaussian has a flow in closed form")
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (c(np.array([t, s])).tolist() for c in (process.alpha, process.sigma))

    def stretch(variance: Tensor) -> Tensor:
        return ((alpha_s**2 * variance + sigma_s**2) / (alpha_t**2 * variance + sigma_t**2)).sqrt()

    own = gaussian.to(x.device)
    delta = x.double().flatten(1) - alpha_t * own.means
    if own.basis is None:
        moved = stretch(own.spectrum) * delta
    else:
        outside = stretch(torch.zeros_like(own.weights) if own.rest is None else own.rest)
        moved = outside * delta + ((stretch(own.spectrum) - outside) * (delta @ own.basis[0])) @ own.basis[0].mT
    return (alpha_s * own.means + moved).reshape(x.shape).to(x.dtype)


def mixture_flow(mixture: Mixture, process: Process, x: Tensor, t: float, s: float, tolerance: float = 1e-10) -> Tensor:
    """x_t [B, ...] carried along the probability flow of a mixture to x_s > 0, by Dormand-Prince of order 8 in float64.

    Step sizes are chosen for the whole batch, so a result depends on its batch to within the tolerance (relative and
    absolute, of x/sigma).
    """
    if t == s:
        return x
    own = mixture.to(x.device)
    sigma_t, sigma_s = (float(process.sigma(time)) for time in (t, s))
    ends = torch.as_tensor(-0.5 * process.log_snr(np.array([t, s])), device=x.device)

    def velocity(log_ratio: Tensor, v: Tensor) -> Tensor:
        ratio = log_ratio.exp()  # sigma/alpha: the mixture under alpha = 1
        return -own.posterior(ratio * v, 1.0, ratio)[0] / ratio

    start = x.double() / sigma_t
    options = {"step_t": ends[1:]}  # the end is a step's own, not interpolated to a lower order
    v = odeint(velocity, start, ends, rtol=tolerance, atol=tolerance, method="dopri8", options=options)[-1]
    return (sigma_s * v).to(x.dtype)
