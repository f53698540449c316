"""One command at a time in a folder: the system's lock of a file, which ends with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from adpm.errors import UserError

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"

_HELD: ContextVar[tuple[ExitStack, set[Path]] | None] = ContextVar("held", default=None)


@contextmanager
def held_locks() -> Iterator[None]:
    """Inside, folders that `hold` is called for are this process's until the end. Outside, nobody holds any."""
    with ExitStack() as stack:
        token = _HELD.set((stack, set()))
        try:
            yield
        finally:
            _HELD.reset(token)


def hold(folder: Path) -> None:
    """Keep other commands out of a folder that exists.

    Raises:
        UserError: if another process is at work there, which is named.
    """
    if (held := _HELD.get()) is None or fcntl is None:
        return
    stack, mine = held
    if folder.resolve() not in mine:
        stack.enter_context(_locked(folder))
        mine.add(folder.resolve())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / FILE
    file = _opened(path)
    if file is None:  # a file system without locks
        yield
        return
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _opened(path: Path) -> IO[str] | None:
    """The file, locked; None where the file system has no locks."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            by = file.read() or "of a number that it has not told yet"
            file.close()
            raise UserError(
                f"--workdir = '{path.parent}' is in use by process {by}; wait until it has ended, or choose another."
            ) from None
        except OSError:
            file.close()
            return None
        with suppress(OSError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        file.close()  # whoever held it has removed it in between
