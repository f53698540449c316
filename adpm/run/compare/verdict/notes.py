"""How to read a verdict: what its figures are, and how far they can be trusted."""

from __future__ import annotations

import math

import numpy as np

from adpm.run.compare.markdown import bold, short
from adpm.run.compare.merit import BITS, DISTANCE, plus_minus, ranked
from adpm.run.compare.results import Results
from adpm.run.compare.verdict.answer import FEW


def notes(results: Results) -> list[str]:
    """One paragraph for each thing to know."""
    out = [_of_distances(results), *_of_seeds(results), _of_bits(results), *_NOTES]
    if len(results.methods) > 1:
        out.append(
            f"{bold('Selection bias')}: the best of {len(results.methods)} methods is chosen by the figures that are "
            "told, so its own are slightly optimistic."
        )
    if len(results.formulations) > 1:
        out.append("Formulations are different networks, and a difference between them includes the networks'.")
    return out


def _of_distances(results: Results) -> str:
    count = len(results.seeds)
    seeds = f"mean over {count} seeds, ± their standard deviation" if count > 1 else "one seed"
    return (
        f"{bold('Frechet distance')}: {results.samples:,} samples against the real images in the features "
        f"`{results.features}`, {seeds}. As many real images, drawn with replacement, score {floor_text(results)}; "
        f"values below it are not better than real. {DISTANCE.rule(results)}"
    )


def _of_seeds(results: Results) -> list[str]:
    """What few seeds mean for the ± of a single method."""
    order = ranked(results.at(results.shown), DISTANCE)
    chance = DISTANCE.chance(order[0], order[1:])[0] if order[1:] else None
    if chance is None or len(results.seeds) >= FEW:
        return []
    return [
        f"{bold('Few seeds')}: the pooled standard error of a difference is {short(chance.error)} at "
        f"K = {results.shown}; a ± of a single method far below that is luck."
    ]


def _of_bits(results: Results) -> str:
    images = max((row.bound.images for row in results.rows if row.bound is not None), default=0)
    if not images:
        return f"{bold('bits/dim')}: no method of this comparison has a bound."
    uniform = ""
    if results.levels:
        cost, order = math.log2(results.levels), ranked(results.at(results.shown), BITS)
        worse = sum((BITS.value(row) or 0.0) > cost for row in order)
        uniform = (
            f" The uniform code of {results.levels} levels spends {cost:.2f} bits/dim; {worse} of {len(order)} methods "
            f"at K = {results.shown} are worse than that."
        )
    return (
        f"{bold('bits/dim')}: the variational bound on {images} images of `{results.split}`, one draw of noise, ± one "
        f"standard error over images; decoder variance `{results.decoder}`; none exists at eta = 0.{uniform} "
        + BITS.rule(results)
    )


_NOTES = (
    "**variance ÷ measured**: mean reverse variance over lambda2 + gain^2 E[(x0 - x0_hat)^2], the best single one, "
    "measured on training images; geometric mean over the steps that land in a band of log-SNR. At eta = 0 it is 0 for "
    "`small` by construction, which is no fault.",
    "**last noise ÷ sigma**: of the last noisy step, where it lands; above 1, the last call is told of less noise than "
    "there is. **clipped**: share of the variances that the rule's bounds changed.",
    "**path**: data term, prior, and what these steps would cost with the best single variances. **size**: what the "
    "rule's mean variances, over samples, cost beyond that. **rest**: from variances that differ between pixels and "
    "states (below 0 they save, far above 0 some are too small), and from images whose errors are not those of the "
    "training images. With one variance a step it is the images alone; between rules of a formulation with the same "
    "path and the same mean variances, a difference in it is the pixels' and states'.",
)


def floor_text(results: Results, sign: str = " ± ") -> str:
    """What real images score."""
    values = results.floor
    return plus_minus(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, sign)
