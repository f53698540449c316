"""Posterior samples of linear inverse problems: what does the likelihood gain from a measured Cov[x_0 | x_t]?

The world: the mixture of one Gaussian per class of scikit-learn's digits (+ 1e-3 I), 8x8, whose denoiser and whose
posterior given y = H x_0 + 0.05 n are exact. A seed draws x_0 and y; 25 evaluations at times even in t (`--path`) draw
samples, whose law is compared with exact posterior samples by the energy distance (unbiased, ± the standard error over
problems); next to it the share of pixels whose true value lies between the 5 % and 95 % quantiles of the samples. The
moments are measured on draws of the mixture.

    guess      C_t = sigma_t^2/(alpha_t^2 + sigma_t^2) I, PiGDM's
    scalar     C_t = Var_t I, measured
    spectral   C_t diagonal in the data's principal axes, measured

each in the likelihood and in the reverse steps (eta = 1). `kept` steps have the covariance of x_s given x_t, `given y`
that of x_s given x_t and y, `no derivative` has C_t in place of the network's derivative.

With --network it is the shipped model of a config and its test images: no exact posterior is known, so the error of the
samples' mean and the share within their intervals are told, of `given y` and `no derivative`.

    python -m benchmarks.inverse [--network [CONFIG]] [--basis=pca] [--only inpainting] [--problems=24]
                                 [--samples=100] [--steps=25] [--draws=800] [--times=40] [--path=even]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import adpm
from adpm.draws import Source
from adpm.ideal import IdealDenoiser, Mixture, classwise, full_mixture
from adpm.inverse import Conditioned, ConditionedGaussian
from adpm.measured import Plan
from adpm.model import Model
from adpm.noise import KeyedNoise
from adpm.observations import Mask, Observation, Operator, blur, reduction
from adpm.process import linear
from adpm.run.data import DATA_SETS
from adpm.run.figures import save_figure
from adpm.run.metrics import energy_distance
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian, Solver
from adpm.trajectory import Request, trajectory
from adpm.variance import PosteriorRule
from benchmarks.protocol import describe

STD, INTERVAL, REFERENCE = 0.05, 0.9, 1000
RULES = {"guess": "unit", "scalar": "analytic", "spectral": "spectral"}
PROBLEMS = ("inpainting", "blur", "super-resolution")
WAYS = ("kept", "given y", "no derivative")
SHOWN = [f"{rule}, {way}" for rule in RULES for way in WAYS[1:]]
PICTURED = 4


def operators(shape: tuple[int, ...]) -> dict[str, Operator]:
    """Four of ten pixels, a blur of one pixel, means of 2x2 pixels."""
    seen = (torch.rand(shape[1:], generator=torch.Generator().manual_seed(3)) < 0.4).expand(shape)
    return dict(zip(PROBLEMS, (Mask(seen), blur(shape[1:], 1.0), reduction(shape[1:], 2)), strict=True))


def posterior(mixture: Mixture, operator: Operator, y: Tensor, std: float) -> Mixture:
    """x_0 given y, [1, ...], exactly: every component given y, with weights w_k N(y; H m_k, H C_k H^T + std^2 I)."""
    assert mixture.basis is not None
    eye = torch.eye(mixture.dim, dtype=torch.float64).reshape(-1, *mixture.shape)
    h = operator.forward(eye).flatten(1).mT
    looked = h.abs().sum(1) > 0.0
    h, y = h[looked], y.flatten()[looked]
    c = torch.einsum("kij,kj,klj->kil", mixture.basis, mixture.spectrum, mixture.basis)
    of_y = h @ c @ h.mT + std**2 * torch.eye(len(h), dtype=torch.float64)
    off = y - mixture.means @ h.mT
    gain = torch.linalg.solve(of_y, h @ c).mT
    weighed = (off * torch.linalg.solve(of_y, off)).sum(1) + torch.logdet(of_y)
    weights = torch.softmax(mixture.weights.log() - 0.5 * weighed, 0)
    means = mixture.means + (gain @ off[:, :, None])[:, :, 0]
    return full_mixture(weights.numpy(), means.numpy(), (c - gain @ h @ c).numpy(), mixture.shape)


def observed(operator: Operator, truths: Tensor) -> Tensor:
    """y = H x_0 + 0.05 n; what a mask hides stays 0."""
    y = operator.forward(truths)
    y = y + STD * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(101))
    return operator.forward(y) if isinstance(operator, Mask) else y


def covered(drawn: Tensor, truths: Tensor) -> Tensor:
    """Share of the pixels of each truth [P, ...] that its samples' interval holds, of [P, n, ...], [P]."""
    ends = torch.tensor([0.5 - INTERVAL / 2, 0.5 + INTERVAL / 2], dtype=torch.float64)
    low, high = torch.quantile(drawn.double(), ends, dim=1)
    return ((low <= truths) & (truths <= high)).double().flatten(1).mean(1)


