"""What the measurements of benchmarks/gpu.py share: cases, sizes, the report, a model run as a case says."""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adpm.denoiser import Denoiser
from adpm.noise import KeyedNoise
from adpm.run.replay import cuda_graphs
from adpm.run.work import runnable
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Unit
from benchmarks.models import Model


@dataclass(frozen=True)
class Case:
    """How a network is run."""

    precision: str = "float32"
    compiled: bool = False
    channels_last: bool = False
    graphs: bool = False


PLAIN = Case()
EAGER = (
    PLAIN,
    Case(channels_last=True),
    Case("tf32"),
    Case("tf32", channels_last=True),
    Case("bfloat16"),
    Case("bfloat16", channels_last=True),
    Case("bfloat16", graphs=True),
)
FASTEST = Case("bfloat16", compiled=True, channels_last=True, graphs=True)


@dataclass(frozen=True)
class Sizes:
    """How much is done: images, steps and repeats of the measurements, images compared with the CPU, and with data."""

    batch: int = 256
    compared: int = 8
    drawn: int = 2048
    steps: int = 10
    calls: int = 5
    repeats: int = 5


TINY = Sizes(batch=3, compared=2, drawn=24, steps=2, calls=1, repeats=1)


class Report:
    """Writes figures, and remembers whether all checks held."""

    def __init__(self, path: Path, device: torch.device, command: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self.ok = path.open("w"), True
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._common = {"device": name, "torch": torch.__version__, "command": command}

    def _write(self, figure: str, value: float | None, unit: str, case: Case, **more: object) -> None:
        line = json.dumps({"figure": figure, "value": value, "unit": unit, **asdict(case), **self._common, **more})
        for stream in (self._file, sys.stdout):
            print(line, file=stream, flush=True)

    def figure(self, figure: str, value: float, unit: str, case: Case) -> None:
        self._write(figure, value, unit, case)

    def check(self, figure: str, found: Tensor, expected: Tensor, limit: float, case: Case) -> None:
        """The worst absolute difference; NaN is above every limit."""
        value = float((found.cpu().double() - expected.cpu().double()).abs().max())
        ok = value <= limit
        self.ok &= ok
        self._write(figure, value, "absolute difference", case, limit=limit, ok=ok)

    def skipped(self, figure: str, reason: str, case: Case) -> None:
        self._write(figure, None, "", case, skipped=reason)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    device: torch.device
    report: Report
    sizes: Sizes
    published: dict[str, float] = field(default_factory=dict)
    """Images a second of the published loop, by precision."""

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def denoiser(self, model: Model, case: Case) -> Denoiser:
        """A copy of the model's network, run on the device as the case says."""
        network = copy.deepcopy(model.network)
        if case.compiled:
            torch._dynamo.reset()
        options = {"channels_last": case.channels_last, "record": cuda_graphs() if case.graphs else None}
        run = runnable(network, case.precision, case.compiled, self.device, **options)
        return model.denoiser(run)


def samples(bench: Bench, model: Model, denoise: Denoiser, count: int = 0) -> Tensor:
    """Samples of the project's loop: the reverse Gaussian, evenly spread times, noise made where the samples live."""
    numbers = torch.arange(count or bench.sizes.batch, device=bench.device)
    noise = keyed(KeyedNoise(0, "benchmark"), numbers, model.shape)
    solver, times = ReverseGaussian(model.process, Unit()), model.times(bench.sizes.steps)
    for step in sample(denoise, solver, model.process, times, noise):
        x = step.x
    return x


def median_seconds(work: Callable[[], object], repeats: int, synchronise: Callable[[], None]) -> float:
    """Median over repeats, after one for warm-up; the device is idle whenever the clock is read."""
    seconds = []
    for _ in range(repeats + 1):
        synchronise()
        started = time.perf_counter()
        work()
        synchronise()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
