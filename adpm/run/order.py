"""In which order training sees images: pieces of a fresh permutation per epoch, a function of the seed alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def mixed(seed: int, number: int) -> int:
    """A seed for torch, whose generator on the CPU reads 32 bits of it: the number itself for seed 0."""
    return (seed * 0x9E3779B1 + number) % 2**32


@lru_cache(maxsize=2)
def _permutation(seed: int, size: int) -> Tensor:
    """Of an epoch; kept, because one of a million numbers takes as long as a step."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def batch_indices(seed: int, iteration: int, batch_size: int, size: int) -> Tensor:
    """Indices of one batch: consecutive pieces of one fresh permutation per epoch."""
    first = iteration * batch_size
    epochs = range(first // size, (first + batch_size - 1) // size + 1)
    order = torch.cat([_permutation(mixed(seed, epoch), size) for epoch in epochs])
    start = first - epochs[0] * size
    return order[start : start + batch_size]
