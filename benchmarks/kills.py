"""Runs killed at every file that they write, alone and as two processes, and on a full disk: what is lost?

Every mode is run once in peace, and its writes are counted: files put in their place (os.replace) and batches of
samples added to theirs. Then it is run again and again in a fresh folder, killed (SIGKILL) at the n-th of them, for all
n, now before it is done, now after, and started once more. The second start has to end well, with the same bytes in
every file as that many processes leave in peace (events of TensorBoard, and the seconds beside samples, left out) and
nothing torn left over. On a full disk no file may grow beyond a size: the run has to end with one sentence, and the
next one as above.

    python -m benchmarks.kills [--modes sample train ...] [--processes 1 2] [--every=1] [--sizes=40]

Processes are forked from one that has imported everything, so that a start takes no time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch.distributed import TCPStore

from adpm.run import growing
from adpm.run.cli import run
from adpm.run.commands import MODES
from benchmarks.protocol import describe

FEW = ("trajectory.steps=3", "moments.draws=12", "moments.times=6", "sampling.samples=10", "sampling.batch_size=2")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sample": ("toy.py", FEW),
    "estimate": ("toy.py", (*FEW, "moments.statistics=coordinates")),
    "likelihood": (
        "toy_sde.py:vp",
        (*FEW, "likelihood.images=6", "likelihood.batch_size=2", "likelihood.method=bound+flow"),
    ),
    "evaluate": ("toy.py", FEW),
    "translate": (
        "digits_translate.py",
        ("translate.images=6", "sampling.batch_size=2", "trajectory.steps=2", "moments.draws=12", "moments.times=6"),
    ),
    "train": (
        "toy.py:unet",
        (
            "train.iterations=12",
            "train.batch_size=8",
            "train.save_every=2",
            "train.sample_every=6",
            "train.test_every=6",
        ),
    ),
}
"""Mode -> config and fields."""
CONFIGS = Path(__file__).parent.parent / "configs"
NEW = ("events.out", "samples.csv", "translations.csv", "said.txt", ".")
"""Files with the time in them, and temporary ones, which later runs remove when they are an hour old."""


def main() -> None:
    parser = argparse.ArgumentParser(description="runs killed at every file that they write")
    parser.add_argument("--modes", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--every", type=int, default=1, help="of the moments to kill at: all, or every so manieth")
    parser.add_argument("--sizes", type=int, default=40, help="of the largest file on a full disk, 200 bytes to 200 kB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    describe("Runs killed at every file that they write, and on a full disk")
    print("| mode | processes | kills | lost or differing | torn files left |\n|---|---|---|---|---|", flush=True)
    kills = 0
    for mode in options.modes:
        with tempfile.TemporaryDirectory() as folder:
            for size in options.processes:
                expected, writes = peaceful(mode, Path(folder) / f"peace-{size}", size)
                found = [
                    killed(mode, Path(folder) / f"{size}-{n}", size, n, expected)
                    for n in range(1, 2 * writes + 1, options.every)
                ]
                kills += len(found)
                wrong, torn = (sum(bad[i] for bad in found) for i in range(2))
                print(f"| {mode} | {size} | {len(found)} | {wrong} | {torn} |", flush=True)
    print(f"\n{kills} kills\n\n| mode | sizes | without a refusal | tracebacks | differing | torn |\n{'|---' * 6}|")
    for mode in options.modes:
        with tempfile.TemporaryDirectory() as folder:
            expected, _ = peaceful(mode, Path(folder) / "peace")
            limits = np.geomspace(200, 200_000, options.sizes).astype(int).tolist()
            found = [full(mode, Path(folder) / str(limit), limit, expected) for limit in limits]
            told = " | ".join(str(sum(bad[i] for bad in found)) for i in range(4))
            print(f"| {mode} | {len(found)} | {told} |", flush=True)


# One run of a mode in forked processes


def argv(mode: str) -> list[str]:
    config, fields = RUNS[mode]
    told = [f"--config.{field}" for field in fields]
    return ["main.py", f"--config={CONFIGS / config}", f"--mode={mode}", "--workdir=run", *told]


def forked(work: Callable[[], int], out: Path) -> int:
    """A process that does this work, what it says going to a file; its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        with out.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
            code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
    return 0


