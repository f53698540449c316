"""Processes in tests: started, waited for by what they do, and ended by it. No test fails because a machine is slow."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
HANG = 3600.0
"""Seconds after which something is taken to hang; no machine is loaded so heavily that it matters."""

UNPAINTED = (
    "-c",
    "import sys, main; from matplotlib.figure import Figure; Figure.draw = lambda *_: None; sys.exit(main.main())",
)
"""In place of main.py: the same with blank figures, as the fixture `unpainted` has them."""

Found = TypeVar("Found")


def until(ask: Callable[[], Found], process: subprocess.Popen[Any] | None = None) -> Found:
    """What `ask` says as soon as it says yes; an error if the process ends before."""
    end = time.monotonic() + HANG
    while True:
        over = process is not None and process.poll() is not None
        if found := ask():
            return found
        assert not over, f"the process ended with {process.returncode if process else None} before that"
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.01)


@contextlib.contextmanager
def started(*argv: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """python with these arguments, at the head of a process group of its own; nobody of it is left afterwards."""
    words = [sys.executable, *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, text=True, start_new_session=True, **{"cwd": ROOT, "env": environment, **options}
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finished(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """What such a process said and the code that it ended with."""
    with started(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        out, err = process.communicate(timeout=HANG)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def at_work(group: int) -> list[int]:
    """The processes of a group, those left out that have ended and wait to be collected."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(file.parent.name))
    return found
