"""--mode=likelihood with config.likelihood.method = "flow": bits/dim by the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adpm.errors import UserError, lookup
from adpm.likelihood import bits_per_dim
from adpm.noise import KeyedNoise
from adpm.run.assembly import Session
from adpm.run.files import digest, write_json
from adpm.run.prepare import moments_key, variance_for
from adpm.run.report import Report, say
from adpm.run.shards import Arrays, sharded
from adpm.run.tables import BitsPerDim
from sde.dequantise import Dequantise, diffusion, uniform
from sde.likelihood import PROBES, check_options, flow_likelihood, keyed_probes, require_sde


def _diffusion(session: Session) -> Dequantise:
    decoder = session.decoder(variance_for(session))
    return diffusion(session.trunk.denoise, session.process, decoder, session.levels)


@dataclass(frozen=True)
class Dequantisation:
    """How a dequantisation is built, and whether it ends in the bound's decoder."""

    build: Callable[[Session], Dequantise]
    decodes: bool


DEQUANTISATIONS = {
    "uniform": Dequantisation(lambda session: uniform(session.levels), decodes=False),
    "diffusion": Dequantisation(_diffusion, decodes=True),
}


def flow(session: Session) -> Callable[[], BitsPerDim]:
    """-log p of a split under the probability flow, with error bars over images.

    Adaptive error control couples the images of a batch, so the size of the batch is part of the protocol.
    """
    section = session.config.likelihood
    lookup(PROBES, section.probe, "config.likelihood.probe")
    kind = lookup(DEQUANTISATIONS, section.dequantisation, "config.likelihood.dequantisation")
    require_sde(session.process)
    check_options(section.t_min, section.rtol, section.atol, section.probes)
    first = float(session.process.times[1])
    if kind.decodes and section.t_min < first:
        raise UserError(
            f"config.likelihood.t_min = {section.t_min:g} lies below the first reference time ({first:g}), where the "
            f"decoder of config.likelihood.dequantisation = '{section.dequantisation}' is not known; raise it to where "
            "sigma is of the order of the distance of levels, or lower config.process.t_min."
        )
    return lambda: _evaluate(session, kind)


def _evaluate(session: Session, kind: Dequantisation) -> BitsPerDim:
    section, model = session.config.likelihood, session.trunk
    session.used_moments = False
    dequantise = kind.build(session)
    images = min(section.images or len(session.data.split(section.split)), len(session.data.split(section.split)))
    fields = ("split", "batch_size", "probe", "probes", "t_min", "rtol", "atol", "dequantisation")
    decoder = {"decoder": section.decoder, "estimator": session.config.rule.estimator} if kind.decodes else {}
    protocol = {
        "identity": session.model_identity,
        "weights_from": model.source,
        "seed": session.config.seed,
        "method": "flow",
        **{name: section[name] for name in fields},
        **decoder,
        "moments": moments_key(session) if session.used_moments else None,
    }
    folder = session.workdir / "likelihood" / f"flow-{section.dequantisation}-{section.split}-{digest(protocol)}"
    work = Flow(session, dequantise)
    parts = list(sharded(folder / "batches", images, section.batch_size, work, "likelihood"))
    write_json(folder / "protocol.json", {**protocol, "images": images})
    dim = int(np.prod(session.data.shape))
    found = BitsPerDim.of(bits_per_dim(np.concatenate([part["nats"].astype(np.float64) for part in parts]), dim))
    nfe = float(np.mean([float(part["nfe"]) for part in parts]))
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


class Flow:
    """Image numbers -> nats of the data's own levels [B], and the evaluations of the batch."""

    def __init__(self, session: Session, dequantise: Dequantise) -> None:
        self.session, self.dequantise = session, dequantise

    def __call__(self, items: range) -> Arrays:
        session, section = self.session, self.session.config.likelihood
        numbers = torch.arange(items.start, items.stop)
        x0 = session.images(section.split, numbers)
        shape, here = session.data.shape, numbers.to(x0.device)
        with torch.no_grad():
            noise = KeyedNoise(session.config.seed, "dequantise")(here, 0, shape)
            x, paid = self.dequantise(x0, noise, section.t_min)
        probes = keyed_probes(section.probe, section.probes, session.config.seed, here, shape)
        options = {name: section[name] for name in ("t_min", "rtol", "atol", "max_nfe")}
        result = flow_likelihood(session.trunk.denoise, session.process, x, probes, **options)
        return {"nats": (result.nats + paid).cpu().numpy(), "nfe": np.array(result.nfe)}
