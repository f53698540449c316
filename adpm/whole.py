"""Files that are whole or absent: written beside their place, then renamed; of several ranks by the first."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adpm.ranks import ranks

_STALE = 3600.0
"""Seconds after which a temporary file belongs to a run that was killed."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary sibling and rename it to `path`.

    Ranks wait for each other before and after: what one of them found missing, none finds, and afterwards all do.

    Raises:
        OSError: naming `path`, where the system refuses; what was there is left as it was.
    """
    ranks().wait()
    if ranks().first:
        with named(path):
            _write_whole(path, write)
    ranks().wait()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the system refuses inside is refused of this path.

    Raises:
        OSError: naming `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name[-100:]}."
    for old in path.parent.glob(f"{stem}*.part"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE:
                old.unlink()
    handle, name = tempfile.mkstemp(prefix=stem, suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # temporary files are for their owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
