"""--mode=likelihood: bits/dim of a split with error bars, by the bound term by term and by other methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from adpm.bound import BitsPerDim, Bound
from adpm.families import Kind
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.bound import PUBLISHED, bound_for, check_bound
from adpm.run.paths import check_path
from adpm.run.report import Report
from adpm.run.store import write_json


def likelihood(session: Session) -> None:
    """Evaluate config.likelihood.split by config.likelihood.method; several, joined by '+', end side by side."""
    methods = str(session.config.likelihood.method).split("+")
    prepared = [session.house.families["likelihood"][name].build(session) for name in methods]
    results = [work() for work in prepared]
    if len(results) > 1:
        told = ", ".join(f"{name} {result}" for name, result in zip(methods, results, strict=True))
        say(f"bits/dim side by side: {told}.")


def _bound(session: Session) -> Callable[[], BitsPerDim]:
    check_bound(session)
    check_path(session)
    return lambda: _report(session, *bound_for(session))


def _report(session: Session, found: Bound, folder: Path) -> BitsPerDim:
    """Files, TensorBoard and a few lines."""
    bits, times, clipped, total = found.bits, found.times, found.clipped, found.total
    section, other = session.config.likelihood, found.with_other
    result = {
        "bits_per_dim": total.mean,
        "standard_error": total.error,
        "data_term": float(bits[0].mean()),
        "kl_terms": float(bits[1:-1].sum(0).mean()),
        "prior": float(bits[-1].mean()),
        "images": bits.shape[1],
        "decoder": section.decoder,
        "split": section.split,
        "steps": len(times) - 1,
        "published_decoder": None if other is None else other.mean,
        "curve": {
            "t": times[1:].tolist(),
            "bits_per_dim": bits[:-1].mean(1).tolist(),
            "clipped_share": clipped.tolist(),
        },
    }
    write_json(folder / "result.json", result)
    with Report(session.workdir / "tensorboard" / "likelihood" / folder.name) as report:
        steps = np.searchsorted(session.process.times, times[1:]).tolist()
        report.curve("bound/term_bits_per_dim", dict(zip(steps, bits[:-1].mean(1).tolist(), strict=True)))
        for key in ("bits_per_dim", "data_term", "kl_terms", "prior"):
            report.scalars({f"bound/{key}": float(result[key])}, len(times) - 1)
    say(
        f"{total} bits/dim ({bits.shape[1]} {section.split} images, one draw each, K = {len(times) - 1}, decoder "
        f"variance '{section.decoder}', +- one standard error)"
    )
    if other is not None and section.decoder != PUBLISHED:
        say(f"  the same path with decoder variance '{PUBLISHED}': {other} bits/dim")
    say(
        f"  data term {result['data_term']:.4f}, KL terms {result['kl_terms']:.4f}, prior {result['prior']:.5f}; "
        f"bounds acted in {np.count_nonzero(clipped)} of {len(clipped)} steps"
    )
    say(f"result:      {folder / 'result.json'}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
    return total


LIKELIHOODS: dict[str, Kind] = {
    "bound": Kind(
        _bound,
        "the variational bound along the config's path",
        reads=("rule.name", "sampling.eta", "likelihood.decoder"),
    ),
}
"""Ways to measure bits/dim: a builder checks the session's fields, and what it returns does the work and reports it."""
