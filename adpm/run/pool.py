"""Work side by side in processes that never outlive the one that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], processes: int, start: Callable[..., None], *given: Any
) -> Iterator[tuple[Item, Result]]:
    """The items with what `work` makes of them, as they finish.

    Args:
        work: a module's function.
        items: to be worked on, in this order.
        processes: 1: this one, with all of torch's threads; more: that many new ones, one thread each.
        start: called first in every process, as start(*given).
    """
    if processes == 1:
        start(*given)
        for item in items:
            yield item, work(item)
        return
    keep_memory()
    context = get_context("spawn")  # a forked process cannot use a GPU, nor torch's threads safely
    watched, held = context.Pipe(duplex=False)
    try:
        with ProcessPoolExecutor(
            processes, mp_context=context, initializer=_begin, initargs=(watched, start, given)
        ) as pool:
            try:
                with _uninterrupted():
                    futures = {pool.submit(work, item): item for item in items}
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                held.close()  # whoever is still at work stops
                raise
    finally:
        held.close()
        watched.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that start in here never hear Ctrl-C, not even while they import; this one hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what starts now inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(watched: Connection, start: Callable[..., None], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    start(*given)


def _end_with(watched: Connection) -> None:
    """End this process when the other end of the pipe is closed, as it is when its process dies, however it dies."""
    watched.poll(None)
    os._exit(1)


def available(device: torch.device) -> int:
    """How many processes fit: one per core that this process may use, or one for a GPU."""
    if device != torch.device("cpu"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """For processes started from here: without this, glibc gives every layer's memory back to the system."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4000000000")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8000000000")
