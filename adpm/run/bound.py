"""The variational bound of a session, term by term: batches on disk read, the others evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adpm.errors import UserError
from adpm.likelihood import bits_per_dim, keyed_noise, path_terms, prior_nats
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.files import digest, write_json
from adpm.run.paths import ChosenPath, kernel_name, kernel_protocol, path_for
from adpm.run.prepare import variance_for
from adpm.run.shards import Arrays, sharded


class NoBoundError(UserError):
    """A sampler that has no finite variational bound."""


@dataclass(frozen=True)
class Evaluated:
    """The bound of a split, in bits per dimension.

    Attributes:
        bits: [K+1, images]: row 0 is the data term, row k the step from times[k+1], row K the prior.
        times: [K+1], the path.
        clipped: [K], share of the values that bounds of the rule changed, of the term from times[1:].
        folder: where it lies, with its protocol.
    """

    bits: Array
    times: Array
    clipped: Array
    folder: Path


def check_bound(session: Session) -> None:
    """Refuse a config whose bound is known to be infinite.

    Raises:
        NoBoundError: naming the field.
    """
    if session.config.sampling.eta == 0.0:
        raise NoBoundError("the bound is infinite at config.sampling.eta = 0 (DDIM); use a value in (0, 1].")


def bound_for(session: Session, path: ChosenPath | None = None) -> Evaluated:
    """The bound of config.likelihood.split: batches on disk read, the others evaluated; moments and path as needed.

    Args:
        session: says what to evaluate.
        path: the config's own, if it is known already.

    Raises:
        NoBoundError: if there is none, because of eta or the path.
    """
    check_bound(session)
    section = session.config.likelihood
    _ = session.model
    session.used_moments = False
    stored = session.data.split(section.split)
    images = min(section.images or len(stored), len(stored))
    path = path or path_for(session)
    if path.indices[-1] != session.process.steps:
        raise NoBoundError(
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
    bits = np.asarray(bits_per_dim(terms, int(np.prod(session.data.shape))))
    return Evaluated(bits, path.times, clipped, folder)


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
