"""What sampling and likelihood need first: moments, the data term, the path. Each is made when missing, and said so."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from adpm.cost_table import measure_column
from adpm.likelihood import NoiseAt, Statistics, keyed_noise, measure_statistics, prior_nats
from adpm.moments import Draws, MomentTable, measure, spread_times
from adpm.ms_eps import read_ms_eps
from adpm.planning import first_edges
from adpm.process import Array
from adpm.run.assembly import Session
from adpm.run.files import digest, write_whole
from adpm.run.report import progress, say
from adpm.run.shards import Arrays, read_arrays, save_arrays, sharded
from adpm.shortest_path import edge_table

_SECONDS_BETWEEN_SAVES = 20.0  # what a killed estimation loses at most


def moment_provenance(session: Session) -> dict[str, Any]:
    """What moments measured by this config depend on."""
    section = session.config.moments
    return {
        **session.model_identity,
        "split": "train",
        "draws": section.draws,
        "times": section.times,
        "seed": session.config.seed,
    }


def moments_for(session: Session) -> MomentTable:
    """The moment table: the file that the config names, the workdir's own, or a new one.

    Raises:
        UserError: if a named file is about another model (the differing entries are named).
    """
    section = session.config.moments
    session.used_moments = True
    if section.ms_eps:
        return read_ms_eps(Path(section.ms_eps), session.process)
    if section.file:
        table = MomentTable.load(Path(section.file))
        table.require(session.model_identity, Path(section.file))
        return table
    provenance = moment_provenance(session)
    path = moments_path(session)
    if path.exists():
        table = MomentTable.load(path)
        table.require(provenance, path)
        return table
    say(f"no moments at '{path}': estimating them ({session.trunk.source}).")
    table = _estimate(session, provenance, path.with_suffix(".partial.npz"))
    write_whole(path, table.save)
    path.with_suffix(".partial.npz").unlink(missing_ok=True)
    say(f"moments: {path}")
    return table


def moments_key(session: Session) -> str:
    """What tells this session's moments from others: a named file's contents, or what its own are measured with."""
    section = session.config.moments
    named = section.ms_eps or section.file
    if named:
        return hashlib.sha256(Path(named).read_bytes()).hexdigest()[:12]
    return digest(moment_provenance(session))


def moments_path(session: Session) -> Path:
    """The workdir's own moments file for this model and these settings."""
    return session.workdir / f"moments-{moments_key(session)}.npz"


@torch.inference_mode()
def _estimate(session: Session, provenance: Mapping[str, Any], partial: Path) -> MomentTable:
    """Measure time by time; finished times lie in `partial`, so that a killed run continues."""
    section = session.config.moments
    source = session.source("train")
    wanted = spread_times(session.process, section.times)
    done = _read_partial(partial)
    left = [t for t in wanted.tolist() if t not in done]
    rows = measure(
        session.trunk.denoise, session.process, source, left, section.draws, session.config.seed, section.batch_size
    )
    saved = time.monotonic()
    try:
        for t, draws in progress(rows, total=len(wanted), initial=len(done), what="moments"):
            done[t] = draws
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                _write_partial(partial, done)
                saved = time.monotonic()
    finally:
        if done and len(done) < len(wanted):
            _write_partial(partial, done)
    return MomentTable(wanted, tuple(done[t] for t in wanted.tolist()), source.variance, provenance)


def _read_partial(path: Path) -> dict[float, Draws]:
    arrays = read_arrays(path)
    if arrays is None:
        return {}
    rows = zip(arrays["times"], arrays["n"], arrays["mean"], arrays["scatter"], strict=True)
    return {float(t): Draws(int(n), m, s) for t, n, m, s in rows}


def _write_partial(path: Path, done: Mapping[float, Draws]) -> None:
    rows = list(done.values())
    save_arrays(
        path,
        {
            "times": np.array(list(done)),
            "n": np.array([d.n for d in rows]),
            "mean": np.stack([d.mean for d in rows]),
            "scatter": np.stack([d.scatter for d in rows]),
        },
    )


def variance_for(session: Session) -> Callable[[], Callable[[Array], Array]]:
    """Var_t by the config's estimator, made on first use and kept."""
    kept: list[Callable[[Array], Array]] = []

    def variance() -> Callable[[Array], Array]:
        if not kept:
            kept.append(moments_for(session).variance(session.config.rule.estimator, session.process))
        return kept[0]

    return variance


