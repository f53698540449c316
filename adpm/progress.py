"""What is told while work goes on, in lines and bars; and how its finished parts may be kept."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Generic, Protocol, TextIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from adpm.ranks import ranks

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Arrays = dict[str, NDArray[np.generic]]

SECONDS_BETWEEN_LINES = 60.0


def say(line: str, stream: TextIO | None = None) -> None:
    """One line to the user, above any progress bar, on standard output unless told otherwise; from one rank only.

    When nobody reads any more (`... | head -1`), the run goes on in silence: what it makes are files.
    """
    if ranks().quiet:
        return
    stream = stream or sys.stdout
    try:
        tqdm.write(line, file=stream)
        stream.flush()  # a pipe keeps lines back, and would break at exit, where nobody can catch it
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


class Progress(Protocol[T_co]):
    """Items, with a bar or lines that say how many are done."""

    def __iter__(self) -> Iterator[T_co]: ...

    def set_postfix(self, *, refresh: bool = True, **values: str) -> None:
        """Values to show beside the number of items."""


def progress(items: Iterable[T], *, total: int | None = None, initial: int = 0, what: str = "items") -> Progress[T]:
    """The items with a progress bar, or with a line a minute where standard error is no terminal.

    Args:
        items: what is left to be done.
        total: how many items there are with those that are done; by default `initial` and the length of `items`.
        initial: items that were done before.
        what: name of an item, or of the work.
    """
    if total is None and isinstance(items, Sized):
        total = initial + len(items)
    if not ranks().quiet and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        return cast(Progress[T], tqdm(items, total=total, initial=initial, desc=what, dynamic_ncols=True))
    return _Lines(items, total, initial, what)


class _Lines(Generic[T]):
    """ "iteration 1200 of 10000, loss 0.1234, 8.1 it/s", once a minute."""

    def __init__(self, items: Iterable[T], total: int | None, initial: int, what: str) -> None:
        self._items, self._total, self._initial, self._what = items, total, initial, what
        self._values: dict[str, str] = {}

    def set_postfix(self, *, refresh: bool = True, **values: str) -> None:
        self._values = values

    def __iter__(self) -> Iterator[T]:
        started = told = time.monotonic()
        for done, item in enumerate(self._items, start=1):
            yield item
            now = time.monotonic()
            if now - told >= SECONDS_BETWEEN_LINES:
                told = now
                say(self._line(done, (now - started) / done), sys.stderr)

    def _line(self, done: int, seconds: float) -> str:
        of = "" if self._total is None else f" of {self._total}"
        values = "".join(f", {name} {value}" for name, value in self._values.items())
        rate = f"{1.0 / seconds:.1f} it/s" if seconds < 1.0 else f"{seconds:.1f} s/it"
        return f"{self._what} {self._initial + done}{of}{values}, {rate}"


class Keep(Protocol):
    """How long work is done range by range: results of `work` on consecutive ranges of at most `size` of `total` items.

    Whoever keeps results may give those of an earlier run; the order is that of the items.
    """

    def __call__(self, total: int, size: int, work: Callable[[range], Arrays], what: str) -> Iterator[Arrays]: ...


def in_memory(total: int, size: int, work: Callable[[range], Arrays], what: str) -> Iterator[Arrays]:
    """Every range is worked on, and nothing is kept."""
    starts = range(0, total, size)
    for start in progress(starts, total=len(starts), what=what):
        yield work(range(start, min(start + size, total)))
