"""What a sampling step costs beyond its network call, and what a covariance in a basis adds to that.

    python -m benchmarks.overhead [--batch=256] [--steps=10] [--repeats=15]

First, on the shipped digits model, interleaved repeats of (a) K bare calls of the network and (b) a whole sampling run
of K steps with the analytic rule, kernel, keyed noise and all; the ratio of each pair, and their median. As a network
call varies by more than that, also (c) the run with a network that returns at once, in CPU time: what (b) has besides.

Then, there and on a random U-Net for images 3x32x32, interleaved steps of the rule `spectral` and of the scalar, in CPU
time, which other jobs hardly stretch; and, as a network call varies by more than a rule costs, rule and draw alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import adpm
from adpm.basis import Basis, Matrix
from adpm.denoiser import Denoise
from adpm.kernel import reverse_kernel
from adpm.noise import KeyedNoise
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.trajectory import Request, trajectory
from adpm.transforms import Cosine
from adpm.variance import Rule
from benchmarks.models import Model, random_cifar10, shipped
from benchmarks.protocol import describe, interleaved

T, S = 500.0, 400.0
GOAL, LOOP_GOAL = 0.02, 0.05
ALONE = 20  # draws timed together
UNET = {"model_channels": 64}  # 13 million parameters


def run_over_calls(model: Model, rule: Rule, batch: int, steps: int, repeats: int) -> None:
    """Print what a whole run takes over its bare network calls."""
    denoise, process = model.denoiser(model.network), model.process
    times = process.times[trajectory("even", Request(process, steps))]
    noise = keyed(KeyedNoise(0, "benchmark"), torch.arange(batch), model.shape)
    x, label = noise(0), torch.full((batch,), T)

    def bare() -> None:
        for _ in range(steps):
            model.network(x, label)

    def loop(denoise: Denoise = denoise) -> None:
        for _ in sample(denoise, ReverseGaussian(process, rule), process, times, noise):
            pass

    said = model.network(x, label)
    free = model.denoiser(lambda x, label: said)
    _, alone = interleaved(lambda: loop(free), lambda: None, 3 * repeats, time.process_time)
    _, calls = interleaved(bare, lambda: None, repeats, time.process_time)
    share = min(alone) / min(calls)

    ratios, seconds = interleaved(bare, loop, repeats)
    print(f"one bare call: {1e3 * statistics.median(seconds) / steps:.1f} ms (median)")
    print(f"loop / bare:   {statistics.median(ratios):.4f} median, {min(ratios):.4f} to {max(ratios):.4f}")
    print(
        f"loop alone:    {1e3 * min(alone) / steps:.2f} ms of CPU time a step, {share:.2%} of a call's "
        f"{1e3 * min(calls) / steps:.1f} ms (goal: at most {LOOP_GOAL:.0%})\n"
    )


def rules_of(model: Model) -> dict[str, Rule]:
    """The scalar's rule, and those of two bases, from few draws of random images: the cost is that of any numbers."""
    front = adpm.Model(lambda x, t: torch.zeros_like(x), model.process, data_range=model.range)
    draw = torch.Generator().manual_seed(0)
    images, d = torch.rand(32, *model.shape, generator=draw), int(np.prod(model.shape))
    bases: dict[str, Basis] = {
        "PCA": Matrix(torch.linalg.qr(torch.randn(d, d, generator=draw)).Q.contiguous()),  # as dense as any
        "DCT": Cosine(),
    }
    moments = {name: front.measure(images, draws=16, times=10, basis=basis) for name, basis in bases.items()}
    spectral = {name: front.rule("spectral", of_basis) for name, of_basis in moments.items()}
    return {"scalar": front.rule("analytic", moments["PCA"]), **spectral}


def over_the_scalar(model: Model, rules: dict[str, Rule], batch: int, steps: int, repeats: int) -> None:
    """Print a table: steps over those of the scalar, and what rule and draw alone take more, of a whole step."""
    denoise, process = model.denoiser(model.network), model.process
    keyed_noise = keyed(KeyedNoise(0, "benchmark"), torch.arange(batch), model.shape)
    x = keyed_noise(0)
    kernel, prediction, eps = reverse_kernel(process, T, S), denoise(x, T), keyed_noise(1)

    def timed(rule: Rule) -> tuple[Callable[[], object], Callable[[], object]]:
        solver = ReverseGaussian(process, rule)

        def whole() -> None:
            for _ in range(steps):
                solver.step(denoise, x, T, S, lambda draw=0: keyed_noise(1))

        def alone() -> None:
            for _ in range(ALONE):
                rule(kernel, prediction).draw(x, eps)

        return whole, alone

    scalar, scalar_alone = timed(rules["scalar"])
    parameters = sum(p.numel() for p in model.network.parameters())
    print(f"{model.name}, {parameters / 1e6:.1f} million parameters, {model.shape}, batch {batch}\n")
    print("| basis | step / scalar's: median | quartiles | scalar's step, ms | rule and draw: more, ms | of a step |")
    print("|---|---|---|---|---|---|")
    for name in [name for name in rules if name != "scalar"]:
        whole, alone = timed(rules[name])
        ratios, seconds = interleaved(scalar, whole, repeats, time.process_time)
        more, bare = interleaved(scalar_alone, alone, 3 * repeats, time.process_time)
        extra = statistics.median((r - 1.0) * b for r, b in zip(more, bare, strict=True)) / ALONE
        step = statistics.median(seconds) / steps
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        told = f"{middle:.4f} | {low:.4f} to {high:.4f} | {1e3 * step:.1f} | {1e3 * extra:.3f} | {extra / step:.2%}"
        print(f"| {name} | {told} |", flush=True)
    print()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, default=256, help="digits")
    parser.add_argument("--unet-batch", type=int, default=16, help="images of the U-Net")
    parser.add_argument("--tiny", action="store_true", help="a small network on 3x8x8 in the U-Net's place")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    describe(f"sampling overhead: K = {options.steps}, {options.repeats} interleaved pairs")
    digits, amount = shipped("digits"), (options.steps, options.repeats)
    rules = rules_of(digits)
    run_over_calls(digits, rules["scalar"], options.batch, *amount)
    print(f"steps {T:g} -> {S:g} of `spectral` over those of the scalar, CPU time (goal: at most {GOAL:.0%} more):\n")
    over_the_scalar(digits, rules, options.batch, *amount)
    unet = random_cifar10(options.tiny, **UNET)
    over_the_scalar(unet, rules_of(unet), options.unet_batch, 1, options.repeats)


if __name__ == "__main__":
    main()