@dataclass(frozen=True)
class Figures:
    """Attributes: distances: energy distance of each problem, [P]; covered: share of the pixels of each, [P]."""

    distances: Tensor
    covered: Tensor

    @staticmethod
    def of(drawn: Tensor, truths: Tensor, exact: Tensor) -> Figures:
        """Of samples [P, n, ...] for truths [P, ...], next to exact posterior samples [P, m, ...]."""
        inside = covered(drawn, truths)
        pairs = zip(drawn, exact, strict=True)
        return Figures(torch.tensor([energy_distance(ours, real) for ours, real in pairs]), inside)

    def __str__(self) -> str:
        error = float(self.distances.std()) / math.sqrt(len(self.distances))
        return f"{float(self.distances.mean()):.4f} ± {error:.4f}, {float(self.covered.mean()):.0%}"


class World:
    """The mixture, its denoiser and the moments of that; problems by seeds.

    Args:
        draws, times: of the moments.
    """

    def __init__(self, draws: int, times: int) -> None:
        data = DATA_SETS["digits"].build()
        images = data.scaled(data.split("train")).double()
        self.mixture, self.process = classwise(images, data.labels["train"]), linear(1000)
        self.exact = IdealDenoiser(self.mixture, self.process)
        model = Model.of(self.exact, self.process, data_range=(data.low, data.high), device="cpu")
        pool = self.mixture.sample(4000, 7)
        moments = model.measure(Source.of(lambda index: pool[index], len(pool)), draws, times, basis="pca")
        self.rules = {name: model.rule(rule, moments) for name, rule in RULES.items()}

    def problems(self, operator: Operator, count: int) -> tuple[Tensor, Tensor, list[Mixture]]:
        """True x_0 and y, [P, ...] both, and the exact posteriors."""
        truths = self.mixture.sample(count, 100)
        y = observed(operator, truths)
        return truths, y, [posterior(self.mixture, operator, one[None], STD) for one in y]

    def ways(self, rule: PosteriorRule, observation: Observation) -> Iterator[tuple[str, Conditioned, Solver]]:
        """What draws samples."""
        said = [Conditioned(self.exact, self.process, observation, rule, jacobian=j) for j in (True, True, False)]
        given = ConditionedGaussian(self.process, rule, observation)
        yield from zip(WAYS, said, (ReverseGaussian(self.process, rule), given, given), strict=True)

    def figures(self, operator: Operator, count: int, samples: int, steps: int, path: str) -> dict[str, list[Figures]]:
        """By rule, for each of WAYS; "exact" for as many exact posterior samples."""
        truths, y, posteriors = self.problems(operator, count)
        real = torch.stack([one.sample(REFERENCE, 200 + k) for k, one in enumerate(posteriors)])
        observation = Observation(operator, y.repeat_interleave(samples, 0), STD)
        noise = keyed(KeyedNoise(0, "inverse"), torch.arange(count * samples), self.mixture.shape, torch.float64)
        times = self.process.times[trajectory(path, Request(self.process, steps))]
        out: dict[str, list[Figures]] = {}
        for name, rule in self.rules.items():
            for _, denoise, solver in self.ways(rule, observation):
                with torch.inference_mode():
                    *_, end = sample(denoise, solver, self.process, times, noise)
                drawn = end.x.reshape(count, samples, *self.mixture.shape)
                out.setdefault(name, []).append(Figures.of(drawn, truths, real))
        again = torch.stack([one.sample(samples, 300 + k) for k, one in enumerate(posteriors)])
        return {**out, "exact": [Figures.of(again, truths, real)]}


