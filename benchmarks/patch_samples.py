"""What a covariance that knows the state is worth for samples, and what stands between a head and that.

A world of benchmarks/patch_world.py, where the posterior of x_0 is known at every state. Reverse Gaussian steps with
each kind of covariance of benchmarks/patch_states.py, exact, and solvers without noise, all with the same mean and
noise; each sampler on the best of the same time grids and of its eta or order, chosen by --screen samples of one seed,
shown over --seeds others: the energy distance to four times as many draws of the mixture itself, which every seed draws
anew. Differences are paired, seed by seed.

Trunks: the exact mean, and the mean of a cruder mixture fitted to the same patches. Where that is x0_hat, a state's
best covariance is R(x_t) = Cov[x_0 | x_t] + b b^T with b = E[x_0 | x_t] - x0_hat (docs/spectral.md), exact still.

What is left with the exact mean and the whole R(x_t) is what is not Gaussian in the posterior, and the steps; what a
basis leaves out is its diagonal's distance from that; what a trained head loses is its distance from `DCT per state`.

    python -m benchmarks.patch_samples [--steps 5 10] [--trunks 40 8 1] [--workdir=runs/patch_states]

The head is that of benchmarks/patch_states.py, trained if it is not in `workdir`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adpm.denoiser import Denoise, Prediction
from adpm.gaussian import Covariance, Diagonal, InBasis
from adpm.ideal import IdealDenoiser, Mixture
from adpm.kernel import Kernel
from adpm.noise import KeyedNoise
from adpm.process import Array, DiscreteProcess
from adpm.published_multistep import dpmpp, unipc
from adpm.run.metrics import energy_distance
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian, Solver
from adpm.trajectory import Request, trajectory
from adpm.transforms import Cosine
from adpm.variance import PosteriorRule, Rule, Small
from benchmarks.patch_states import (
    HEAD,
    Curve,
    Moments,
    arguments,
    covariances,
    curves_of,
    head_curve,
    matrices,
    mixture_of,
    planned,
    trained_head,
)
from benchmarks.patch_world import even_process
from benchmarks.protocol import describe
from covariance.rules import SpectralHead

GRIDS: dict[str, dict[str, Any]] = {
    "log_snr": {},
    "log_snr to 4": {"log_snr_max": 4.0},
    "karras": {},
    "karras to 4": {"log_snr_max": 4.0},
}
SCREEN_SEED, ETAS = 1000, (0.0, 0.3, 1.0)
PEER = "UniPC"


@dataclass(frozen=True)
class Whole(Covariance):
    """A matrix for every state, by its eigenvectors [B, d, d], in columns, and eigenvalues."""

    vectors: Tensor = torch.empty(0)

    def forth(self, x: Tensor) -> Tensor:
        return torch.einsum("bji,bj->bi", self.vectors, x.flatten(1)).reshape(x.shape)

    def back(self, coordinates: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.vectors, coordinates.flatten(1)).reshape(coordinates.shape)


def whole(r: Tensor, shape: torch.Size) -> Covariance:
    """All of r; eigenvalues below 0 are rounding."""
    values, vectors = torch.linalg.eigh(r)
    return Whole(values.clamp_min(0.0).reshape(shape), vectors=vectors)


def in_cosines(r: Tensor, shape: torch.Size) -> Covariance:
    """The diagonal of Q r Q^T, Q the cosine transform."""
    basis = Cosine()
    rows = basis.forward(r.reshape(-1, *shape[1:])).reshape(r.shape).mT  # Q r, for each row of r; then both sides
    both = basis.forward(rows.reshape(-1, *shape[1:])).reshape(r.shape)
    return InBasis(both.diagonal(dim1=1, dim2=2).reshape(shape), basis=basis)


KINDS: dict[str, Callable[[Tensor, torch.Size], Covariance]] = {
    "scalar": lambda r, _: Diagonal(r.diagonal(dim1=1, dim2=2).mean(1)[:, None, None, None]),
    "pixel": lambda r, shape: Diagonal(r.diagonal(dim1=1, dim2=2).reshape(shape)),
    "DCT": in_cosines,
    "full": whole,
}
"""Name -> what a kind sees of R(x_t) [n, d, d] at states of a shape."""


@dataclass(frozen=True)
class Exactly(PosteriorRule):
    """A kind of the exact covariance of each state, or of its mean over states.

    Attributes:
        kind: of KINDS.
        moments: at a state.
        mean: [T, d, d], that at each reference time to be used instead.
    """

    kind: str
    moments: Moments
    mean: Tensor | None = None

    @property
    def state_dependent(self) -> bool:
        return True

    def posterior(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        assert prediction is not None
        alpha, sigma = float(kernel.alpha_t), float(kernel.sigma_t)
        x = alpha * prediction.x0 + sigma * prediction.eps
        r = self.moments(x, alpha, sigma) if self.mean is None else self.mean[int(kernel.t) - 1].expand(len(x), -1, -1)
        return KINDS[self.kind](r, x.shape)


def moments_about(truth: Mixture, crude: Mixture) -> Moments:
    """R(x_t) of the mean of `crude` where data come from `truth`."""

    def moments(x: Tensor, alpha: float, sigma: float) -> Tensor:
        c = covariances(truth, x, alpha, sigma)
        if truth is crude:
            return c
        mean, wrong = (mixture.posterior(x, alpha, sigma)[0].flatten(1) for mixture in (truth, crude))
        b = mean - wrong
        return c + b[:, :, None] * b[:, None]

    return moments


@dataclass(frozen=True)
class Sampler:
    """What is drawn: a solver for each of some settings and paths, and the denoiser that it asks."""

    build: Mapping[str, Callable[[Array], Solver]]
    curve: str  # whose least-cost path is among the grids
    denoise: Denoise


@dataclass(frozen=True)
class Setting:
    """A sampler's path, by its name, and options, in words."""

    trajectory: str
    path: Array
    options: str


