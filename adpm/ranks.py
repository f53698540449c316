"""The processes that torchrun started for one command, and what they agree on.

Every one of them ("rank") runs the same program. Ranges of long work are shared out (`adpm.run.store.Parts`), files are
written by the first one while the others wait (`adpm.whole.write_whole`), so that all see the same files at the same
point of the program, and the first one speaks. A program that is alone, or works `alone`, is its own first rank.

They meet in the key-value store that torchrun keeps: a few bytes through one socket, on any device. When a rank fails,
torchrun ends the others, which wait here in Python and can be ended.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch.distributed as dist

from adpm.errors import UserError

_PATIENCE = 0.02
"""Seconds between two looks into the store, at most."""


@dataclass(frozen=True)
class Ranks:
    """One of the processes.

    Attributes:
        number: of this one, from 0.
        size: how many there are.
        local, local_size: the same on this machine.
        store: where they meet; None where there is one alone.
        quiet: whether another one speaks.
    """

    number: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    store: Any = None
    quiet: bool = False
    _calls: Iterator[int] = field(default_factory=count)

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.number == 0

    def gathered(self, value: Any) -> list[Any]:
        """What every rank gave, by their numbers, once all have called; values that can be pickled."""
        if self.size == 1:
            return [value]
        call = next(self._calls)
        names = [f"{call}/{number}" for number in range(self.size)]
        self.store.set(names[self.number], pickle.dumps(value))
        self._until(names)
        found = [pickle.loads(self.store.get(name)) for name in names]
        if call > 0:  # everyone who is here has read what the call before left
            self.store.delete_key(f"{call - 1}/{self.number}")
        return found

    def wait(self) -> None:
        """Until every rank is here."""
        self.gathered(None)

    def of_first(self, value: Any) -> Any:
        """The first rank's value, on all."""
        return self.gathered(value if self.first else None)[0]

    def shares(self, total: int) -> Iterator[int]:
        """Numbers of 0..total - 1, each to one rank, as they become free; all ranks ask together."""
        if self.size == 1:
            yield from range(total)
            return
        name = f"{next(self._calls)}/next"
        while (number := self.store.add(name, 1) - 1) < total:
            yield number

    def tells(self) -> bool:
        """Whether nobody has told before this one why the job ends: the first who asks does, on this machine or any."""
        if self.size == 1:
            return True
        try:
            return bool(self.store.add("told", 1) == 1)
        except RuntimeError:  # nobody keeps the store any more: the job has ended
            return False

    def _until(self, names: list[str]) -> None:
        """Look again and again, in Python, where a signal is heard."""
        pause = 0.0005
        while not self.store.check(names):
            time.sleep(pause)
            pause = min(2.0 * pause, _PATIENCE)


_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=Ranks())  # noqa: B039  (frozen; the default never counts)


def ranks() -> Ranks:
    """Of this process, here."""
    return _CURRENT.get()


@contextmanager
def as_one_of(these: Ranks) -> Iterator[Ranks]:
    """Work as one of these inside."""
    token = _CURRENT.set(these)
    try:
        yield these
    finally:
        _CURRENT.reset(token)


@contextmanager
def alone(quiet: bool | None = None) -> Iterator[None]:
    """Work inside as if there were no other ranks: nothing is shared out, nobody is waited for, files are written.

    Args:
        quiet: whether it is silent; by default where this one would be.
    """
    here = ranks()
    quiet = here.quiet if quiet is None else quiet
    with as_one_of(Ranks(local=here.local, local_size=here.local_size, quiet=quiet)):
        yield


def joined() -> Ranks:
    """This process as one of those that torchrun started, by the environment that it gave; else as the only one.

    Raises:
        UserError: if the environment is of a job that cannot be joined.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks()
    try:
        store, number, size = next(iter(dist.rendezvous("env://")))
        local, there = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE = {size} says that this is one of {size} processes, but they cannot meet ({error}); start "
            "them by torchrun, or unset WORLD_SIZE."
        ) from error
    job = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(number, size, local, there, dist.PrefixStore(f"adpm/{job}", store), quiet=number > 0)


def require_same(these: Ranks, facts: Mapping[str, Any]) -> None:
    """Refuse ranks that are not about the same work.

    Raises:
        UserError: on every rank, naming the first fact that differs and where.
    """
    every = these.gathered(dict(facts))
    for number, own in enumerate(every):
        for name, value in own.items():
            if value != every[0][name]:
                raise UserError(
                    f"{name} is {value!r} for process {number} and {every[0][name]!r} for process 0; all processes of "
                    "a job have to be given the same."
                )
