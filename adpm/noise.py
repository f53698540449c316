"""Standard normal noise that is a pure function of (seed, stream, sample, step, element).

Sample i sees the same noise whatever the batch size, the number of processes or the device, and after a resume,
because nothing is stateful: a counter-based generator (Philox4x32-10, Salmon et al. 2011) maps the key
(seed, stream) and the counter (sample, step, block) to 128 random bits, and Box-Muller turns them into normals.
"""

from __future__ import annotations

import functools
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Called by a solver when, and only when, a step needs standard normal noise of the shape of its state.

    Different numbers `draw` give independent noise; a step that needs one draw takes number 0.
    """

    def __call__(self, draw: int = 0) -> Tensor: ...


Word = int | Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Sequence[Tensor], key: tuple[Word, Word]) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors that broadcast and hold 32-bit words, two 32-bit keys -> four random words.

    A product wraps modulo 2^64, which leaves the 64 bits of the unsigned one. Low halves are cut to 32 bits when they
    have been mixed into the next word, which needs no more.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & _MASK, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1 & _MASK, c2, c3 & _MASK]


def _pairs(samples: Tensor, step: Tensor, key: Tensor, blocks: int) -> Tensor:
    """The words of samples [B] in this step, [2, 2, B, blocks]: of each of two pairs first the left ones."""
    index = samples[:, None]
    block = torch.arange(blocks, dtype=torch.int64, device=samples.device)[None]
    words = philox4x32([block, index & _MASK, index >> 32, step], (key[0], key[1]))
    return torch.stack([words[0], words[2], words[1], words[3]]).unflatten(0, (2, 2))


@functools.cache
def _fused() -> Callable[..., Tensor]:
    """`_pairs` in a few kernels instead of a hundred; whole numbers, so that no bit depends on who compiles them."""
    compiled = torch.compile(_pairs, dynamic=True)
    usable = [True]

    def call(samples: Tensor, step: Tensor, key: Tensor, blocks: int) -> Tensor:
        if usable[0]:
            try:
                return compiled(samples, step, key, blocks)
            except Exception as error:  # compilers fail in many ways, and noise must not
                usable[0] = False
                warnings.warn(f"noise is made in many kernels, as nothing compiles here ({error})", stacklevel=2)
        return _pairs(samples, step, key, blocks)

    return call


class KeyedNoise:
    """Noise for the samples of one run.

    Args:
        seed: the run's seed.
        stream: what the noise is for ("sample", "moments", ...): different streams are independent.
        fused: whether a compiler fuses the arithmetic, with the same bits; None: on GPUs, where it is worth it.

    `noise(samples, step, shape)` returns [len(samples), *shape] float32 on the device of `samples`.
    """

    def __init__(self, seed: int, stream: str, fused: bool | None = None) -> None:
        self._key = (seed & _MASK, zlib.crc32(f"{stream}:{seed >> 32}".encode()))
        self._is_fused = fused

    def __call__(self, samples: Tensor, step: int, shape: Sequence[int]) -> Tensor:
        size, device = math.prod(shape), samples.device
        words = _fused() if (samples.is_cuda if self._is_fused is None else self._is_fused) else _pairs
        # Filled on the device: nothing is copied there, and a compiler takes them for numbers that change.
        key = [torch.full((), number, dtype=torch.int64, device=device) for number in (step, *self._key)]
        left, right = words(samples.to(torch.int64), key[0], torch.stack(key[1:]), (size + 3) // 4)
        z = _box_muller(left, right).permute(1, 2, 0, 3)
        return z.reshape(len(samples), -1)[:, :size].reshape(len(samples), *shape)

    def integers(self, samples: Tensor, below: int) -> Tensor:
        """One whole number of 0..below - 1 for each sample, [len(samples)] int64, evenly to a share of below / 2^32.

        They are independent of the noise of all steps less than 2^32 - 1.
        """
        index = samples.to(torch.int64)
        zeros = torch.zeros_like(index)
        words = philox4x32([zeros, zeros + (index & _MASK), zeros + (index >> 32), zeros + _MASK], self._key)
        return (words[0] * below) >> 32


def _box_muller(left: Tensor, right: Tensor) -> Tensor:
    """Pairs of 32-bit words -> two standard normals each, in float32 stacked along a new last axis.

    The radius uses u in (0, 1] with 32 bits, so |z| reaches 6.7; float64 inside, because log(u) near u = 1 and the
    smallest u both need more than float32 holds.
    """
    radius = torch.sqrt(-2.0 * torch.log((left.double() + 1.0) * 2.0**-32)).float()
    angle = (right.double() * (2.0 * math.pi * 2.0**-32)).float()
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
