"""Do heads learn the exact posterior variance? Heads trained by sn, npr and relative in a world where it is known.

World: the class-wise Gaussian mixture of scikit-learn's digits (class means, class covariances + 1e-3 I, d = 64) with
its exact mean, not clipped; linear schedule, N = 1000. A head is a small network (x_t, log-SNR) -> h of its own,
trained by an objective of covariance/objective.py on fresh draws; `relative` takes Var_t from moments measured here.

Each head's rule, limited to [0, 1] as in use, gives W(x_t), to be compared with the exact diagonal V(x_t) of
Cov[x_0 | x_t] and with the best scalar Vbar_t = E tr V / d, for the steps t -> s of a path even in log-SNR (eta = 1):

    R^2      1 - E (W - V)^2 / E (V - Vbar_t)^2
    KL gap   E 1/2 [ v/w - 1 - log(v/w) ],   w = lambda2 + gain^2 W,   v = lambda2 + gain^2 V

The gap is what the step's expected bound term loses to the exact diagonal, in nats per dimension. `per pixel` is the
best covariance that knows the pixel but not the state, E V: what a head has beyond it depends on the state.

    python -m benchmarks.heads_exact [--minutes=5] [--iterations=0] [--workdir=runs/heads_exact] [--figure=heads.png]

Trained heads are kept in `workdir` and not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from adpm.kernel import Kernel, reverse_kernel
from adpm.noise import KeyedNoise
from adpm.process import Array, linear
from adpm.run.figures import save_figure
from adpm.trajectory import Request, trajectory
from adpm.variance import Rule, RuleNeeds
from benchmarks.estimators import digits_world
from benchmarks.head_training import Head, Training, World, trained, world_of
from benchmarks.protocol import describe
from covariance.rules import RULES

HEADS = ("sn", "npr", "relative")
BASELINES = ("scalar", "per pixel")
STEPS, PER_BIN = 25, 2  # the path, and its steps in a bin; the step that lands at the data is left out
IMAGES, TIMES, DRAWS = 1500, 100, 300  # of the moments, as config.moments has them
LIMIT = 0.01  # nats per dimension


@dataclass(frozen=True)
class Score:
    """One model of the posterior variance at one step: R^2, the gap of each draw [n], the share bounds changed."""

    r2: float
    gap: Array
    clipped: float = 0.0


def kl_gap(kernel: Kernel, w: Tensor, v: Tensor) -> Tensor:
    """1/2 [ v/w - 1 - log(v/w) ] of the step's variances per draw, nats per dimension, from posterior variances."""
    lambda2, gain2 = float(kernel.lambda2), float(kernel.gain) ** 2
    excess = gain2 * (v - w) / (lambda2 + gain2 * w)
    return 0.5 * (excess - torch.log1p(excess)).flatten(1).mean(1)


def rule(world: World, name: str) -> Rule:
    """The rule that reads a head trained by `name`, limited as in use: data in [-1, 1] have variances in [0, 1]."""
    needs = RuleNeeds(
        variance=lambda estimator: world.average,
        data_variance=world.mixture.variance,
        state_bound=1.0,
        first_variance=lambda: 0.0,  # for the learned interpolation, which is not here, as no other axes are
        spectrum=lambda: None,
        scale=lambda: None,
        process=world.process,
    )
    return RULES[name].build(needs)


def scores(world: World, heads: Mapping[str, Head], t: float, s: float, x: Tensor) -> dict[str, Score]:
    """Baselines and heads at states x = x_t for the step to s; the best scalar and pixels are means over x."""
    kernel = reverse_kernel(world.process, t, s)
    v = torch.cat([world.exact.variance(part, t) for part in x.split(250)])
    spread = (v - v.mean()).square().mean()

    def score(w: Tensor, clipped: float = 0.0) -> Score:
        return Score(1.0 - float((w - v).square().mean() / spread), kl_gap(kernel, w, v).numpy(), clipped)

    found = {"scalar": score(v.mean().expand_as(v)), "per pixel": score(v.mean(0, keepdim=True).expand_as(v))}
    for name, head in heads.items():
        with torch.no_grad():
            says = rule(world, name).parameter(kernel, world.predict(head, x, np.asarray(t)))
        found[name] = score(torch.as_tensor(says.values), float(says.clipped))
    return found


Row = tuple[float, dict[str, Score]]


def evaluate(world: World, heads: Mapping[str, Head], path: Array, draws: int, seed: int) -> list[Row]:
    """(log-SNR at t, scores) for each step of the path that does not land at the data, fresh draws at each."""
    process, rows = world.process, []
    for k in range(2, len(path)):
        x0 = world.mixture.sample(draws, ((seed + 1) << 32) - k)  # never one of training's
        eps = KeyedNoise(seed, "evaluate")(torch.arange(draws), k, world.mixture.shape)
        x = float(process.alpha(path[k])) * x0 + float(process.sigma(path[k])) * eps
        rows.append((float(process.log_snr(path[k])), scores(world, heads, float(path[k]), float(path[k - 1]), x)))
    return rows


