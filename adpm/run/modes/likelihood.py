"""--mode=likelihood: the variational bound of a split in bits/dim, term by term, with error bars."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from adpm.run.assembly import Session
from adpm.run.bound import Evaluated, bound_for, check_bound
from adpm.run.checks import likelihood_methods
from adpm.run.files import write_json
from adpm.run.report import Report, say
from adpm.run.tables import BitsPerDim


def likelihood(session: Session) -> None:
    """Evaluate config.likelihood.split by config.likelihood.method; several, joined by '+', end side by side."""
    methods = likelihood_methods(session.config)
    prepared = [session.tables.likelihoods[name](session) for name in methods]
    results = [work() for work in prepared]
    if len(results) > 1:
        told = ", ".join(f"{name} {result}" for name, result in zip(methods, results, strict=True))
        say(f"bits/dim side by side: {told}.")


def bound(session: Session) -> Callable[[], BitsPerDim]:
    """The variational bound along the config's path."""
    check_bound(session)
    return lambda: _report(session, bound_for(session))


def _report(session: Session, found: Evaluated) -> BitsPerDim:
    bits, times, clipped, folder = found.bits, found.times, found.clipped, found.folder
    total = BitsPerDim.of(bits.sum(0))
    images = bits.shape[1]
    result = {
        "bits_per_dim": total.mean,
        "standard_error": total.error,
        "data_term": float(bits[0].mean()),
        "kl_terms": float(bits[1:-1].sum(0).mean()),
        "prior": float(bits[-1].mean()),
        "images": images,
        "decoder": session.config.likelihood.decoder,
        "split": session.config.likelihood.split,
        "steps": len(times) - 1,
        "curve": {
            "t": times[1:].tolist(),
            "bits_per_dim": bits[:-1].mean(1).tolist(),
            "clipped_share": clipped.tolist(),
        },
    }
    write_json(folder / "result.json", result)
    report = Report(session.workdir / "tensorboard" / "likelihood" / folder.name)
    for t, value in zip(times[1:], bits[:-1].mean(1), strict=True):
        report.scalars({"bound/term_bits_per_dim": float(value)}, int(np.searchsorted(session.process.times, t)))
    for key in ("bits_per_dim", "data_term", "kl_terms", "prior"):
        report.scalars({f"bound/{key}": float(result[key])}, len(times) - 1)
    report.close()
    say(
        f"{total} bits/dim ({images} {result['split']} images, one draw each, "
        f"K = {len(times) - 1}, decoder variance '{result['decoder']}', +- one standard error)"
    )
    say(
        f"  data term {result['data_term']:.4f}, KL terms {result['kl_terms']:.4f}, prior {result['prior']:.5f}; "
        f"bounds acted in {np.count_nonzero(clipped)} of {len(clipped)} steps"
    )
    say(f"result:      {folder / 'result.json'}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
    return total
