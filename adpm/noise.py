"""Standard normal noise that is a pure function of (seed, stream, sample, step, element).

Sample i sees the same noise whatever the batch size, the number of processes or the device, and after a resume,
because nothing is stateful: a counter-based generator (Philox4x32-10, Salmon et al. 2011) maps the key
(seed, stream) and the counter (sample, step, block) to 128 random bits, and Box-Muller turns them into normals.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """Called by a solver when, and only when, a step needs standard normal noise of the shape of its state.

    Different numbers `draw` give independent noise; a step that needs one draw takes number 0.
    """

    def __call__(self, draw: int = 0) -> Tensor: ...


_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _mul_hi_lo(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    product = word * multiplier  # wraps modulo 2^64: the 64 bits of the unsigned product
    return (product >> 32) & _MASK, product & _MASK


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors holding 32-bit words and two 32-bit keys -> four words of random bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(_MULTIPLIERS[0], c0)
        hi1, lo1 = _mul_hi_lo(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


class KeyedNoise:
    """Noise for the samples of one run.

    Args:
        seed: the run's seed.
        stream: what the noise is for ("sample", "moments", ...): different streams are independent.

    `noise(samples, step, shape)` returns [len(samples), *shape] float32 on the device of `samples`.
    """

    def __init__(self, seed: int, stream: str) -> None:
        self._key = (seed & _MASK, zlib.crc32(f"{stream}:{seed >> 32}".encode()))

    def __call__(self, samples: Tensor, step: int, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        blocks = torch.arange((size + 3) // 4, dtype=torch.int64, device=samples.device)
        index = samples.to(torch.int64)[:, None]
        zeros = torch.zeros_like(index * blocks)
        words = philox4x32([zeros + blocks, zeros + (index & _MASK), zeros + (index >> 32), zeros + step], self._key)
        return _box_muller(words).reshape(len(samples), -1)[:, :size].reshape(len(samples), *shape)

    def integers(self, samples: Tensor, below: int) -> Tensor:
        """One whole number of 0..below - 1 for each sample, [len(samples)] int64, evenly to a share of below / 2^32.

        They are independent of the noise of all steps less than 2^32 - 1.
        """
        index = samples.to(torch.int64)
        zeros = torch.zeros_like(index)
        words = philox4x32([zeros, zeros + (index & _MASK), zeros + (index >> 32), zeros + _MASK], self._key)
        return (words[0] * below) >> 32


def _box_muller(words: list[Tensor]) -> Tensor:
    """Two pairs of 32-bit words -> four standard normals, in float32 stacked along a new last axis.

    The radius uses u in (0, 1] with 32 bits, so |z| reaches 6.7; float64 inside, because log(u) near u = 1 and the
    smallest u both need more than float32 holds.
    """
    out = []
    for a, b in ((words[0], words[1]), (words[2], words[3])):
        radius = torch.sqrt(-2.0 * torch.log((a.double() + 1.0) * 2.0**-32)).float()
        angle = (b.double() * (2.0 * math.pi * 2.0**-32)).float()
        out += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(out, dim=-1)
