"""Where and how work is done: device, precision, compilation, processes side by side."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import cloudpickle
import torch
from torch import Tensor, nn

from adpm.errors import UserError, lookup
from adpm.families import Kind
from adpm.ranks import alone, ranks
from adpm.run.replay import Record, Replayed, filled

Item = TypeVar("Item")
Result = TypeVar("Result")

# Where


def resolve_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N as a device that is there; of several ranks each has a GPU of its own, in their order.

    Raises:
        UserError: for another name, a GPU that torch does not see, or fewer of them than ranks.
    """
    here = ranks()
    count, found = (
        torch.cuda.device_count(),
        re.fullmatch(r"(?P<cpu>cpu)|(?P<auto>auto)|(?P<cuda>cuda)(:(?P<n>\d+))?", name),
    )
    if found is None:
        raise UserError(f"config.device = '{name}' is unknown; known: auto, cpu, cuda, cuda:N.")
    if found["cpu"] or (found["auto"] and not count):
        return torch.device("cpu")
    seen = f"{count} GPUs" if count else "no GPU"
    if found["cuda"] and int(found["n"] or 0) >= count:
        raise UserError(f"config.device = '{name}', but this torch sees {seen}; use auto or cpu.")
    if here.local_size == 1:
        return torch.device("cuda" if found["auto"] else name)
    if found["n"] or here.local_size > count:
        told = f"{here.local_size} processes on this machine, which has {seen}"
        raise UserError(
            f"config.device = '{name}' with {told}: each needs its own; use auto, and --nproc-per-node={max(count, 1)}."
        )
    return torch.device("cuda", here.local)


@contextmanager
def _convolutions(tf32: bool) -> Iterator[None]:
    """On GPUs torch rounds convolutions to TF32 unless it is told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


PRECISIONS: dict[str, Kind] = {
    "float32": Kind(lambda device: _convolutions(tf32=False), "plain float32"),
    "tf32": Kind(lambda device: _convolutions(tf32=True), "float32 with convolutions in TF32 where a GPU has it"),
    "bfloat16": Kind(
        lambda device: torch.autocast(device.type, dtype=torch.bfloat16),
        "bfloat16 autocast around the network; weights and results stay float32",
    ),
}
"""Builders take the device and give a context for network calls."""


def runnable(
    network: nn.Module,
    precision: str,
    compiled: bool,
    device: torch.device,
    *,
    channels_last: bool = False,
    record: Record | None = None,
    sizes: Collection[int] = (),
) -> Callable[..., Tensor]:
    """The network as the rest of the code calls it: on its device, in its precision, compiled or not.

    It takes (x, label), and classes [B] or None besides where it is told them.

    Args:
        network: is moved to the device.
        precision, compiled, device: see above. A compiler that is missing is told in a sentence at the first call,
            which is when it is wanted.
        channels_last: whether images [B, C, H, W], and the weights of convolutions, are laid out so.
        record: what calls are recorded with, to be replayed; None: they are made one by one.
        sizes: of batches, where calls of few shapes are wanted: others are filled up to the next of these.
    """
    layout = torch.channels_last if channels_last else torch.preserve_format
    network.to(device)
    if channels_last:
        network.to(memory_format=layout)  # type: ignore[call-overload]
    call: Callable[..., Tensor] = torch.compile(network, dynamic=False if sizes else None) if compiled else network
    context = lookup(PRECISIONS, precision, "config.precision").build

    def forward(x: Tensor, label: Tensor, *classes: Tensor | None) -> Tensor:
        with context(device):
            return call(x.float().contiguous(memory_format=layout), label.float(), *classes).float()

    def guarded(x: Tensor, label: Tensor, *classes: Tensor | None) -> Tensor:
        try:
            return forward(x, label, *classes)
        except Exception as error:
            if not type(error).__module__.startswith("torch._"):
                raise
            told = str(error).strip().split("\n")[0]
            raise UserError(
                f"config.compile = True, but the network could not be compiled here ({told}); a C++ compiler is needed "
                "on the CPU. Set it to False, or install one."
            ) from error

    made: Callable[..., Tensor] = guarded if compiled else forward
    if record is not None:
        made = Replayed(made, record)
    return filled(made, sizes) if sizes else made


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own generator seeded inside, and as it was afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


# Processes


def available(device: torch.device) -> int:
    """How many processes fit: one per core that this process may use, or one for a GPU."""
    if device != torch.device("cpu"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], processes: int, start: Callable[..., None], *given: Any
) -> Iterator[tuple[Item, Result]]:
    """The items with what `work` makes of them, as they finish; processes never outlive the one that started them.

    Where there are several ranks, these are the processes: each takes items as it becomes free, with one thread.

    Args:
        work: a module's function.
        items: to be worked on, in this order.
        processes: 1: this one, with all of torch's threads; more: that many new ones, one thread each.
        start: called first in every process, as start(*given).
    """
    if ranks().size > 1:
        yield from _over_ranks(work, list(items), start, *given)
        return
    if processes == 1:
        start(*given)
        for item in items:
            yield item, work(item)
        return
    keep_memory()
    context = get_context("spawn")  # a forked process cannot use a GPU, nor torch's threads safely
    watched, held = context.Pipe(duplex=False)
    packed = cloudpickle.dumps((start, given))  # a user's members may live in a config file, which nobody can import
    try:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(watched, packed)) as pool:
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


def _over_ranks(
    work: Callable[[Item], Result], items: list[Item], start: Callable[..., None], *given: Any
) -> Iterator[tuple[Item, Result]]:
    """All items with what some rank made of them, in their order, on every rank."""
    here, made = ranks(), dict[int, Result]()
    torch.set_num_threads(1)
    with alone(quiet=False):
        start(*given)
        for number in here.shares(len(items)):
            made[number] = work(items[number])
    of_all = {number: result for part in here.gathered(made) for number, result in part.items()}
    for number, item in enumerate(items):
        yield item, of_all[number]


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


def _begin(watched: Connection, packed: bytes) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    start, given = cloudpickle.loads(packed)
    start(*given)


def _end_with(watched: Connection) -> None:
    """End this process when the other end of the pipe is closed, as it is when its process dies, however it dies."""
    watched.poll(None)
    os._exit(1)


def keep_memory() -> None:
    """For processes started from here: without this, glibc gives every layer's memory back to the system."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4000000000")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8000000000")
