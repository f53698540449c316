"""What sampling and likelihood need first: moments, the data term, a rule's cost table. Each is made when missing, said
so, and kept by key in a cache that workdirs share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adpm.data_term import data_row, measure_data_row, planning_images
from adpm.draws import Estimate
from adpm.errors import UserError
from adpm.explained import unexplained
from adpm.ideal import IdealDenoiser, Mixture
from adpm.moments import MomentTable, implausible, spread_times
from adpm.ms_eps import read_ms_eps
from adpm.paths import measure_cost_table
from adpm.process import Array
from adpm.progress import Arrays, Keep, say
from adpm.run.assembly import Session, VarianceOf
from adpm.run.classes import of_images
from adpm.run.naming import naming
from adpm.run.store import Parts, digest, kept, parts_of, record
from adpm.run.weights import exact_digest
from adpm.target import reached


def cache(session: Session) -> Path:
    """Where what several workdirs may share is kept."""
    return session.cache


def moment_provenance(session: Session) -> dict[str, Any]:
    """What moments measured by this config depend on."""
    own = session.house.table.part(session.config, "moments")
    target = session.config.moments.target_error
    # A key of its own only where there is one: what was measured before there could be keeps its name.
    return {**session.identity, "split": "train", "own": own, **({"target_error": target} if target else {})}


def moments_for(session: Session) -> MomentTable:
    """The moment table: the file that the config names, the cache's, or a new one.

    Raises:
        UserError: if a named file is about another model (the differing entries are named).
    """
    section = session.config.moments
    with naming(session.house.table, "moments"):
        if section.ms_eps:
            return read_ms_eps(Path(section.ms_eps), session.process)
        if section.file:
            table = MomentTable.load(Path(section.file))
            _require(session, table, Path(section.file))
            return table
        path = moments_path(session)
        return kept(path, "moments", MomentTable.load, lambda: _measured(session, path), lambda table: table.save)


def _measured(session: Session, path: Path) -> MomentTable:
    section = session.config.moments
    say(f"no moments at '{path}': measuring them ({session.trunk.source}).")
    measured = session.front.measure(
        session.source("train"),
        section.draws,
        section.times,
        seed=session.config.seed,
        batch_size=section.batch_size,
        keep=Parts(parts_of(path)),
        provenance=moment_provenance(session),
        target_error=section.target_error,
    )
    if section.target_error:
        say(f"{reached(measured.table, section.target_error)}.")
    check_plausible(session, measured.table)
    return measured.table


def unexplained_for(session: Session, model: Mixture) -> Estimate:
    """The share of the network's score that the start's model leaves unexplained, at the times of the moments.

    Measured on the draws of the moments, with as many network calls.
    """
    section = session.config.moments
    kind = ("sampling", session.kind("sampling.start"))
    own = session.house.table.part(session.config, "moments", kind)
    key = {**moment_provenance(session), "own": own, "start": session.config.sampling.start}
    times, source = spread_times(session.process, section.times), session.source("train")
    denoise, other = session.front.denoise, IdealDenoiser(model, session.process)

    def work(items: range) -> Arrays:
        options = {"draws": section.draws, "seed": session.config.seed, "batch_size": section.batch_size}
        at = times[items.start : items.stop].tolist()
        return unexplained(denoise, other, session.process, source, at, **options)

    def make(keep: Keep) -> Arrays:
        say(f"measuring what '{session.config.sampling.start}' leaves unexplained of the score.")
        parts = list(keep(len(times), 1, work, "unexplained share"))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def check(arrays: Arrays) -> None:
        if not arrays["share"].shape == arrays["error"].shape == times.shape:
            raise ValueError(f"{arrays['share'].shape} shares of {len(times)} times")

    found = record(cache(session) / f"unexplained-{digest(key)}.npz", make, check)
    share, error = (found[name].astype(np.float64) for name in ("share", "error"))
    return Estimate(share, error, np.full(len(times), section.draws - 1.0))


def check_plausible(session: Session, table: MomentTable) -> None:
    """Say that a network is worse than none; refuse it where its file does not say what it is.

    Raises:
        UserError: naming what was assumed.
    """
    told = implausible(table, session.process)
    if told and session.trunk.assumed and not session.config.moments.implausible:
        raise UserError(
            f"{told}. '{session.trunk.source}' does not say what it is and was taken as {session.trunk.assumed}; set "
            "these fields to what it was trained with, or config.moments.implausible = True to go on."
        )
    if told:
        say(f"mind that {told}.")


def _require(session: Session, table: MomentTable, path: Path) -> None:
    """A named file is about this model. Files of version 0.1 said so in other words."""
    there, now = dict(table.provenance), session.identity
    if "model" in there:
        old: Mapping[str, Any] = there["model"]
        fields = {f"denoiser.{key}": value for key, value in old.items() if not isinstance(value, Mapping)}
        fields |= {**there.get("data", {}), "precision": there.get("precision")}
        known = {name: value for name, value in fields.items() if name in now["fields"]}
        there = {"weights": old.get("weights"), "log_snr": there.get("process"), "fields": known}
        own = {name: value for name, value in now["fields"].items() if name in known}
        now = {"weights": now["weights"], "log_snr": exact_digest(session.process), "fields": own}
        table = MomentTable(table.times, table.draws, table.data_variance, there)
    table.require(now, path)


def moments_key(session: Session) -> str:
    """What tells this session's moments from others: a named file's contents, or what its own are measured with."""
    section = session.config.moments
    named = section.ms_eps or section.file
    if named:
        return hashlib.sha256(Path(named).read_bytes()).hexdigest()[:12]
    return digest(moment_provenance(session))


def moments_path(session: Session) -> Path:
    """The cache's moments file for this model and these settings."""
    return cache(session) / f"moments-{moments_key(session)}.npz"


