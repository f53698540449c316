"""--mode=likelihood: the variational bound of a split in bits/dim, term by term, with error bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from adpm.errors import UserError
from adpm.likelihood import bits_per_dim, keyed_noise, path_terms, prior_nats
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.checks import likelihood_methods
from adpm.run.files import digest, write_json
from adpm.run.paths import kernel_name, kernel_protocol, path_for
from adpm.run.prepare import variance_for
from adpm.run.report import Report, say
from adpm.run.shards import Arrays, sharded
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
    if session.config.sampling.eta == 0.0:
        raise UserError("the bound is infinite at config.sampling.eta = 0 (DDIM); use a value in (0, 1].")
    return lambda: _evaluate(session)


def _evaluate(session: Session) -> BitsPerDim:
    section = session.config.likelihood
    _ = session.model
    session.used_moments = False
    stored = session.data.split(section.split)
    images = min(section.images or len(stored), len(stored))
    path = path_for(session)
    if path.indices[-1] != session.process.steps:
        raise UserError(
            f"config.trajectory.name = '{session.config.trajectory.name}' starts at t = {path.times[-1]:g}; a bound "
            f"needs a path from t = {session.process.times[-1]:g}, such as 'even' or 'least_cost'."
        )
    evaluate = Evaluation(session, path.times)
    protocol = {**kernel_protocol(session, path), "split": section.split, "decoder": section.decoder}
    name = f"{kernel_name(session)}-{section.decoder}-{section.split}-{digest(protocol)}"
    folder = session.workdir / "likelihood" / name
    parts = list(sharded(folder / "batches", images, section.batch_size, evaluate, "likelihood"))
    write_json(folder / "protocol.json", {**protocol, "images": images})
    terms = np.concatenate([part["terms"] for part in parts], axis=1)
    sizes = [part["terms"].shape[1] for part in parts]
    clipped = np.average([part["clipped"].astype(np.float64) for part in parts], axis=0, weights=sizes)
    return _report(session, folder, path.times, terms, clipped)


class Evaluation:
    """Image numbers -> terms in nats [K+1, B]: row 0 is the data term, row K the prior."""

    def __init__(self, session: Session, times: Array) -> None:
        variance = variance_for(session)
        self.session, self.times = session, times
        self.rule, self.decoder = session.rule(variance, times), session.decoder(variance)

    @torch.inference_mode()
    def __call__(self, items: range) -> Arrays:
        session = self.session
        numbers = torch.arange(items.start, items.stop)
        x0 = session.images(session.config.likelihood.split, numbers).double()
        noise = keyed_noise(session.config.seed, session.process, numbers.to(x0.device), session.data.shape, x0.dtype)
        bounds = list(
            path_terms(
                session.model.denoise,
                session.process,
                self.rule,
                self.decoder,
                session.levels,
                self.times,
                x0,
                noise,
                session.config.sampling.eta,
            )
        )
        for term in bounds:
            if not torch.isfinite(term.nats).all():
                raise UserError(
                    f"the bound is not finite in the step {term.t:g} -> {term.s:g}: a variance there is zero or "
                    "negative (config.rule, config.sampling.eta), or the network returned NaN (its weights)."
                )
        rows = [b.nats for b in reversed(bounds)] + [prior_nats(session.process, x0)]
        clipped = [float(b.clipped) for b in reversed(bounds)]
        return {"terms": torch.stack(rows).cpu().numpy(), "clipped": np.array(clipped)}


def _report(session: Session, folder: Path, times: Array, terms: Array, clipped: Array) -> BitsPerDim:
    dim = int(np.prod(session.data.shape))
    bits = np.asarray(bits_per_dim(terms, dim))
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