def noisy(process: DiscreteProcess, rule: Rule, curve: str, denoise: Denoise) -> Sampler:
    """Reverse Gaussian steps with a rule, which are the same on every path."""

    def build(eta: float) -> Callable[[Array], Solver]:
        return lambda _: ReverseGaussian(process, rule, eta)

    return Sampler({f", eta {eta:g}": build(eta) for eta in ETAS}, curve, denoise)


def samplers(truth: Mixture, crude: Mixture, process: DiscreteProcess, means: Tensor) -> dict[str, Sampler]:
    """By name; `means` [T, d, d] of R over states."""
    moments, denoise = moments_about(truth, crude), IdealDenoiser(crude, process)
    rules = {
        f"{kind}{' per state' if own else ''}": Exactly(kind, moments, None if own else means)
        for own in (False, True)
        for kind in KINDS
        if own or kind != "full"
    }
    free = {
        PEER: {f", order {k}": lambda path, k=k: unipc(process, path, order=k) for k in (2, 3)},
        "DPM-Solver++": {f", order {k}": lambda path, k=k: dpmpp(process, path, order=k) for k in (2, 3)},
        "DDIM": {"": lambda _: ReverseGaussian(process, Small(), 0.0)},
    }
    ours = {name: noisy(process, rule, name, denoise) for name, rule in rules.items()}
    return {name: Sampler(build, "scalar", denoise) for name, build in free.items()} | ours


def real(truth: Mixture, n: int, seed: int) -> Tensor:
    """Draws of the mixture; none of them is one of the head's training, whose seeds count up from 1."""
    return truth.sample(n, 1_000_000 + seed)


@torch.no_grad()
def distance(truth: Mixture, process: DiscreteProcess, sampler: Sampler, how: Setting, n: int, seed: int) -> float:
    """Of n samples to 4 n draws of the mixture."""
    times = process.times[how.path]
    noise = keyed(KeyedNoise(seed, "sample"), torch.arange(n), truth.shape, torch.float64)
    *_, last = sample(sampler.denoise, sampler.build[how.options](times), process, times, noise)
    return energy_distance(last.x, real(truth, 4 * n, seed))


def paths(process: DiscreteProcess, curve: Curve, steps: int) -> dict[str, Array]:
    """Name -> path of K steps."""
    request = Request(process, steps)
    fixed = {name: trajectory(name.split(" ")[0], request, **given) for name, given in GRIDS.items()}
    return fixed | {"least_cost": planned(process, curve, steps).plan(steps).path}


