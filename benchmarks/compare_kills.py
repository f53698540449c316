"""A comparison killed at random moments and continued, against one that was left alone: are the tables the same?

    python -m benchmarks.compare_kills [--config=configs/compare_digits.py:quick] [--kills=20]

Kills are SIGKILL at a time drawn evenly between start and a sixth of the whole run's time later, so that they hit
start-up, moments, tables, samples, bounds and the report. A run that finishes first is compared and begun again in an
empty folder. All tables are compared byte for byte, except the last column of cells.csv, which is clock time.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.protocol import describe


def start(config: str, workdir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "main.py", f"--config={config}", "--mode=compare", f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def tables(workdir: Path) -> dict[str, str]:
    """Every table without clock times."""
    files = [path for path in (workdir / "tables").iterdir() if not path.name.startswith(".")]  # of a killed writer
    found = {path.name: path.read_text(encoding="utf-8") for path in files}
    lines = found.pop("cells.csv").splitlines()
    return {**found, "cells.csv": "\n".join(line.rpartition(",")[0] for line in lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description="kill a comparison and continue it")
    parser.add_argument("--config", default="configs/compare_digits.py:quick")
    parser.add_argument("--workdir", type=Path, default=Path("runs/compare_kills"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    describe(f"{options.config} killed {options.kills} times at random moments")
    whole, killed = options.workdir / "whole", options.workdir / "killed"
    shutil.rmtree(whole, ignore_errors=True)
    shutil.rmtree(killed, ignore_errors=True)
    begun = time.monotonic()
    if code := start(options.config, whole).wait():
        sys.exit(code)
    seconds = time.monotonic() - begun
    print(f"left alone: {seconds:.0f} s")
    expected, moments = tables(whole), random.Random(options.seed)
    kills = finished = 0
    while True:
        process = start(options.config, killed)
        after = moments.uniform(0.0, seconds / 6) if kills < options.kills else None
        try:
            code = process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            cells = len(list((killed / "cells").rglob("*.npz")))
            print(f"kill {kills:2d} after {after:5.1f} s: {cells} records so far", flush=True)
            continue
        if code:
            sys.exit(code)
        finished += 1
        found = tables(killed)
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        told = f"DIFFERENT: {different}" if different else "same tables"
        print(f"finished run {finished} after {kills} kills: {told}", flush=True)
        if different:
            sys.exit(1)
        if kills >= options.kills:
            return
        shutil.rmtree(killed)


if __name__ == "__main__":
    main()
