"""Device, precision, compilation, memory layout and CUDA graphs against float32 on the CPU, and what they are worth.

    python -m benchmarks.gpu --output=runs/gpu.jsonl        at most six minutes on one GPU
    python -m benchmarks.gpu --rehearse                     the same on the CPU, tiny, in seconds

Checked on the shipped digits models (discrete, VP, VE, one with a head) and on a network of CIFAR-10's size with random
weights: single calls over the whole range of times and, for the shipped ones in float32, samples from the same noise.
Measured on the large one: images a second of bare calls and of the sampling loop, also as a multiple of the published
eager loop's (benchmarks/published_loop.py), and the largest memory. On the digits' network, from the same noise: how
far samples of both loops are from the data (Frechet, in pixels), to its bootstrap error. One JSON line a figure; a
check that fails makes the exit code 1. "float32" is that in convolutions, too; "tf32", which is torch's default on a
GPU, rounds them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adpm.denoiser import Denoiser
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.run.work import resolve_device, runnable
from adpm.sampler import keyed
from benchmarks.gpu_bench import EAGER, FASTEST, PLAIN, TINY, Bench, Case, Report, Sizes, median_seconds, samples
from benchmarks.models import SHIPPED, Model, random_cifar10, shipped
from benchmarks.published_loop import Distances, measure_published

NOISE_LIMIT = 1e-5
CALL_LIMITS = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1.5e-1}
SAMPLE_LIMITS = {"float32": 1e-3, "tf32": 1e-1, "bfloat16": 5e-1}
"""Largest absolute differences allowed, of eps (and a head) and of samples. On a CPU other memory layouts change the
shipped models' eps by 3e-6 and their samples by 1e-5, bfloat16 by 0.05 and 0.2."""


COMPILE_UNTIL = 240.0
"""Seconds after the start in which a compiled case may begin, if not told: one takes a minute, and six are allowed."""


def calls(bench: Bench, model: Model, denoise: Denoiser) -> Tensor:
    """eps, and the head's output where there is one, at four times from the first to the last: [4, B, C, H, W]."""
    noise = keyed(KeyedNoise(1, "benchmark"), torch.arange(bench.sizes.batch), model.shape)
    out = []
    for k, t in enumerate([model.process.times[1], *model.times(3)[1:]]):
        x = model.noisy(noise(2 * k), noise(2 * k + 1), t).to(bench.device)
        said = denoise(x, t)
        out.append(said.eps_network if said.head is None else torch.cat([said.eps_network, said.head], dim=1))
    return torch.stack(out)


class Comparison:
    """One model against itself in float32 on the CPU."""

    def __init__(self, bench: Bench, model: Model, large: bool = False) -> None:
        self.bench, self.model, self.large = bench, model, large
        cpu = Bench(torch.device("cpu"), bench.report, replace(bench.sizes, batch=bench.sizes.compared))
        denoise = cpu.denoiser(model, PLAIN)
        self.calls = calls(cpu, model, denoise)
        self.samples = None if large else samples(cpu, model, denoise)

    def take(self, case: Case) -> None:
        """Compare calls, and samples of a shipped model; measure the large one."""
        bench, name, denoise = self.bench, self.model.name, self.bench.denoiser(self.model, case)
        found = calls(bench, self.model, denoise)[:, : bench.sizes.compared]
        bench.report.check(f"{name}: calls", found, self.calls, CALL_LIMITS[case.precision], case)
        if self.samples is None:
            self.measure(denoise, case)
            return
        drawn = samples(bench, self.model, denoise)[: bench.sizes.compared]
        limit = SAMPLE_LIMITS[case.precision]
        bench.report.check(f"{name}: samples, K = {bench.sizes.steps}", drawn, self.samples, limit, case)

    def measure(self, denoise: Denoiser, case: Case) -> None:
        """Images a second of calls and of the loop, and the loop's largest memory."""
        bench, name = self.bench, self.model.name
        sizes, report, cuda = bench.sizes, bench.report, bench.device.type == "cuda"
        x = torch.zeros(sizes.batch, *self.model.shape, device=bench.device)
        label = torch.tensor(500.0, device=bench.device).expand(sizes.batch)

        def bare() -> None:
            for _ in range(sizes.calls):
                denoise.network(x, label)

        call = median_seconds(bare, sizes.repeats, bench.synchronise) / sizes.calls
        if cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
        loop = median_seconds(lambda: samples(bench, self.model, denoise), sizes.repeats, bench.synchronise)
        report.figure(f"{name}: bare calls, batch {sizes.batch}", sizes.batch / call, "images/s", case)
        of_loop = f"{name}: sampling, K = {sizes.steps}, batch {sizes.batch}"
        report.figure(of_loop, sizes.batch / loop, "images/s", case)
        for precision, published in bench.published.items():
            times = f"{of_loop}, over the published loop in {precision}"
            report.figure(times, sizes.batch / loop / published, "ratio", case)
        report.figure(f"{of_loop}, over its calls", loop / (sizes.steps * call), "ratio", case)
        if cuda:
            report.figure(f"{of_loop}, memory", torch.cuda.max_memory_allocated(bench.device) / 2**20, "MiB", case)
        else:
            report.skipped(f"{of_loop}, memory", "counted on GPUs only", case)


