"""What every benchmark prints first: versions, machine, threads."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch


def describe(what: str) -> None:
    """Print the protocol's head."""
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown CPU")
    print(f"# {what}")
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}; "
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads\n"
    )


def interleaved(
    bare: Callable[[], object],
    whole: Callable[[], object],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """(seconds of `whole` over `bare`, seconds of `bare`) for pairs of alternating order, after two for warm-up."""
    ratios, seconds = [], []
    for repeat in range(repeats + 2):
        pair = []
        for work in (bare, whole) if repeat % 2 else (whole, bare):
            started = clock()
            work()
            pair.append(clock() - started)
        b, w = pair if repeat % 2 else pair[::-1]
        if repeat >= 2:
            ratios.append(w / b)
            seconds.append(b)
    return ratios, seconds


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.readlines()
    except OSError:
        return []
