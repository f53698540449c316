"""The variational bound of a set of images in batches, term by term, with error bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adpm.classes import at
from adpm.denoiser import Denoise
from adpm.errors import UserError
from adpm.likelihood import (
    Decoder,
    Levels,
    bits_per_dim,
    keyed_noise,
    measure_statistics,
    path_terms,
    prior_nats,
)
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep, in_memory
from adpm.variance import Rule

Images = Callable[[Tensor], Tensor]
"""Numbers [B] -> images [B, ...] in the network's range, on its device."""


@dataclass(frozen=True)
class BitsPerDim:
    """A figure over images: the mean and its standard error (None for a single image)."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, bits: Array | Tensor) -> BitsPerDim:
        """Of one number per image."""
        values = np.asarray(bits)
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return cls(float(values.mean()), error)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" +- {self.error:.4f}" if self.error is not None else "")


@dataclass(frozen=True)
class Bound:
    """The bound of a set of images, in bits per dimension.

    Attributes:
        bits: [K+1, images]: row 0 is the data term, row k the step from times[k+1], row K the prior.
        times: [K+1], the path.
        clipped: [K], share of the values that bounds of the rule changed, of the term from times[1:].
        other: [images], the data term with the second decoder; None where there is none.
    """

    bits: Array
    times: Array
    clipped: Array
    other: Array | None = None

    @property
    def total(self) -> BitsPerDim:
        """The bound, with its error over images."""
        return BitsPerDim.of(self.bits.sum(0))

    @property
    def with_other(self) -> BitsPerDim | None:
        """The same path with the second decoder."""
        return None if self.other is None else BitsPerDim.of(self.bits[1:].sum(0) + self.other)

    def __str__(self) -> str:
        return f"{self.total} bits/dim"


@dataclass(frozen=True)
class Terms:
    """What a bound is made of: the reverse process and what the data look like.

    Attributes:
        denoise, process, rule, eta: the reverse process.
        decoder: variance of the last step.
        levels: of the data.
        times: [K+1], the path.
        other: a second decoder, whose data term stands beside the first's.
    """

    denoise: Denoise
    process: Process
    rule: Rule
    decoder: Decoder
    levels: Levels
    times: Array
    eta: float = 1.0
    other: Decoder | None = None

    @torch.inference_mode()
    def of(self, x0: Tensor, numbers: Tensor, seed: int) -> Arrays:
        """Terms in nats [K+1, B] of images with these numbers, which key their noise.

        Raises:
            UserError: if a term is not finite.
        """
        noise = keyed_noise(seed, self.process, numbers, tuple(x0.shape[1:]), x0.dtype)
        denoise = at(self.denoise, numbers)
        steps = list(
            path_terms(denoise, self.process, self.rule, self.decoder, self.levels, self.times, x0, noise, self.eta)
        )
        for term in steps:
            if not torch.isfinite(term.nats).all():
                raise UserError(
                    f"the bound is not finite in the step {term.t:g} -> {term.s:g}: a variance there is zero or "
                    "negative (`rule.name`, `sampling.eta`), or the network returned NaN (its weights)."
                )
        rows = [b.nats for b in reversed(steps)] + [prior_nats(self.process, x0)]
        out: Arrays = {
            "terms": torch.stack(rows).cpu().numpy(),
            "clipped": np.array([float(b.clipped) for b in reversed(steps)]),
        }
        if self.other is not None:
            args = (denoise, self.process, self.other, self.levels, self.times[1:2], x0, noise)
            out["other"] = next(measure_statistics(*args))[2]
        return out


def bound_of(
    terms: Terms, images: Images, count: int, *, seed: int = 0, batch_size: int = 256, keep: Keep = in_memory
) -> Bound:
    """The bound of images 0..count-1, one draw per image and time; batching changes nothing.

    Args:
        terms: what it is made of.
        images: gives them by number.
        count: how many.
        seed: of the noise.
        batch_size: images per network call.
        keep: see `Keep`.
    """

    def work(items: range) -> Arrays:
        numbers = torch.arange(items.start, items.stop)
        x0 = images(numbers).double()
        return terms.of(x0, numbers.to(x0.device), seed)

    parts = list(keep(count, batch_size, work, "likelihood"))
    nats = np.concatenate([part["terms"] for part in parts], axis=1)
    clipped = [part["clipped"].astype(np.float64) for part in parts]
    dim = int(np.prod(images(torch.zeros(1, dtype=torch.int64)).shape[1:]))
    other = None
    if terms.other is not None:
        other = np.asarray(bits_per_dim(np.concatenate([part["other"].astype(np.float64) for part in parts]), dim))
    return Bound(
        np.asarray(bits_per_dim(nats, dim)),
        terms.times,
        np.average(clipped, axis=0, weights=[part["terms"].shape[1] for part in parts]),
        other,
    )