@torch.inference_mode()
def statistics_for(
    session: Session, split: str, numbers: torch.Tensor, times: Array, stream: str = "likelihood"
) -> Statistics:
    """Bound statistics of images `numbers` of a split at `times`, with the config's decoder.

    The default noise stream is that of --mode=likelihood, so both give the same figures.
    """
    decoder = session.decoder(variance_for(session))
    batch = session.config.likelihood.batch_size
    squared, data, prior = [], [], []
    for part in progress(numbers.split(batch), what=f"statistics ({split})"):
        x0 = session.images(split, part).double()
        noise = keyed_noise(
            session.config.seed, session.process, part.to(x0.device), session.data.shape, x0.dtype, stream
        )
        rows = list(
            measure_statistics(session.model.denoise, session.process, decoder, session.levels, times, x0, noise)
        )
        squared.append(np.stack([row[1] for row in rows]))
        data.append(np.stack([row[2] for row in rows]))
        prior.append(prior_nats(session.process, x0).cpu().numpy())
    dim = int(np.prod(session.data.shape))
    return Statistics(times, np.concatenate(squared, 1), np.concatenate(data, 1), np.concatenate(prior), dim)


def planning_images(session: Session) -> torch.Tensor:
    """Numbers of the training images that planning measures on: config.moments.draws of them, chosen by the seed."""
    size = len(session.data.split("train"))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(session.config.seed))
    return order[: session.config.moments.draws]


def data_row_for(session: Session) -> Array:
    """F[0, t] in nats per dimension for all reference times, [N+1]: the expected term of a last step t -> 0.

    Measured on training images at the moments' times and interpolated in log-SNR; entry 0 is inf.
    """
    decoder = session.config.likelihood.decoder
    estimator = session.config.rule.estimator
    provenance = [moment_provenance(session), moments_key(session), decoder, estimator]
    path = session.workdir / f"data-term-{decoder}-{digest(provenance)}.npz"
    arrays = read_arrays(path)
    if arrays is None:
        say(f"measuring the data term with the '{decoder}' decoder on training images.")
        section = session.config.moments
        times = spread_times(session.process, section.times)
        statistics = statistics_for(session, "train", planning_images(session), times, stream="data term")
        arrays = {"times": times, "nats": statistics.data.mean(1) / statistics.dim}
        save_arrays(path, arrays)
    log_snr = session.process.log_snr
    curve = PchipInterpolator(-log_snr(arrays["times"]), arrays["nats"])
    row = np.full(session.process.steps + 1, np.inf)
    row[1:] = curve(-log_snr(session.process.times[1:]))
    return row


def cost_table_for(session: Session) -> Array:
    """F [N+1, N+1] of the config's rule in nats per dimension, measured on training images at every reference time.

    Finished times lie in the workdir, so that a killed run continues. Without the data term every path goes through
    the first reference time.
    """
    process, section = session.process, session.config.moments
    priced = session.config.trajectory.data_term
    variance = variance_for(session)
    rule = session.rule(variance, process.times[:2])
    decoder = session.decoder(variance) if priced else None
    protocol = {
        "identity": session.model_identity,
        "head": session.model.head,
        "seed": session.config.seed,
        "draws": section.draws,
        "rule": session.config.rule.to_dict(),
        "eta": session.config.sampling.eta,
        "decoder": session.config.likelihood.decoder if priced else None,
        "moments": moments_key(session) if session.used_moments else None,
    }
    folder = session.workdir / "cost-tables" / f"{session.config.rule.name}-{digest(protocol)}"
    say(f"measuring the bound at all {process.steps} times on {section.draws} training images: {folder}")
    batches = planning_batches(session)

    @torch.inference_mode()
    def work(items: range) -> Arrays:
        at, eta = items.start + 1, session.config.sampling.eta
        measured = measure_column(session.model.denoise, process, rule, decoder, session.levels, at, batches, eta)
        return {"column": measured}

    columns = [done["column"].astype(np.float64) for done in sharded(folder, process.steps, 1, work, "cost table")]
    table = edge_table(process.steps, lambda t: columns[t - 1][1:])
    table[0] = first_edges(process, np.array([np.inf, *(column[0] for column in columns)]) if priced else None)
    return table


def planning_batches(session: Session) -> list[tuple[torch.Tensor, NoiseAt]]:
    """The images that planning measures on, with their noise."""
    parts = planning_images(session).split(session.config.likelihood.batch_size)
    images = [session.images("train", part).double() for part in parts]
    seed, process, shape = session.config.seed, session.process, session.data.shape
    return [
        (x0, keyed_noise(seed, process, part.to(x0.device), shape, x0.dtype, "table"))
        for part, x0 in zip(parts, images, strict=True)
    ]
