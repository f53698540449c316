"""--mode=inspect: what a checkpoint is, without running it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adpm.errors import UserError
from adpm.formats.names import NOISE
from adpm.nn.checkpoint import misfit, read_header
from adpm.progress import say
from adpm.run.config import Job
from adpm.run.house import House
from adpm.run.naming import naming
from adpm.run.recognised import ANY, Recognised, recognise, require_usable, where
from adpm.run.said import said
from adpm.run.weights import located


def inspect(job: Job) -> None:
    """Print what config.network.pretrained is: layout, weights, network, head, what it says and what it does not."""
    found = of_job(job)
    for what, told in facts(found, job.house):
        say(f"{what + ':':<13}{job.house.table.translated(told)}")


def of_job(job: Job) -> Recognised:
    """The checkpoint that a job's config names.

    Raises:
        UserError: if it names none, or if that cannot be read.
    """
    if "grid" in job.config:
        raise UserError("this config has a grid of models to compare; name one of their configs.")
    named = job.config.network.pretrained
    if not named:
        raise UserError("config.network.pretrained is empty; name the checkpoint that is meant.")
    if not located(named).exists():
        raise UserError(f"config.network.pretrained = '{named}' does not exist.")
    with naming(job.house.table):
        return recognise(located(named))


def facts(found: Recognised, house: House) -> Iterator[tuple[str, str]]:
    """(what, in words) in the order that people ask in."""
    checkpoint, shape = found.checkpoint, found.shape
    ours = read_header(found.path)
    yield "file", f"{found.path} ({_size(found.path) / 1e6:.1f} MB)"
    yield "layout", f"{found.layout}, of this project" if ours else found.layout
    yield "weights", checkpoint.chosen
    count = sum(tensor.numel() for name, tensor in checkpoint.state.items() if name != NOISE)
    yield "parameters", f"{count:,} in {len(checkpoint.state)} tensors"
    if checkpoint.unusable:
        if not checkpoint.kept_by:
            yield "network", f"none of this project's: {checkpoint.unusable}"
            return
        yield "network", f"{checkpoint.unusable}; config.network.name = {checkpoint.kept_by} runs it, as {ANY} does"
        yield "says", ", ".join(said(found))
        return
    if shape is None:
        yield "network", f"none that is known here; its names begin {', '.join(list(checkpoint.state)[:3])}"
        return
    yield "network", str(shape)
    yield "head", shape.head
    yield "missing", lacking(found, house) or "nothing"
    yield "says", ", ".join(said(found)) or "neither schedule nor prediction"
    if ours:
        yield "trained", f"by the config in its header, {ours.get('iterations', 'unknown')} iterations"
    else:
        yield from unsaid(found)
    yield "config", where(found, house.table)
    for remark in (*checkpoint.remarks, *([checkpoint.unfollowed] if checkpoint.unfollowed else [])):
        yield "remark", remark


def unsaid(found: Recognised) -> Iterator[tuple[str, str]]:
    """What published files of its kind have where this one says nothing; nothing where it says all."""
    checkpoint, shape = found.checkpoint, found.shape
    assert shape is not None
    usual = {**shape.usual, **checkpoint.usual, **shape.assumed}
    told = {*checkpoint.settled, *shape.fixed}
    told |= {"predicts"} if checkpoint.predicts else set()
    told |= {"process", "steps"} if checkpoint.schedule is not None else set()
    left = ", ".join(f"{name} = {value}" for name, value in usual.items() if name not in told)
    if left:
        yield "unsaid", f"taken as published files of its kind have it: {left}"


def lacking(found: Recognised, house: House) -> str:
    """Names that the network has and the file has not, or the other way round; "" where they agree.

    A family that is not here is said.
    """
    try:
        shape = require_usable(found, house.families["network"])
    except UserError as error:
        return str(error).rstrip(".")
    return misfit(found.built(house.families["network"], shape.least_side).state_dict(), found.checkpoint.state)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
