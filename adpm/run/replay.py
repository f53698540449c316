"""Network calls of one shape: batches filled up to a fixed size, and recorded once on a GPU to be replayed.

A compiler makes a program for every shape, and a CUDA graph is a recording of one. So the last, smaller batch of a run
is filled up with copies of its last example, whose results are dropped: no example looks at another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public way to ask

from adpm.errors import UserError

Call = Callable[..., Tensor]
"""(x [B, ...], label [B], classes [B] or None) -> [B, ...]."""
Record = Callable[[Call, tuple[Tensor | None, ...]], Call]
"""A call and examples of what it is given -> the call for arguments of these shapes alone."""

WARM = 3  # calls before a recording: libraries choose their algorithms, compilers compile


def _differentiated(x: Tensor) -> bool:
    """Whether a derivative may be taken: then a call is made as it is."""
    return torch.is_grad_enabled() or is_functorch_wrapped_tensor(x)


def filled(call: Call, sizes: Collection[int]) -> Call:
    """`call` for batches of these sizes only; smaller ones are filled up to the next, larger ones are left alone."""
    known = sorted(sizes)

    def forward(x: Tensor, label: Tensor, *classes: Tensor | None) -> Tensor:
        count = len(x)
        size = next((size for size in known if size >= count), count)
        if size == count or _differentiated(x):
            return call(x, label, *classes)

        def fill(given: Tensor | None) -> Tensor | None:
            if given is None:
                return None
            return torch.cat([given, given[-1:].expand(size - count, *given.shape[1:])])

        return call(fill(x), fill(label), *map(fill, classes))[:count]

    return forward


class Replayed:
    """`call`, recorded for each shape that it meets, and replayed from then on.

    Args:
        call: reads its arguments and parameters where they lie, and nothing on the host.
        record: see `Record`; the recording's result may be overwritten by the next replay.
    """

    def __init__(self, call: Call, record: Record) -> None:
        self._call, self._record = call, record
        self._recordings: dict[tuple[object, ...], Call] = {}

    def __call__(self, *given: Tensor | None) -> Tensor:
        x = given[0]
        assert x is not None
        if _differentiated(x):
            return self._call(*given)
        key = tuple(None if a is None else (tuple(a.shape), a.stride(), a.dtype) for a in given)
        if key not in self._recordings:
            self._recordings[key] = self._record(self._call, given)
        return self._recordings[key](*given).clone()


def cuda_graphs() -> Record:
    """Recordings as CUDA graphs, which share their memory: each result is copied before the next replay.

    A recording raises UserError for a call that has to wait for the host.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(call: Call, given: tuple[Tensor | None, ...]) -> Call:
        with torch.inference_mode(False):  # written to from inside and outside of it
            static = [None if a is None else torch.empty_like(a, memory_format=torch.preserve_format) for a in given]
        _copy(given, static)
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                call(*static)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph, pool=pool):
                out = call(*static)
        except RuntimeError as error:
            told = str(error).strip().split("\n")[0]
            raise UserError(
                f"config.graphs = True, but a call of the network could not be recorded ({told}); set it to False."
            ) from error

        def replay(*new: Tensor | None) -> Tensor:
            _copy(new, static)
            graph.replay()
            return out

        return replay

    return record


def _copy(given: tuple[Tensor | None, ...], static: list[Tensor | None]) -> None:
    for new, there in zip(given, static, strict=True):
        if new is not None and there is not None:
            there.copy_(new)
