"""--mode=sample: moments and path if they are missing, then samples, a grid and the figures of the run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adpm.run.assembly import Session
from adpm.run.report import Report, image_grid, save_png, say
from adpm.run.samples import Drawn, samples_for
from adpm.run.shards import save_arrays


def sample(session: Session) -> None:
    """Draw config.sampling.samples images and report how."""
    if told := _unused(session):
        say(told)
    drawn = samples_for(session)
    save_arrays(drawn.folder / "samples.npz", {"samples": drawn.images})
    _report(session, drawn)


def _unused(session: Session) -> str:
    """What the solver makes no use of, in words; empty when it uses all."""
    kind, name = session.solver_kind, session.config.sampling.solver
    parts = {"config.rule": kind.uses_rule, "config.sampling.eta": kind.uses_eta}
    fields = [field for field, used in parts.items() if not used]
    return f"solver '{name}' brings its own noise: its steps make no use of {' and '.join(fields)}." if fields else ""


def stretched(deviation: Tensor) -> Tensor:
    """Standard deviations [rows, steps, ...] as brightness in [0, 1]: each step from its least to its largest value."""
    steps = deviation.transpose(0, 1).flatten(1)
    shape = (1, -1, *[1] * (deviation.ndim - 2))
    low, high = steps.min(1).values.reshape(shape), steps.max(1).values.reshape(shape)
    return (deviation - low) / (high - low).clamp_min(torch.finfo(deviation.dtype).tiny)


def _report(session: Session, drawn: Drawn) -> None:
    """Pictures, TensorBoard and a few lines."""
    data, folder, first = session.data, drawn.folder, drawn.first
    grid = image_grid(data.to_unit(torch.as_tensor(drawn.images[: session.config.sampling.grid])))
    strip = torch.as_tensor(first["strip"])
    strip_grid = image_grid(data.to_unit(strip.reshape(-1, *data.shape)), columns=strip.shape[1])
    save_png(folder / "grid.png", grid)
    save_png(folder / "strip.png", strip_grid)
    report = Report(session.workdir / "tensorboard" / "sample" / folder.name)
    report.picture("sample/grid", grid, 0)
    report.picture("sample/x0_along_the_path", strip_grid, 0)
    if session.solver_kind.uses_rule and session.state_dependent:
        deviation = torch.as_tensor(first["deviation"])
        unsure = image_grid(stretched(deviation).reshape(-1, *data.shape), columns=deviation.shape[1])
        save_png(folder / "deviation.png", unsure)
        report.picture("sample/standard_deviation_along_the_path", unsure, 0)
    report.text("sample/protocol", f"```\n{(folder / 'protocol.json').read_text()}\n```")
    for t, v, c in zip(first["t"], first["variance"], first["clipped"], strict=True):
        index = int(np.searchsorted(session.process.times, t))
        report.scalars({"reverse/variance": float(v), "reverse/clipped_share": float(c)}, index)
        report.scalars({"reverse/log_snr": float(session.process.log_snr(t))}, index)
    report.close()
    calls, source = int(first["nfe"]), session.sampler_model.source
    say(f"{len(drawn.images)} samples, {calls} network calls each, {drawn.seconds:.1f} s ({source}).")
    clipped = first["clipped"].astype(float)
    if clipped.any():
        share = f", on {clipped.max():.0%} of the values at most" if clipped.max() < 1.0 else ""
        say(f"bounds acted in {np.count_nonzero(clipped)} of {len(clipped)} steps{share} (of the first batch).")
    say(f"samples:     {folder / 'samples.npz'}")
    say(f"grid:        {folder / 'grid.png'}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
