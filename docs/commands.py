"""Commands of the project as processes of their own, at most CORES at a time with one thread each, and each once.

What a command prints goes to NAME.txt, what it cost to NAME.json, so that a tour that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adpm.run.files import write_json

CORES = 2
INTERRUPTED = 130
# One thread, lines as they come, and memory that glibc keeps between layers instead of giving it back.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}


class CommandFailed(Exception):
    """A command that ended with another exit code than 0.

    Attributes:
        code: its exit code; 128 + n for a process ended by signal n.
    """

    def __init__(self, line: str, code: int, message: str) -> None:
        super().__init__(f"{line}\n{message.strip()}")
        self.code = code


@dataclass(frozen=True)
class Command:
    """`python main.py` with options.

    Attributes:
        name: of its files, and of its place in the page.
        options: after main.py.
    """

    name: str
    options: tuple[str, ...]

    @property
    def line(self) -> str:
        return shlex.join(["python", "main.py", *self.options])


@dataclass(frozen=True)
class Record:
    """What a command cost and how it ended; an interrupted one that went on has the sum.

    Attributes:
        line: the command.
        code: exit code.
        seconds: by the clock.
        cpu_seconds: of the processor.
    """

    line: str
    code: int
    seconds: float
    cpu_seconds: float


class Running:
    """One command at work."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.folder = command, folder
        before = read_record(folder, command)
        # what an interrupted run printed stays: the run that goes on does not print it again
        self.before = before if before and before.code == INTERRUPTED else Record(command.line, 0, 0.0, 0.0)
        self.text, self.errors = folder / f"{command.name}.txt", folder / f"{command.name}.stderr"
        mode = "a" if self.before.code else "w"
        self.told = self.text.stat().st_size if mode == "a" else 0
        self.started = time.perf_counter()
        with self.text.open(mode) as out, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *command.options],
                stdout=out,
                stderr=errors,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,  # Ctrl-C reaches it once, through `interrupt`
            )
        print(f"$ {command.line}", flush=True)

    def ended(self, wait: bool = False) -> bool:
        """Whether it has ended; what it printed since the last call is passed on, what it cost is kept."""
        number, status, usage = os.wait4(self.process.pid, 0 if wait else os.WNOHANG)
        whole = self.text.read_bytes()[self.told :].rpartition(b"\n")[0]
        for line in whole.splitlines():
            print(f"  [{self.command.name}] {line.decode()}", flush=True)
        self.told += len(whole) + bool(whole)
        if not number:
            return False
        code = os.waitstatus_to_exitcode(status)
        self.process.returncode = code
        seconds = self.before.seconds + time.perf_counter() - self.started
        cpu = self.before.cpu_seconds + usage.ru_utime + usage.ru_stime
        self.record = Record(self.command.line, code if code >= 0 else 128 - code, seconds, cpu)
        write_json(self.folder / f"{self.command.name}.json", asdict(self.record))
        return True

    def check(self) -> None:
        """For one that has ended.

        Raises:
            CommandFailed: with what it said, if it did not end well.
        """
        if self.record.code:
            raise CommandFailed(self.command.line, self.record.code, self.errors.read_text())

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does, to it and to what it has started: it saves what it has."""
        os.killpg(self.process.pid, signal.SIGINT)


def read_record(folder: Path, command: Command) -> Record | None:
    """How this very command ended the last time; None if it has not run."""
    try:
        record = Record(**json.loads((folder / f"{command.name}.json").read_text()))
    except FileNotFoundError:
        return None
    return record if record.line == command.line else None


def run_all(commands: Sequence[Command], folder: Path) -> None:
    """Run those of independent commands that have not finished.

    Raises:
        CommandFailed: when one fails; those beside it are interrupted first, and save what they have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [c for c in commands if (record := read_record(folder, c)) is None or record.code]
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < CORES:
                running.append(Running(waiting.pop(0), folder))
            time.sleep(0.1)
            ended = [work for work in running if work.ended()]
            running = [work for work in running if work not in ended]
            for work in ended:
                work.check()
    finally:
        for work in running:
            work.interrupt()
        for work in running:
            work.ended(wait=True)
