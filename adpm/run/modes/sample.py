"""--mode=sample: moments and path if they are missing, then samples, a grid and the figures of the run."""

from __future__ import annotations

import json

import numpy as np
import torch

from adpm.basis import Basis
from adpm.gaussian import InBasis
from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.figures import deviation_figure, save_figure, strip_figure
from adpm.run.report import Report, image_grid, markdown, save_png
from adpm.run.samples import Samples, samples_for


def sample(session: Session) -> None:
    """Draw config.sampling.samples images and report how."""
    if told := _unused(session):
        say(told)
    _report(session, samples_for(session))


def _unused(session: Session) -> str:
    """What the solver makes no use of, in words; empty when it uses all."""
    facts, name = session.kind("sampling.solver").facts, session.config.sampling.solver
    parts = {"config.rule": facts.uses_rule, "config.sampling.eta": facts.uses_eta}
    fields = [field for field, used in parts.items() if not used]
    return f"solver '{name}' has no variance rule: its steps make no use of {' and '.join(fields)}." if fields else ""


def in_pixels(deviation: torch.Tensor, basis: Basis) -> torch.Tensor:
    """Standard deviations of pixels, of those along a basis, [rows, columns, C, H, W] both."""
    each = deviation.flatten(0, 1)
    return InBasis(each.square(), basis=basis).pixel_deviation(each).reshape(deviation.shape)


def _report(session: Session, drawn: Samples) -> None:
    """Pictures, TensorBoard and a few lines."""
    data, folder, first, process = session.data, drawn.folder, drawn.first, session.process
    shown = first["shown"].astype(np.float64)
    grid = image_grid(data.to_unit(drawn.images(slice(session.config.sampling.grid))))
    save_png(folder / "grid.png", grid)
    figures = {"strip": strip_figure(data.to_unit(torch.as_tensor(first["strip"])), shown, process.log_snr(shown))}
    if session.kind("sampling.solver").facts.uses_rule and session.rule_facts.state_dependent:
        figures["deviation"] = deviation_figure(first["deviation"], shown, process.log_snr(shown))
        if (scale := session.sampler_model.scale) is not None:  # they lie along a basis
            pixels = in_pixels(torch.as_tensor(first["deviation"]), scale.basis)
            figures["pixel_deviation"] = deviation_figure(pixels, shown, process.log_snr(shown))
    curves = {
        "reverse/variance": first["variance"],
        "reverse/clipped_share": first["clipped"],
        "reverse/log_snr": process.log_snr(first["t"].astype(np.float64)),
    }
    with Report(session.workdir / "tensorboard" / "sample" / folder.name) as report:
        report.picture("sample/grid", grid, 0)
        for name, figure in figures.items():
            save_figure(folder / f"{name}.png", figure)
            report.figure(f"sample/{name}", figure)
        report.text("sample/protocol", markdown(json.loads((folder / "protocol.json").read_text())))
        for tag, values in curves.items():
            steps = np.searchsorted(process.times, first["t"]).tolist()
            report.curve(tag, dict(zip(steps, values.astype(float).tolist(), strict=True)))
        report.trial(folder.name, _choices(session), {"sample/network_calls": float(first["nfe"])})
    _told(session, drawn)


def _choices(session: Session) -> dict[str, str | float]:
    """This run's row of the HParams tab."""
    config = session.config
    return {
        "rule": config.rule.name,
        "trajectory": config.trajectory.name,
        "K": config.trajectory.steps,
        "solver": config.sampling.solver,
        "start": config.sampling.start,
        "eta": config.sampling.eta,
        "seed": config.seed,
    }


def _told(session: Session, drawn: Samples) -> None:
    """What the user reads."""
    calls, source, clipped = int(drawn.first["nfe"]), session.sampler_model.source, drawn.first["clipped"].astype(float)
    say(f"{len(drawn.kept)} samples, {calls} network calls each, {drawn.seconds:.1f} s ({source}).")
    if clipped.any():
        share = f", on {clipped.max():.0%} of the values at most" if clipped.max() < 1.0 else ""
        say(f"bounds acted in {np.count_nonzero(clipped)} of {len(clipped)} steps{share} (of the first batch).")
    say(f"samples:     {drawn.file}")
    say(f"grid:        {drawn.folder / 'grid.png'}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
