"""Sampling by two processes against one, and the memory that many samples take.

    python -m benchmarks.processes [--pairs=5] [--samples=2000000]

Speed: digits, analytic, 25 steps, by `python main.py` and by torchrun with two processes, one thread each, in turn. The
seconds are those of drawing, as the run says them, without the start of processes. Memory: the largest resident size of
`python main.py` for toy samples, few and many.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.protocol import describe

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run")


def ran(processes: int, *words: str) -> str:
    """What `main.py` says in so many processes."""
    launch = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes > 1 else []
    line = [sys.executable, *launch, "main.py", *words]
    return subprocess.run(line, env=ONE_THREAD, check=True, capture_output=True, text=True).stdout


def drawing(processes: int, workdir: Path, cache: Path, samples: int) -> float:
    """Seconds that the samples took."""
    fields = (f"sampling.samples={samples}", "sampling.batch_size=64", "trajectory.steps=25", "moments.draws=50")
    told = [f"--config.{field}" for field in (*fields, f"cache={cache}")]
    said = ran(processes, "--config=configs/digits.py", "--mode=sample", f"--workdir={workdir}", *told)
    found = re.search(r"network calls each, ([\d.]+) s", said)
    assert found is not None, said
    return float(found[1])


def speed(pairs: int, folder: Path) -> None:
    drawing(1, folder / "first", folder / "cache", 64)  # moments and plan
    ratios = []
    for pair in range(pairs):
        seconds = [drawing(n, folder / f"{pair}-{n}", folder / "cache", 1024) for n in ((1, 2), (2, 1))[pair % 2]]
        one, two = seconds if pair % 2 == 0 else seconds[::-1]
        ratios.append(one / two)
        print(f"  1,024 digits: {one:.1f} s by one process, {two:.1f} s by two: {one / two:.2f}", flush=True)
    print(f"two processes: {statistics.median(ratios):.2f} times as fast (median; goal: 1.8)\n", flush=True)


def memory(samples: int, folder: Path) -> None:
    peaks = []
    for count in (2000, samples):
        fields = (f"sampling.samples={count}", "sampling.batch_size=2000", "trajectory.steps=2", "rule.name=small")
        told = [f"--config.{field}" for field in (*fields, "trajectory.name=even", "sampling.grid=16")]
        line = [
            sys.executable,
            "main.py",
            "--config=configs/toy.py",
            "--mode=sample",
            f"--workdir={folder / str(count)}",
        ]
        child = subprocess.Popen([*line, *told], env=ONE_THREAD, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        assert status == 0, f"{count} samples: status {status}"
        peaks.append(used.ru_maxrss / 1024)
        disk = sum(path.stat().st_size for path in (folder / str(count)).rglob("samples.npy")) / 1e6
        print(f"  {count:,} toy samples: {peaks[-1]:.0f} MiB at most, {disk:.1f} MB on disk", flush=True)
    print(f"{samples:,} samples take {peaks[1] - peaks[0]:.0f} MiB more than 2,000 (goal: at most 50)")


def main() -> None:
    parser = argparse.ArgumentParser(description="sampling by two processes, and the memory of many samples")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2_000_000)
    options = parser.parse_args()
    describe("Two processes against one, and many samples against few")
    with tempfile.TemporaryDirectory() as folder:
        if options.pairs:
            speed(options.pairs, Path(folder))
        if options.samples:
            memory(options.samples, Path(folder))


if __name__ == "__main__":
    main()