def of_network(args: argparse.Namespace) -> None:
    """A shipped model on test images."""
    model = adpm.load(args.network, workdir=args.workdir / Path(args.network).stem)
    moments = model.measure(draws=args.draws, times=args.times, basis=args.basis)
    truths = model.images["test"][: args.problems]
    plan = model.plan(moments, steps=args.steps, trajectory=args.path)
    print("\n| problem | " + " | ".join(SHOWN) + " |\n" + "|---" * (len(SHOWN) + 1) + "|")
    for name in args.only:
        operator, drawn = operators(tuple(truths.shape[1:]))[name], {}
        seen = observed(operator, truths)
        for told in SHOWN:
            rule, _, way = told.partition(", ")
            drawn[told] = completed(model, plan, Observation(operator, seen, STD), RULES[rule], way, args.samples)
        cells = [
            f"{float((one.mean(1) - truths).square().mean().sqrt()):.3f}, {float(covered(one, truths).mean()):.0%}"
            for one in drawn.values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        if args.figure and name == args.only[0]:
            columns = {
                "truth": truths,
                "seen": operator.adjoint(seen.double()),
                **{k: v[:, 0] for k, v in drawn.items()},
            }
            save_figure(args.figure, picture(columns))


def completed(model: adpm.Model, plan: Plan, seen: Observation, name: str, way: str, samples: int) -> Tensor:
    """Samples [P, samples, ...] of each of P observations."""
    rule, count = model.rule(name, plan.moments), len(seen.values) * samples
    observation = replace(seen, values=seen.values.repeat_interleave(samples, 0))
    shape = tuple(model.images["test"].shape[1:])
    noise = keyed(KeyedNoise(0, "inverse"), torch.arange(count), shape)
    denoise = Conditioned(model.denoise, model.process, observation, rule, jacobian=way != WAYS[2])
    with torch.inference_mode():
        solver = ConditionedGaussian(model.process, rule, observation)
        *_, end = sample(denoise, solver, model.process, plan.times, noise)
    return end.x.reshape(-1, samples, *shape)


def picture(columns: Mapping[str, Tensor]) -> Figure:
    """The first images of each column, [n, C, H, W] in [-1, 1], under its name."""
    made = Figure(figsize=(1.25 * len(columns), 5.4), layout="constrained")
    panels = made.subplots(PICTURED, len(columns))
    for place, (name, images) in enumerate(columns.items()):
        for axes, image in zip(panels[:, place], images, strict=False):
            axes.imshow((0.5 + 0.5 * image).clamp(0.0, 1.0).permute(1, 2, 0).cpu(), cmap="gray")
            axes.set_axis_off()
        panels[0, place].set_title(name.replace(", ", ",\n"), fontsize=8)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="inverse problems with guessed and measured covariances")
    parser.add_argument(
        "--network", nargs="?", const="configs/digits.py", help="config of a model, digits' unless said"
    )
    parser.add_argument("--basis", default="pca", help="of the network's spectral covariance")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="problems")
    for name, default in {"problems": 24, "samples": 100, "steps": 25, "draws": 800, "times": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--path", default="even")
    parser.add_argument("--workdir", type=Path, default=Path("runs/inverse"))
    parser.add_argument("--figure", type=Path, help="with --network: draw a sample of some images into this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    describe("Posterior samples of linear inverse problems in an exact world")
    told = ", ".join(f"{name} {value}" for name, value in vars(args).items())
    print(f"{told}, noise {STD}; energy distance, share of pixels within the {INTERVAL:.0%} intervals")
    if args.network:
        of_network(args)
        return
    world = World(args.draws, args.times)
    for name in args.only:
        operator = operators(world.mixture.shape)[name]
        found = world.figures(operator, args.problems, args.samples, args.steps, args.path)
        print(f"\n| {name} | " + " | ".join(WAYS) + " |\n" + "|---" * (len(WAYS) + 1) + "|")
        for rule in RULES:
            print(f"| {rule} | " + " | ".join(map(str, found[rule])) + " |")
        print(f"\nexact posterior samples: {found['exact'][0]}", flush=True)


if __name__ == "__main__":
    main()
