"""Where the time of a sampling step goes, by torch's profiler: by part of a step, and by torch's operations.

    python -m benchmarks.step_profile --figure=docs/profile.png [--batch=256] [--steps=10] [--device=cpu]

On the shipped digits model with the analytic rule. Parts are timed by themselves, without what they call: the network;
the prediction around it (label, x0, limits, whether all is finite); the keyed noise; kernel, rule and draw; the loop.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from adpm.denoiser import Denoise, Prediction
from adpm.noise import KeyedNoise, Noise
from adpm.run.figures import save_figure
from adpm.run.work import resolve_device, runnable
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian, Step
from benchmarks.models import shipped
from benchmarks.overhead import rules_of
from benchmarks.protocol import describe

PARTS = ("network", "prediction", "noise", "kernel, rule, draw", "loop")
SHOWN = 8
PREFIX = "adpm: "


def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` as a part of the profile."""

    def inside(*args: Any, **options: Any) -> Any:
        with record_function(PREFIX + name):
            return call(*args, **options)

    return inside


class Marked(ReverseGaussian):
    """The solver as a part of the profile."""

    def step(self, denoise: Denoise, x: Tensor, t: float, s: float, noise: Noise, carry: Any = None) -> Step:
        def predicting(x: Tensor, t: float) -> Prediction:
            with record_function(PREFIX + "prediction"):
                return denoise(x, t)

        with record_function(PREFIX + "step"):
            return super().step(predicting, x, t, s, noise, carry)


def profiled(batch: int, steps: int, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds a step of each part, and of torch's operations, the longest first."""
    model = shipped("digits")
    network = marked("network", runnable(model.network, "float32", False, device))
    solver = Marked(model.process, rules_of(shipped("digits"))["scalar"])
    numbers = torch.arange(batch, device=device)
    noise = marked("noise", keyed(KeyedNoise(0, "benchmark"), numbers, model.shape))
    cuda = device.type == "cuda"

    def run() -> None:
        with record_function(PREFIX + "run"):
            for _ in sample(model.denoiser(network), solver, model.process, model.times(steps), noise):
                pass
            if cuda:
                torch.cuda.synchronize(device)

    run()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        run()
    events = found.key_averages()
    total = {e.key.removeprefix(PREFIX): e.cpu_time_total / 1e3 / steps for e in events if e.key.startswith(PREFIX)}
    parts = dict(zip(PARTS, alone(total), strict=True))
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    operations = {e.key: getattr(e, spent) / 1e3 / steps for e in events if not e.key.startswith(PREFIX)}
    return parts, dict(sorted(operations.items(), key=lambda item: -item[1])[:SHOWN])


def alone(total: dict[str, float]) -> tuple[float, ...]:
    """Of each of PARTS what is its own, from times that include what they call; the start's noise is no step's."""
    network, prediction, noise, step, run = (total[k] for k in ("network", "prediction", "noise", "step", "run"))
    around = max(step - prediction - noise, 0.0)
    return network, prediction - network, noise, around, max(run - prediction - noise - around, 0.0)


def figure(parts: dict[str, float], operations: dict[str, float], title: str) -> Figure:
    """Both as bars, on logarithmic axes: beside the network little can be seen on others."""
    picture = Figure(figsize=(9.0, 3.2), layout="constrained")
    whole = sum(parts.values())
    for axes, values, name in zip(picture.subplots(1, 2), (parts, operations), ("parts", "operations"), strict=True):
        names = [key.removeprefix("aten::") for key in values]
        bars = axes.barh(names, list(values.values()), color="tab:blue")
        axes.bar_label(bars, [f"{v / whole:.2%}" for v in values.values()], padding=3, fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.invert_yaxis()
        axes.set_xlabel("ms a step")
        axes.set_title(name, fontsize=10)
    picture.suptitle(title, fontsize=10)
    return picture


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = resolve_device(options.device)
    describe(f"profile of a step: batch {options.batch}, K = {options.steps}, {device}")
    parts, operations = profiled(options.batch, options.steps, device)
    for name, milliseconds in (*parts.items(), *operations.items()):
        print(f"{name:<28} {milliseconds:9.3f} ms a step   {milliseconds / sum(parts.values()):7.2%}")
    title = f"digits, batch {options.batch}, float32, {device.type}: {sum(parts.values()):.1f} ms a step"
    save_figure(options.figure, figure(parts, operations, title))


if __name__ == "__main__":
    main()
