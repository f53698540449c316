"""What every benchmark prints first: versions, machine, threads."""

from __future__ import annotations

import os
import platform

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


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.readlines()
    except OSError:
        return []