class Convolution(nn.Module):
    """The least that a compiler can be tried on."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.convolution(x) * torch.sigmoid(label)[:, None, None, None]


def without_compiler(bench: Bench) -> str:
    """Why nothing can be compiled here; "" where a convolution compiles, and then it is compared, too."""
    network, case = Convolution().eval(), Case(compiled=True)
    x, label = torch.linspace(-1, 1, 128, device=bench.device).reshape(2, 1, 8, 8), torch.ones(2, device=bench.device)
    plain = runnable(network, "float32", False, bench.device)(x, label)
    try:
        compiled = runnable(network, "float32", True, bench.device)(x, label)
    except Exception as error:  # the compilers of CPU and GPU fail in many ways
        reason = f"no compiler works here ({type(error).__name__})"
        bench.report.skipped("one convolution: calls", reason, case)
        return reason
    bench.report.check("one convolution: calls", compiled, plain, CALL_LIMITS["float32"], case)
    return ""


@torch.inference_mode()
def run(bench: Bench, rehearse: bool, compile_until: float = COMPILE_UNTIL) -> None:
    """All checks and measurements, what is quick first."""
    started, report = time.perf_counter(), bench.report
    noises = [KeyedNoise(0, "benchmark")(torch.arange(64, device=d), 3, (3, 32, 32)) for d in (bench.device, "cpu")]
    report.check("keyed noise", *noises, NOISE_LIMIT, PLAIN)
    no_compiler = without_compiler(bench)
    small = [Comparison(bench, shipped(name)) for name in SHIPPED]
    big = Comparison(bench, random_cifar10(tiny=rehearse), large=True)
    measure_published(bench, big.model)
    far = Distances(bench, small[0].model)
    work = [(comparison, case) for comparison in (*small, far, big) for case in EAGER]
    work += [(big, FASTEST), (far, FASTEST), (big, replace(FASTEST, graphs=False))]
    work += [(comparison, Case(compiled=True)) for comparison in small]
    work += [(big, Case("tf32", compiled=True, channels_last=True))]
    for comparison, case in work:
        reason = ""
        if case.precision == "tf32" and bench.device.type == "cpu":
            reason = "TF32 is a mode of GPUs"
        elif case.graphs and bench.device.type == "cpu":
            reason = "recordings are replayed on GPUs"
        elif case.compiled and no_compiler:
            reason = no_compiler
        elif case.compiled and rehearse:
            reason = "a rehearsal compiles one convolution only"
        elif case.compiled and time.perf_counter() - started > compile_until:
            reason = f"compiled cases begin in the first {compile_until:.0f} s"
        if reason:
            report.skipped(comparison.model.name, reason, case)
        else:
            comparison.take(case)
    report.figure("all of this", time.perf_counter() - started, "s", PLAIN)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.jsonl"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--compile_until", type=float, default=COMPILE_UNTIL, help="seconds in which cases compile")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args(argv)
    try:
        device = resolve_device("cpu" if options.rehearse else options.device)
    except UserError as error:
        parser.error(str(error))
    if device.type == "cpu" and not options.rehearse:
        parser.error("no GPU is there; rehearse with --rehearse.")
    words = sys.argv[1:] if argv is None else argv
    report = Report(options.output, device, shlex.join(["python", "-m", "benchmarks.gpu", *words]))
    before = torch.get_num_threads()
    if options.rehearse:
        torch.set_num_threads(1)
    try:
        run(Bench(device, report, TINY if options.rehearse else Sizes()), options.rehearse, options.compile_until)
    finally:
        torch.set_num_threads(before)
        report.close()
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