def variance_for(session: Session) -> VarianceOf:
    """Var_t by an estimator, measured on first use and kept."""
    kept: dict[str, Any] = {}

    def variance(estimator: str) -> Any:
        if estimator not in kept:
            kept[estimator] = moments_for(session).variance(estimator, session.process)
        return kept[estimator]

    return variance


def used_moments(session: Session, *choices: str) -> str | None:
    """The key of the moments if one of these chosen members needs them."""
    needed = any(getattr(session.kind(choice).facts, "uses_moments", False) for choice in choices)
    return moments_key(session) if needed else None


def used_statistics(session: Session, *choices: str) -> dict[str, str]:
    """The keys of what chosen members need to know of the network besides moments, by name."""
    family = session.house.families["statistics"]
    names = (getattr(session.kind(choice).facts, "statistics", "") for choice in choices)
    return {name: family[name].facts.key(session) for name in names if name}


def data_row_key(session: Session) -> dict[str, Any]:
    """Everything that the data term depends on."""
    decoder = ("likelihood", session.kind("likelihood.decoder"))
    return {
        **session.identity,
        "own": session.house.table.part(session.config, "moments", decoder),
        "decoder": session.config.likelihood.decoder,
        "moments": used_moments(session, "likelihood.decoder"),
    }


def data_row_for(session: Session) -> Array:
    """F[0, t] in nats per dimension for all reference times, [N+1]: the expected term of a last step t -> 0."""
    section, config = session.config.moments, session.config

    def make(keep: Keep) -> Arrays:
        say(f"measuring the data term with the '{config.likelihood.decoder}' decoder on training images.")
        numbers = planning_images(len(session.data.split("train")), section.draws, config.seed)
        return measure_data_row(
            session.front.denoise,
            session.process,
            session.decoder(variance_for(session)),
            session.levels,
            session.images("train"),
            numbers,
            spread_times(session.process, section.times),
            seed=config.seed,
            batch_size=config.likelihood.batch_size,
            keep=keep,
        )

    def check(arrays: Arrays) -> None:
        if not np.array_equal(arrays["times"], spread_times(session.process, section.times)):
            raise ValueError("other times")
        if arrays["nats"].shape != arrays["times"].shape or not np.isfinite(arrays["nats"]).all():
            raise ValueError("other numbers")

    return data_row(
        session.process, record(cache(session) / f"data-term-{digest(data_row_key(session))}.npz", make, check)
    )


def cost_table_for(session: Session, data_term: bool) -> Array:
    """F [N+1, N+1] of the config's rule in nats per dimension, measured on training images at every reference time.

    Finished times are kept, so that a killed run continues. Without the data term every path goes through the first
    reference time.
    """
    path = cache(session) / f"costs-{session.config.rule.name}-{digest(_cost_key(session, data_term))}.npz"
    config, shape = session.config, (session.process.steps + 1,) * 2

    def make(keep: Any) -> dict[str, Any]:
        draws = config.moments.draws
        say(f"measuring the bound at all {session.process.steps} times on {draws} training images: {path}")
        variance = variance_for(session)
        table = measure_cost_table(
            of_images(session, session.model.denoise, "train"),
            session.process,
            session.rule(variance, session.process.times[:2]),
            session.decoder(variance) if data_term else None,
            session.levels,
            session.images("train"),
            planning_images(len(session.data.split("train")), draws, config.seed),
            eta=config.sampling.eta,
            seed=config.seed,
            batch_size=config.likelihood.batch_size,
            keep=keep,
        )
        return {"table": table}

    def check(arrays: Arrays) -> None:
        if arrays["table"].shape != shape or np.isnan(arrays["table"].astype(np.float64)).any():
            raise ValueError(f"no table of {shape}")

    with naming(session.house.table):
        return record(path, make, check)["table"].astype(np.float64)


def _cost_key(session: Session, data_term: bool) -> dict[str, Any]:
    families = session.house.families
    kinds = [("trajectory", families["cost"]["measured"])]
    kinds += [("likelihood", session.kind("likelihood.decoder"))] if data_term else []
    choices = ("rule.name", "likelihood.decoder") if data_term else ("rule.name",)
    return {
        **session.identity,
        "head": session.model.head,
        "own": session.house.table.part(session.config, "costs", *kinds),
        "decoder": session.config.likelihood.decoder if data_term else None,
        "moments": used_moments(session, *choices),
        **used_statistics(session, "rule.name"),
    }