def binned(rows: list[Row], value: Callable[[Score], float]) -> list[tuple[str, dict[str, float]]]:
    """Bins of neighbouring steps: label, and the mean of the value over their steps."""
    out = []
    for start in range(0, len(rows), PER_BIN):
        part = rows[start : start + PER_BIN]
        label = f"{part[0][0]:.1f} to {part[-1][0]:.1f}"
        out.append((label, {n: float(np.mean([value(row[n]) for _, row in part])) for n in part[0][1]}))
    return out


def markdown(bins: list[tuple[str, dict[str, float]]], form: str, without: tuple[str, ...] = ()) -> str:
    names = [name for name in bins[0][1] if name not in without]
    lines = [["log-SNR", *names], ["---"] * (len(names) + 1)]
    lines += [[label, *(form.format(row[name]) for name in names)] for label, row in bins]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(rows: list[Row], name: str) -> str:
    """Whether the head beats the best scalar in every bin and stays within LIMIT of the exact diagonal, by the mean."""
    gaps = binned(rows, lambda score: float(score.gap.mean()))
    lost = [label for label, row in gaps if row[name] >= row["scalar"]]
    worst, at = max((row[name], label) for label, row in gaps)
    beats = f"LOSES to the best scalar at log-SNR {', '.join(lost)}" if lost else "beats the best scalar in every bin"
    within = "within" if worst <= LIMIT else "NOT within"
    gained = [row["scalar"].gap - row[name].gap for _, row in rows]
    margin = min(float(g.mean() / g.std(ddof=1)) * len(g) ** 0.5 for g in gained)
    return (
        f"* {name} {beats} (smallest advantage at a step: {margin:.0f} standard errors); {within} {LIMIT} nats/dim of "
        f"the exact diagonal (worst {worst:.2g}, log-SNR {at})"
    )


def draw(rows: list[Row], path: Path) -> None:
    """Left: R^2. Right: the gap of a step. One point for each step."""
    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    log_snr = [at for at, _ in rows]
    style = {"scalar": "k--", "per pixel": "k:", "sn": "C3.-", "npr": "C1.-", "relative": "C0.-"}
    for name in rows[0][1]:
        left.plot(log_snr, [row[name].r2 for _, row in rows], style[name], label=name)
        right.plot(log_snr, [row[name].gap.mean() for _, row in rows], style[name], label=name)
    left.set(xlabel="log-SNR", ylabel="R² against the best scalar", ylim=(-1.05, 1.05), title="posterior variance")
    right.axhline(LIMIT, color="gray", linewidth=0.8)
    right.set(
        xlabel="log-SNR", ylabel="nats per dimension", yscale="log", title="KL gap of a step to the exact diagonal"
    )
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    save_figure(path, picture)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="heads in a world whose posterior variance is known")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one core's time, to train each head")
    parser.add_argument("--iterations", type=int, default=0, help="stop after so many; 0 = when the minutes are over")
    parser.add_argument("--objectives", default=",".join(HEADS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--times", default="log_snr", help="uniform | log_snr")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=2, help="before the last one")
    parser.add_argument("--draws", type=int, default=4000, help="states per step of the evaluation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("runs/heads_exact"))
    parser.add_argument("--figure", type=Path, help="draw it into this PNG")
    return parser.parse_args()


def options_of(args: argparse.Namespace) -> Training:
    return Training(
        minutes=args.minutes,
        iterations=args.iterations,
        batch_size=args.batch,
        learning_rate=args.rate,
        times=args.times,
        ema_decay=args.ema,
        width=args.width,
        blocks=args.blocks,
        seed=args.seed,
    )


def report(rows: list[Row], names: list[str]) -> None:
    print("\n### R^2 against the best scalar\n\n" + markdown(binned(rows, lambda score: score.r2), "{:.3f}"))
    gaps = binned(rows, lambda score: float(score.gap.mean()))
    print("\n### KL gap to the exact diagonal, nats per dimension and step\n\n" + markdown(gaps, "{:.2g}"))
    shares = binned(rows, lambda score: score.clipped)
    print("\n### Share of values that the bounds [0, 1] changed\n\n" + markdown(shares, "{:.2%}", BASELINES) + "\n")
    print("The exact diagonal beats the best scalar in every bin.")
    for name in names:
        print(verdict(rows, name))


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    world = world_of(digits_world(), linear(1000), IMAGES, TIMES, DRAWS, args.seed)
    path = world.process.times[trajectory("log_snr", Request(world.process, STEPS))]
    describe("Heads against the exact posterior variance")
    print("World: class-wise Gaussian mixture of digits (covariances + 1e-3 I, d = 64), exact mean, linear N = 1000.")
    print(f"Var_t of relative: residual, {TIMES} times, {DRAWS} draws each, {IMAGES} images; seed {args.seed}.")
    print(f"Steps: the last {STEPS - 1} of the {STEPS} even in log-SNR, eta = 1; {PER_BIN} a bin, averaged; ", end="")
    print(f"{args.draws} fresh states a step. Times t: {' '.join(f'{t:g}' for t in path[1:])}\n")
    heads = {}
    for name in args.objectives.split(","):
        heads[name], header = trained(world, name, options_of(args), args.workdir)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in header.items()), flush=True)
    rows = evaluate(world, heads, path, args.draws, args.seed)
    report(rows, list(heads))
    if args.figure:
        draw(rows, args.figure)
        print(f"\nfigure: {args.figure}")


if __name__ == "__main__":
    main()
