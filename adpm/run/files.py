"""Files are whole or absent, and a workdir belongs to one model.

A file is written beside its place and renamed, so that an interrupted run leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adpm.errors import UserError
from adpm.moments import leaves

# Sections and fields that a workdir's weights depend on. Everything else is part of the names of what depends on it.
TIME_LABEL = ("denoiser.label", "denoiser.time_shift", "denoiser.time_scale")
MODEL = ("data", "process", "network", "denoiser.name", "denoiser.predicts", *TIME_LABEL)
TRAINING = (*MODEL, "seed", "train")
HEAD_TRAINING = ("seed", "train")
# A head is no part of what a trunk, its moments and its workdir are identified by, nor is where data came from.
FREE = {
    "data.folder",
    "data.download",
    "network.pretrained",
    "network.head",
    "network.head_pretrained",
    "train.log_every",
    "train.test_every",
    "train.sample_every",
    "train.save_every",
}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary sibling and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, lambda p: p.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n"))


def digest(value: object) -> str:
    """Twelve hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def identity(config: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """The fields of a config that lie in `parts` (sections or fields), as JSON has them."""
    chosen = {
        name: value
        for name, value in leaves(config).items()
        if name not in FREE and any(name == part or name.startswith(part + ".") for part in parts)
    }
    return json.loads(json.dumps(chosen))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The entries that both have and that differ, told in a few words; "" when there are none."""
    changed = sorted(name for name in there.keys() & here.keys() if there[name] != here[name])
    return "; ".join(f"{name}: {there[name]!r} there, {here[name]!r} now" for name in changed[:4])


def check_writable(workdir: Path) -> None:
    """Create the workdir and try it.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir = '{workdir}' cannot be written ({error.strerror}); choose another.") from error


def claim_workdir(workdir: Path, wanted: Mapping[str, Any]) -> None:
    """Check that the workdir belongs to these fields of a config, and remember that it does.

    Raises:
        UserError: if it holds another model (the differing fields are named).
    """
    path = workdir / "config.json"
    old: dict[str, Any] = {}
    if path.exists():
        try:
            old = dict(json.loads(path.read_text()).items())
        except (ValueError, AttributeError) as error:
            raise UserError(f"'{path}' is not the JSON of a config; remove the workdir or choose another.") from error
    if told := differences(old, wanted):
        raise UserError(f"--workdir = '{workdir}' belongs to another config ({told}); choose another workdir.")
    if not wanted.keys() <= old.keys():
        write_json(path, {**old, **wanted})
