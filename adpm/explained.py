"""How much of a network's score a model of the data explains: how far a start may jump by it.

    share_t = E[ ||score_model(x_t) - score(x_t)||^2 / ||score(x_t)||^2 ],    1 - EV of Wang & Vastola (2024)

the mean over draws x_t = alpha x_0 + sigma eps of each draw's own ratio. Both scores are -eps_hat/sigma, so it is as
well the share of the noise prediction, before any clipping. Where the share is small, following the model in place of
the network goes nearly where the network would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t

from adpm.classes import at
from adpm.denoiser import Denoise, require_finite
from adpm.draws import Estimate, Source, noisy
from adpm.process import Process
from adpm.progress import Arrays

LEVEL = 0.01
"""A share of the score that is called free."""


def unexplained(
    denoise: Denoise,
    model: Denoise,
    process: Process,
    source: Source,
    times: Sequence[float],
    draws: int,
    seed: int,
    batch_size: int,
) -> Arrays:
    """The "share" at each of `times` and its standard "error", [T] each, from the draws that moments are measured on.

    Raises:
        UserError: if the network returned numbers that are not finite.
    """
    shares, errors = [], []
    for t in times:
        ratios = []
        for image, _, _, x in noisy(process, source, t, draws, seed, batch_size):
            eps = require_finite(at(denoise, image)(x, t), t).eps_network.double().flatten(1)
            off = model(x, t).eps_network.double().flatten(1) - eps
            ratios.append((off.square().sum(1) / eps.square().sum(1)).cpu().numpy())
        ratio = np.concatenate(ratios)
        shares.append(float(ratio.mean()))
        errors.append(float(ratio.std(ddof=1)) / len(ratio) ** 0.5)
    return {"share": np.array(shares), "error": np.array(errors)}


def reach(share: Estimate, level: float = LEVEL, confidence: float = 0.95) -> int | None:
    """Index of the earliest of the rising times from which on the share lies below `level`, with confidence.

    Each time is tested by itself, one-sided. None: not even at the last.
    """
    highest = share.values + student_t.ppf(confidence, share.freedom) * share.errors
    above = np.flatnonzero(~(highest < level))
    first = int(above[-1]) + 1 if above.size else 0
    return first if first < len(highest) else None
