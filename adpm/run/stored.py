"""The images of a split, in memory or in files: numbers of images in, their levels out.

What lies in files is listed or mapped, not loaded, and read when it is asked for. Long passes and training name the
batches that they will want, and worker processes read these ahead (torch's DataLoader): processes, because Python
itself takes most of the time that a small image needs, and would take it from the network's own thread. The batches
and their order are the same for any number of workers.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adpm.errors import UserError

AHEAD = 2
"""Batches that a worker has ready."""


class Images(Protocol):
    """Images [n, C, H, W]: a tensor, or what gives tensors when it is asked for some of them."""

    @property
    def shape(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


class Stored(ABC):
    """Images in files, uint8 [n, C, H, W].

    Attributes:
        shape: (n, C, H, W).
        workers: processes that read ahead; 0: this one reads when it must.
    """

    shape: tuple[int, ...]
    workers: int = 0

    @abstractmethod
    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of these numbers, [B, C, H, W].

        Raises:
            UserError: naming what is wrong with the file of one.
        """

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """The images of a tensor of numbers or of a slice, read now."""
        numbers = np.arange(len(self))[index] if isinstance(index, slice) else index.cpu().numpy()
        return torch.from_numpy(self.read(numbers.astype(np.int64)))

    def ahead(self, batches: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """The images of every batch of numbers, in order; workers read the next ones meanwhile.

        Raises:
            UserError: as `read` does, or if a worker was ended by the system.
        """
        if not self.workers:
            yield from (self[numbers] for numbers in batches)
            return
        loader = DataLoader(
            _Batches(self),
            batch_size=None,  # what the sampler gives is a batch
            sampler=batches,
            num_workers=self.workers,
            prefetch_factor=AHEAD,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # torch's own generator is not to move
        )
        try:
            for found in loader:
                if isinstance(found, UserError):
                    raise found
                yield found
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise UserError(
                "a process that reads images was ended by the system, perhaps for want of memory; use fewer by "
                f"config.data.workers (now {self.workers})."
            ) from error


class _Batches(Dataset[Any]):
    """Batches of numbers -> images, for workers: what is wrong with a file comes back as a value, in one sentence."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def __getitem__(self, numbers: Tensor) -> Tensor | UserError:
        try:
            return self._stored[numbers]
        except UserError as error:
            return error


def _begin(worker: int) -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends when that one does or says so: no accident."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


class Mapped(Stored):
    """Images in an npy file [n, C, H, W], mapped into memory only while some are read: what was read does not stay.

    Args:
        path: of the file.
        count: only the first so many; None: all.

    Raises:
        OSError, ValueError, EOFError: if it is no such file.
    """

    def __init__(self, path: Path, count: int | None = None) -> None:
        self._path = path
        there = self._array.shape
        self.shape = (there[0] if count is None else count, *there[1:])

    @property
    def _array(self) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return found

    def read(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        return self._array[numbers]


class Joined(Stored):
    """The images of several, one after the other.

    Args:
        parts: of one shape.
        workers: see `Stored`.
    """

    def __init__(self, parts: Sequence[Stored], workers: int = 0) -> None:
        self._parts, self.workers = parts, workers
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        of = np.searchsorted(self._starts, numbers, side="right") - 1
        for k in np.unique(of):
            out[of == k] = self._parts[k].read(numbers[of == k] - self._starts[k])
        return out


def joined(parts: Sequence[Images]) -> Images:
    """The images of several, one after the other, in memory or in files as they are."""
    stored = [part for part in parts if isinstance(part, Stored)]
    if len(stored) < len(parts):
        return torch.cat([part[:] for part in parts])
    return Joined(stored, max(part.workers for part in stored))


def in_batches(images: Images, batches: Iterable[Tensor]) -> Generator[Tensor, None, None]:
    """The images of every batch of numbers, in order, read ahead where they lie in files."""
    return images.ahead(batches) if isinstance(images, Stored) else (images[numbers] for numbers in batches)


class Scaled:
    """Images in files as a network sees them: read and scaled when some are asked for, float32."""

    def __init__(self, stored: Images, scale: Callable[[Tensor], Tensor]) -> None:
        self._stored, self._scale, self.shape = stored, scale, torch.Size(stored.shape)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        return self._scale(self._stored[index])

    def is_floating_point(self) -> bool:
        return True


class Later(Mapping[str, Any]):
    """A mapping whose names are known, and whose values are read when one is asked for.

    Args:
        names: its keys.
        read: all values by name; called once.
    """

    def __init__(self, names: Iterable[str], read: Callable[[], Mapping[str, Any]]) -> None:
        self._names, self._read = tuple(names), read
        self._found: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if self._found is None:
            self._found = self._read()
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
