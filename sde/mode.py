"""config.likelihood.method = "flow": bits/dim by the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from adpm.bound import BitsPerDim
from adpm.classes import at
from adpm.denoiser import Denoise
from adpm.errors import UserError
from adpm.families import Field, Kind
from adpm.likelihood import Decoder, bits_per_dim
from adpm.noise import KeyedNoise
from adpm.progress import Arrays, Keep, say
from adpm.run.assembly import Session
from adpm.run.bound import counted
from adpm.run.classes import of_images
from adpm.run.measure import used_moments, variance_for
from adpm.run.naming import naming
from adpm.run.report import Report
from adpm.run.store import digest, record, write_json
from sde.dequantise import Start
from sde.likelihood import check_options, flow_likelihood, keyed_probes, require_sde

_OPTIONS = ("t_min", "rtol", "atol", "max_nfe")


def _flow(session: Session) -> Callable[[], BitsPerDim]:
    """-log p of a split under the probability flow, with error bars over images.

    Adaptive error control couples the images of a batch, so the size of the batch is part of the key.
    """
    section = session.config.likelihood
    decodes = session.kind("likelihood.dequantisation").facts.uses_decoder
    with naming(session.house.table, "likelihood"):
        require_sde(session.process)
        check_options(section.t_min, section.rtol, section.atol, section.probes)
        first = float(session.process.times[1])
        if decodes and section.t_min < first:
            raise UserError(
                f"`t_min` = {section.t_min:g} lies below the first reference time ({first:g}), where the decoder of "
                f"`dequantisation` = '{section.dequantisation}' is not known; raise it to where sigma is of the "
                "order of the distance of levels, or lower `process.t_min`."
            )
    return lambda: _evaluate(session, decodes)


def flow_key(session: Session) -> dict[str, Any]:
    """Everything that the flow's figure depends on."""
    decodes = session.kind("likelihood.dequantisation").facts.uses_decoder
    return {
        **session.identity,
        "own": session.house.table.part(session.config, "flow", ("likelihood", FLOW)),
        "moments": used_moments(session, "likelihood.decoder") if decodes else None,
    }


def _evaluate(session: Session, decodes: bool) -> BitsPerDim:
    section, model, images = session.config.likelihood, session.trunk, counted(session)
    key = flow_key(session)
    folder = session.workdir / "likelihood" / f"flow-{section.dequantisation}-{section.split}-{digest(key)}"

    def make(keep: Keep) -> Mapping[str, Any]:
        decoder = session.decoder(variance_for(session)) if decodes else None
        told = of_images(session, model.denoise, section.split)
        parts = list(
            keep(images, section.batch_size, lambda items: _batch(session, told, decoder, items), "likelihood")
        )
        nats = np.concatenate([part["nats"].astype(np.float64) for part in parts])
        return {"nats": nats, "nfe": np.array([float(part["nfe"]) for part in parts])}

    def check(arrays: Arrays) -> None:
        if arrays["nats"].shape != (images,) or arrays["nfe"].ndim != 1:
            raise ValueError(f"nats of {arrays['nats'].shape} images")

    with naming(session.house.table, "likelihood"):
        arrays = record(folder / f"{images}-images.npz", make, check)
    write_json(folder / "protocol.json", {**key, "weights_from": model.source, "images": images})
    bits = bits_per_dim(arrays["nats"].astype(np.float64), int(np.prod(session.data.shape)))
    return _report(session, BitsPerDim.of(bits), float(arrays["nfe"].mean()), images, folder)


def _batch(session: Session, told: Denoise, decoder: Decoder | None, items: range) -> Arrays:
    """Nats of the data's own levels [B], and the evaluations of the batch."""
    section, seed, shape = session.config.likelihood, session.config.seed, session.data.shape
    numbers = torch.arange(items.start, items.stop)
    x0 = session.images(section.split)(numbers)
    here, denoise = numbers.to(x0.device), at(told, numbers)
    dequantise = session.build("likelihood.dequantisation", Start(denoise, session.process, session.levels, decoder))
    with torch.no_grad():
        x, paid = dequantise(x0, KeyedNoise(seed, "dequantise")(here, 0, shape), section.t_min)
    probes = keyed_probes(section.probe, section.probes, seed, here, shape)
    options = {name: section[name] for name in _OPTIONS}
    result = flow_likelihood(denoise, session.process, x, probes, **options)
    return {"nats": (result.nats + paid).cpu().numpy(), "nfe": np.array(result.nfe)}


def _report(session: Session, found: BitsPerDim, nfe: float, images: int, folder: Any) -> BitsPerDim:
    section = session.config.likelihood
    result = {"bits_per_dim": found.mean, "standard_error": found.error, "images": images, "mean_nfe": nfe}
    write_json(folder / "result.json", result)
    report = Report(session.workdir / "tensorboard" / "likelihood" / folder.name)
    report.scalars({"flow/bits_per_dim": found.mean, "flow/nfe": nfe}, 0)
    report.close()
    say(
        f"{found} bits/dim by the probability flow from t = {section.t_min:g} ({images} {section.split} images, "
        f"{section.dequantisation} dequantisation, {section.probes} {section.probe} probe(s), {nfe:.0f} evaluations a "
        "batch, +- one standard error)"
    )
    say(f"result:      {folder / 'result.json'}")
    return found


FLOW = Kind(
    _flow,
    "the exact likelihood by the probability-flow ODE, of SDEs",
    fields={
        "dequantisation": Field("uniform", "where the flow starts on data with levels", choices="dequantisation"),
        "probe": Field("rademacher", "probes of the divergence", choices="probe"),
        "probes": Field(1, "per image; from 2 on there is an error bar over them", low=1),
        "t_min": Field(1e-5, "where the data are put", above=0, below=1),
        "rtol": Field(1e-5, "relative tolerance of a step", above=0),
        "atol": Field(1e-5, "absolute tolerance of a step", above=0),
        "max_nfe": Field(1000, "evaluations allowed per batch", low=1, of=("amount",)),
    },
)

LIKELIHOODS: dict[str, Kind] = {"flow": FLOW}
