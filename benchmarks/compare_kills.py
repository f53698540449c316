"""A comparison killed again and again and continued, against one that was left alone: are the tables the same?

    python -m benchmarks.compare_kills [--config=configs/compare_digits.py:quick] [--kills=20]

Kills are SIGKILL when the n-th new file has appeared, n drawn evenly from 1 to a sixth of all that a whole run writes,
so that they hit moments, tables, samples, bounds and the report on a fast machine as on a slow one. A run that finishes
first is compared and begun again in an empty folder. All tables are compared byte for byte, except the last column of
cells.csv, which is clock time.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.protocol import describe

MAIN = ("main.py",)


def start(config: str, workdir: Path, *options: str) -> subprocess.Popen[bytes]:
    """The comparison as a process, in a folder."""
    flags = [f"--config={config}", "--mode=compare", f"--workdir={workdir}", *options]
    return subprocess.Popen([sys.executable, *MAIN, *flags], stdout=subprocess.DEVNULL)


def files(folder: Path) -> set[str]:
    """All files below a folder that are whole; half-written ones begin with a dot."""
    return {os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if not name.startswith(".")}


def kill_at(process: subprocess.Popen[bytes], folder: Path, n: int) -> bool:
    """Kill a process as soon as `n` more files have appeared in the folder; False if it ends before."""
    before = files(folder)
    while process.poll() is None:
        if len(files(folder) - before) >= n:
            process.kill()
            process.wait()
            return True
        time.sleep(0.005)
    return False


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
    options, fields = parser.parse_known_args()
    describe(f"{options.config} killed {options.kills} times")
    whole, killed = options.workdir / "whole", options.workdir / "killed"
    shutil.rmtree(whole, ignore_errors=True)
    shutil.rmtree(killed, ignore_errors=True)
    if code := start(options.config, whole, *fields).wait():
        sys.exit(code)
    expected, total, chosen = tables(whole), len(files(whole)), random.Random(options.seed)
    print(f"left alone: {total} files")
    kills = finished = 0
    while True:
        process, n = start(options.config, killed, *fields), chosen.randint(1, max(1, total // 6))
        if kills < options.kills and kill_at(process, killed, n):
            kills += 1
            print(f"kill {kills:2d} at file {n:3d}: {len(files(killed))} files so far", flush=True)
            continue
        if code := process.wait():
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
