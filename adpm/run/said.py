"""What a checkpoint says beside its network: in words, and held against a config's process, denoiser and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adpm.errors import UserError
from adpm.families import built
from adpm.formats.checkpoint import Checkpoint
from adpm.nn.checkpoint import read_header
from adpm.process import Array, Process
from adpm.run.dataset import DataSet
from adpm.run.naming import naming
from adpm.run.recognised import Recognised, recognise, require_fit
from adpm.run.weights import Place, trunk_file

_SCHEDULE_RTOL = 1e-3
"""How far alpha_n^2 in a file, mostly float32, may be from the process's."""

Label = Callable[[Array], Array]


def said(found: Recognised) -> list[str]:
    """What a file says beside its weights, what follows from it included."""
    checkpoint, out = found.checkpoint, []
    if checkpoint.schedule is not None:
        out.append(
            f"a schedule of {len(checkpoint.schedule)} steps down to alpha^2 = {float(checkpoint.schedule[-1]):.3g}"
        )
    if checkpoint.noise is not None:
        out.append(f"sigma from {checkpoint.noise[1]:.3g} to {checkpoint.noise[0]:.3g}")
    if checkpoint.side is not None:
        out.append(f"images of {checkpoint.side}x{checkpoint.side}")
    if checkpoint.predicts:
        out.append(f"predicts {checkpoint.predicts}")
    out += [f"{name} = {value}" for name, value in _settled(found).items()]
    return out


def check_weights(place: Place, data: DataSet, label: Label) -> None:
    """A run's file of others is of its network, and what it says of the rest is so; ours say it when loaded.

    Args:
        place: where weights are found.
        data: the config's.
        label: times -> what the network receives.

    Raises:
        UserError: naming what differs.
    """
    file = trunk_file(place)
    if file is None or read_header(file):
        return
    with naming(place.table):
        found = recognise(file)
        require_fit(found, place.config, data.shape, place.table)
    require_followed(found)
    _require_prediction(found, place)
    _require_label(found, place, label)
    _require_range(found, data)
    _require_process(found, place)


def require_followed(found: Recognised) -> None:
    """Refuse a checkpoint that says something of schedule or prediction which is not to be had here."""
    if found.checkpoint.unfollowed:
        raise UserError(
            f"weights '{found.path}' cannot be used as they are: {found.checkpoint.unfollowed.rstrip('.')}; where the "
            "config says process and prediction, take the scheduler's config away from beside them."
        )


def _settled(found: Recognised) -> dict[str, Any]:
    """What network and file settle of the rest."""
    return {**(found.shape.fixed if found.shape is not None else {}), **found.checkpoint.settled}


def _require_prediction(found: Recognised, place: Place) -> None:
    due, here = found.checkpoint.predicts, place.config["denoiser"]["predicts"]
    if due and due != here:
        raise UserError(f"weights '{found.path}' predict '{due}', but config.denoiser.predicts = '{here}'.")


def _require_label(found: Recognised, place: Place, label: Label) -> None:
    """By name, and by what the network receives at all times: an unset option may mean the same as one that is set."""
    settled, here = _settled(found), place.config["denoiser"]["label"]
    if "label" not in settled:
        return
    if settled["label"] != here:
        raise UserError(
            f"weights '{found.path}' are of a network which receives '{settled['label']}' as time, but "
            f"config.denoiser.label = '{here}'."
        )
    labels, options = place.table.families["label"], place.table.options(place.config, "denoiser.label")
    due = {name: value for name, value in settled.items() if name in labels[here].fields}
    t = place.process.times[1:]
    if not np.allclose(label(t), built(labels, here, "`denoiser.label`", place.process, **options | due)(t)):
        told = ", ".join(f"config.denoiser.{name} = {value:g}" for name, value in due.items())
        now = ", ".join(f"{name} = {options[name]:g}" for name in due)
        raise UserError(f"weights '{found.path}' receive '{here}' as time with {told}, but here {now}; set it so.")


def _require_range(found: Recognised, data: DataSet) -> None:
    settled = _settled(found)
    low, high = (settled.get(name, here) for name, here in (("low", data.low), ("high", data.high)))
    if not np.allclose((low, high), (data.low, data.high)):
        raise UserError(
            f"weights '{found.path}' are of data in [{low:g}, {high:g}], but data set '{data.name}' is in "
            f"[{data.low:g}, {data.high:g}]; choose data that have config.data.low and config.data.high, and set these."
        )


def _require_process(found: Recognised, place: Place) -> None:
    checkpoint, process, told = found.checkpoint, place.process, f"weights '{found.path}'"
    if checkpoint.schedule is not None and not same_schedule(checkpoint, process):
        steps, last = len(checkpoint.schedule), float(checkpoint.schedule[-1])
        raise UserError(
            f"{told} hold a schedule of {steps} steps that ends at alpha^2 = {last:.3g}, and config.process is "
            f"another ({process.steps} steps, {float(process.alpha(process.times[-1])) ** 2:.3g}); set it to that one."
        )
    if checkpoint.noise is not None and found.shape is not None and found.shape.fixed:
        most, here = checkpoint.noise[0], float(process.sigma(process.times[-1]))
        if abs(here / most - 1.0) > _SCHEDULE_RTOL:
            raise UserError(
                f"{told} are of noise up to sigma = {most:.4g}, but config.process ends at {here:.4g}; set "
                f"config.process.sigma_max = {most:.4g}."
            )
    kind = _settled(found).get("process")
    if kind is not None and _preserves(built(place.table.families["process"], kind, "`process`")):
        if not _preserves(process):
            raise UserError(
                f"{told} go with a process of alpha^2 + sigma^2 = 1, such as '{kind}', but config.process.name = "
                f"'{place.config['process']['name']}'."
            )


def _preserves(process: Process) -> bool:
    """Whether alpha^2 + sigma^2 = 1 at all times."""
    t = process.times
    return bool(np.allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1.0))


def same_schedule(checkpoint: Checkpoint, process: Process) -> bool:
    """Whether a process on steps has the alpha_n^2 of a file."""
    stored = checkpoint.schedule
    if stored is None or process.continuous or process.steps != len(stored):
        return False
    return bool(np.allclose(process.alpha(process.times[1:]) ** 2, stored.numpy(), rtol=_SCHEDULE_RTOL, atol=1e-7))