def rows(
    args: argparse.Namespace,
    truth: Mixture,
    process: DiscreteProcess,
    own: Mapping[str, Sampler],
    curves: Mapping[str, Curve],
) -> None:
    """Print each sampler's distance at each K, at the best of its settings."""
    grids = {k: {name: paths(process, curves[name], k) for name in curves} for k in args.steps}
    found: dict[str, Array] = {}
    for name, sampler in own.items():
        cells, values = [], []
        for k in args.steps:
            tried = [Setting(on, path, o) for on, path in grids[k][sampler.curve].items() for o in sampler.build]
            screened = [distance(truth, process, sampler, how, args.screen, SCREEN_SEED) for how in tried]
            best = tried[int(np.argmin(screened))]
            values.append([distance(truth, process, sampler, best, args.samples, seed) for seed in range(args.seeds)])
            cells.append(f"{told(values[-1])} ({best.trajectory}{best.options})")
        found[name] = np.array(values)
        less = [told(row) for row in found[name] - found[PEER]]  # which comes first
        print(f"| {name} | {' | '.join(' | '.join(p) for p in zip(cells, less, strict=True))} |", flush=True)


def remembered(each_time: Iterable[Tensor], means: list[Tensor]) -> Iterator[Tensor]:
    """The same matrices; their means over states are added to `means`."""
    for c in each_time:
        means.append(c.mean(0))
        yield c


def shares(process: DiscreteProcess, values: Array) -> str:
    """Three of the values at the reference times, in words."""
    at = process.nearest_index([-4.0, 0.0, 4.0])
    where = process.log_snr(process.times[at])
    return ", ".join(f"{values[k - 1]:.0%} at log-SNR {x:.1f}" for k, x in zip(at, where, strict=True))


def told(values: ArrayLike) -> str:
    """Mean and its error."""
    error = np.std(values, ddof=1) / np.sqrt(np.size(values)) if np.size(values) > 1 else np.nan
    return f"{np.mean(values):.4f} ± {error:.4f}"


def main() -> None:
    parser = arguments("samples with covariances that know the state, in a world of natural patches")
    parser.add_argument("--trunks", type=int, nargs="+", default=[40, 8, 1], help="components of their mixtures")
    parser.add_argument("--screen", type=int, default=600)
    parser.add_argument("--samples", type=int, default=1200)
    parser.set_defaults(steps=[5, 10], seeds=5, states=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    process, truth = even_process(args.times), mixture_of(args.patches, args.components, 0)
    describe("Samples with covariances that know the state, in a world of natural patches")
    print(f"Energy distance of {args.samples} samples to four times as many draws x {args.seeds} seeds, ± of the mean.")
    pairs = ((real(truth, args.samples, seed), real(truth, args.samples, seed + 500)) for seed in range(args.seeds))
    print(f"Draws against draws: {told([energy_distance(*pair) for pair in pairs])}.")
    known = curves_of(matrices(truth, process, args.states, 0))
    for components in args.trunks:
        exact = components == args.components
        crude, means = truth if exact else mixture_of(args.patches, components, 0), list[Tensor]()
        each = matrices(truth, process, args.states, 0, moments_about(truth, crude))
        curves = curves_of(remembered(each, means))
        own = samplers(truth, crude, process, torch.stack(means))
        if exact:
            world, head, _ = trained_head(args, truth)
            curves[HEAD] = head_curve(world, head, curves["DCT per state"][0], 0)
            rule = SpectralHead(world.known_scale, process)
            own[HEAD] = noisy(
                process, rule, HEAD, lambda x, t, world=world, head=head: world.predict(head, x, np.asarray(t))
            )
        off = 1.0 - known["scalar"][0] / curves["scalar"][0]
        print(f"\nOf the squared error of x0_hat, {shares(process, off.ravel())} are its own.\n")
        heads = " | ".join(f"K = {k} | less {PEER}'s" for k in args.steps)
        print(f"| trunk: {components} components | {heads} |\n" + "|---" * (2 * len(args.steps) + 1) + "|")
        rows(args, truth, process, own, curves)


if __name__ == "__main__":
    main()
