"""Images into other images: source images noised to a time of the process, and walked back from there under guidance.

Without energies that is SDEdit (Meng et al. 2022), with those of adpm/egsde.py it is EGSDE (Zhao et al. 2022). Where it
is repeated, what came of a walk is noised anew by a new draw and walked back again; the energies go on comparing with
the source itself, noised by that draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adpm.classes import at
from adpm.denoiser import Denoise
from adpm.drawing import STREAM, draw_batch
from adpm.egsde import Noised, matching
from adpm.energies import Energy, Steered
from adpm.errors import UserError
from adpm.noise import KeyedNoise
from adpm.process import Array, Process
from adpm.progress import Arrays
from adpm.sampler import keyed
from adpm.shortest_path import IntArray
from adpm.solver import Solver

Energies = Callable[[Noised], Sequence[tuple[Energy, float]]]
"""The energies of a batch of sources, with their weights."""


class FromImages:
    """x_t = alpha_t x_0 + sigma_t e of given images x_0, [B, ...], at the path's own last time."""

    respend = False
    mixture = None

    def __init__(self, process: Process, x0: Tensor) -> None:
        self.process, self.x0 = process, x0

    def landing(self, indices: IntArray) -> int:
        return int(indices[-1])

    def __call__(self, t: float, noise: Tensor) -> Tensor:
        return Noised(self.process, matching(self.x0, noise), noise)(t)


def start_index(process: Process, share: float) -> int:
    """The reference time, by its index, that is `share` of all N: M = round(share N), at least 1.

    Raises:
        UserError: if the share does not lie in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"`share` = {share} of the reference times must lie above 0, and be at most 1.")
    return max(1, round(share * process.steps))


@dataclass(frozen=True)
class Translator:
    """What turns images into others.

    Attributes:
        denoise: of the images that they are to become.
        solver, process: take the steps.
        times: [K+1], increasing from 0 to the time that sources are noised to.
        energies: that guide; none: SDEdit.
        repeats: walks, one after the other.
        seed: of the noise, which is keyed by the images' numbers.
        clip: data range (a, b) that a guided x0 is limited to, or None.
        eps_after_clip: a key of EPS_AFTER_CLIP.
    """

    denoise: Denoise
    solver: Solver
    process: Process
    times: Array
    energies: Energies = lambda source: ()
    repeats: int = 1
    seed: int = 0
    clip: tuple[float, float] | None = None
    eps_after_clip: str = "rederive"

    def translate(self, x0: Tensor, numbers: Tensor) -> Arrays:
        """What becomes of source images.

        Args:
            x0: [B, ...].
            numbers: theirs, [B].

        Returns:
            See `adpm.drawing.draw_batch`: "samples" are the new images, of the last walk as the rest is, but "nfe" and
            "seconds" are of all.

        Raises:
            UserError: if there is no repetition at all, or as guidance and solver raise.
        """
        if self.repeats < 1:
            raise UserError(f"`repeats` = {self.repeats} must be at least 1.")
        images, calls, seconds, shape = x0, 0, 0.0, tuple(x0.shape[1:])
        for number in range(self.repeats):
            stream = STREAM if number == 0 else f"repetition {number}"
            noise = keyed(KeyedNoise(self.seed, stream), numbers, shape, x0.dtype)(0)  # e: what the walk begins with
            terms = self.energies(Noised(self.process, x0, noise))
            limits = {"clip": self.clip, "eps_after_clip": self.eps_after_clip}
            steered = Steered(at(self.denoise, numbers), self.process, terms, **limits)  # type: ignore[arg-type]
            begin = FromImages(self.process, images)
            given = (self.solver, self.process, self.times, numbers, shape, self.seed, begin, stream)
            walked = draw_batch(steered, *given)
            images = torch.as_tensor(walked["samples"], device=x0.device)
            calls, seconds = calls + int(walked["nfe"]), seconds + float(walked["seconds"])
        return {**walked, "nfe": np.array(calls), "seconds": np.array(seconds)}
