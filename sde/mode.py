"""--mode=likelihood with config.likelihood.method = "flow": bits/dim by the probability-flow ODE."""

from __future__ import annotations

import numpy as np
import torch

from adpm.likelihood import bits_per_dim
from adpm.noise import KeyedNoise
from adpm.run.assembly import Session
from adpm.run.files import digest, write_json
from adpm.run.report import Report, say
from adpm.run.shards import Arrays, sharded
from sde.likelihood import dequantised, discrete_nats, flow_likelihood, keyed_probes


def flow(session: Session) -> None:
    """-log p of a split under the probability flow, uniformly dequantised, with error bars over images.

    Adaptive error control couples the images of a batch, so the size of the batch is part of the protocol.
    """
    section = session.config.likelihood
    model = session.model
    images = min(section.images or len(session.data.split(section.split)), len(session.data.split(section.split)))
    fields = ("split", "batch_size", "probe", "probes", "t_min", "rtol", "atol")
    protocol = {
        "identity": session.model_identity,
        "weights_from": model.source,
        "seed": session.config.seed,
        "method": section.method,
        **{name: section[name] for name in fields},
    }
    folder = session.workdir / "likelihood" / f"flow-{section.split}-{digest(protocol)}"
    work = Flow(session)
    parts = list(sharded(folder / "batches", images, section.batch_size, work, "likelihood"))
    write_json(folder / "protocol.json", {**protocol, "images": images})
    dim = int(np.prod(session.data.shape))
    bits = np.asarray(bits_per_dim(np.concatenate([part["nats"].astype(np.float64) for part in parts]), dim))
    error = float(bits.std(ddof=1) / np.sqrt(len(bits))) if len(bits) > 1 else None
    nfe = float(np.mean([float(part["nfe"]) for part in parts]))
    mean = float(bits.mean())
    result = {"bits_per_dim": mean, "standard_error": error, "images": len(bits), "mean_nfe": nfe}
    write_json(folder / "result.json", result)
    report = Report(session.workdir / "tensorboard" / "likelihood" / folder.name)
    report.scalars({"flow/bits_per_dim": mean, "flow/nfe": nfe}, 0)
    report.close()
    bar = f" +- {error:.4f}" if error is not None else ""
    data = "uniformly dequantised, " if session.levels.count else ""
    say(
        f"{mean:.4f}{bar} bits/dim by the probability flow from t = {section.t_min:g} ({len(bits)} "
        f"{section.split} images, {data}{section.probes} {section.probe} probe(s), {nfe:.0f} evaluations a batch, "
        "+- one standard error)"
    )
    say(f"result:      {folder / 'result.json'}")


class Flow:
    """Image numbers -> nats of the data's own levels [B], and the evaluations of the batch."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, items: range) -> Arrays:
        session, section = self.session, self.session.config.likelihood
        numbers = torch.arange(items.start, items.stop)
        x = session.images(section.split, numbers)
        shape, here = session.data.shape, numbers.to(x.device)
        if session.levels.count:
            x = dequantised(x, session.levels, KeyedNoise(session.config.seed, "dequantise")(here, 0, shape))
        probes = keyed_probes(section.probe, section.probes, session.config.seed, here, shape)
        options = {name: section[name] for name in ("t_min", "rtol", "atol", "max_nfe")}
        result = flow_likelihood(session.model.denoise, session.process, x, probes, **options)
        nats = discrete_nats(result.nats, session.levels, int(np.prod(shape))) if session.levels.count else result.nats
        return {"nats": torch.as_tensor(nats).cpu().numpy(), "nfe": np.array(result.nfe)}