def started(mode: str, folder: Path, size: int = 1, before: Callable[[int], None] = lambda rank: None) -> int:
    """Run a mode in so many processes; the first exit code that is not 0. When one ends badly, the others are ended."""
    folder.mkdir(exist_ok=True)
    port = _free_port()
    store = TCPStore("localhost", port, None, True, timedelta(seconds=60), wait_for_workers=False) if size > 1 else None

    def work(rank: int) -> int:
        if size > 1:
            there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            there |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
            os.environ.update({name: str(value) for name, value in there.items()})
        before(rank)
        os.chdir(folder)  # some files say where they lie
        return run(argv(mode), MODES)

    processes = {forked(lambda rank=rank: work(rank), folder / "said.txt") for rank in range(size)}
    worst = 0
    while processes:
        number, status = os.wait()
        processes.discard(number)
        if code := os.waitstatus_to_exitcode(status):
            worst = worst or code
            for other in processes:
                os.kill(other, signal.SIGKILL)
    del store
    return worst


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def counted(at: Callable[[int, bool], None]) -> None:
    """Call `at` with the number of every write from here on, before it (False) and after (True)."""
    done, replace, to_disk = [0], os.replace, growing._to_disk

    def watched(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            done[0] += 1
            at(done[0], False)
            write(*arguments)
            at(done[0], True)

        return wrapped

    os.replace, growing._to_disk = watched(replace), watched(to_disk)


# What is looked for


def peaceful(mode: str, folder: Path, size: int = 1) -> tuple[dict[str, str], int]:
    """The files of a run that nobody disturbs, by their hashes, and the writes of its first process."""
    counter = folder.with_name("count.txt")

    def count(rank: int) -> None:
        if rank == 0:
            counted(lambda n, after: counter.write_text(str(n)) if after else None)

    if code := started(mode, folder, size, count):
        raise SystemExit(f"{mode} ends with {code}: {(folder / 'said.txt').read_text()}")
    return hashes(folder), int(counter.read_text())


def killed(mode: str, folder: Path, size: int, moment: int, expected: dict[str, str]) -> tuple[bool, bool]:
    """Whether anything is lost or differs, and whether anything torn is left, after a kill and a new start."""
    n, after = (moment + 1) // 2, moment % 2 == 0

    def at(number: int, now: bool) -> None:
        if (number, now) == (n, after):
            os.kill(os.getpid(), signal.SIGKILL)

    # of two processes now the first, now the second is killed; the second writes less, and may end in peace
    started(mode, folder, size, lambda rank: counted(at) if rank == moment % size else None)
    code = started(mode, folder, size)
    return code != 0 or differing(folder, expected), bool(torn(folder))


def full(mode: str, folder: Path, limit: int, expected: dict[str, str]) -> tuple[bool, bool, bool, bool]:
    """Whether a run that is refused did not say so, had a traceback, and what is wrong after the next."""

    def small(rank: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    folder.mkdir(parents=True)
    code = started(mode, folder, 1, small)
    said = (folder / "said.txt").read_text()
    left = bool(torn(folder))
    unsaid = code not in (0, 2) or (code == 2 and "File too large" not in said)
    code = started(mode, folder)
    return unsaid, "Traceback" in said, code != 0 or differing(folder, expected), left or bool(torn(folder))


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(NEW)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differing(folder: Path, expected: dict[str, str]) -> bool:
    """Whether a file is missing, left over or another; which, is told."""
    found = hashes(folder)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        print(f"  {folder.name}: {', '.join(wrong[:3])}", flush=True)
    return bool(wrong)


def torn(folder: Path) -> list[Path]:
    """Images that begin to grow beside whole ones, and parts beside the whole."""
    return [path for path in [*folder.rglob("*.partial"), *folder.rglob("*.parts")] if path.with_suffix("").exists()]


if __name__ == "__main__":
    main()
