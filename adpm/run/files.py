"""Files are whole or absent, and a workdir belongs to one model.

A file is written beside its place and renamed, so that an interrupted run leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adpm.errors import UserError

# What a workdir's weights depend on. Everything else may change from call to call, and is part of the names of files.
IDENTITY = ("seed", "data", "process", "network", "denoiser", "train")
FREE = {"network.pretrained", "train.log_every", "train.test_every", "train.sample_every", "train.save_every"}


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


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat


def claim_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Create the workdir, or check that it belongs to this config.

    Raises:
        UserError: if the workdir cannot be written, or holds another model (the differing fields are named).
    """
    flat = _flat({key: config[key] for key in IDENTITY})
    identity = json.loads(json.dumps({key: value for key, value in flat.items() if key not in FREE}))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir = '{workdir}' cannot be written ({error.strerror}); choose another.") from error
    path = workdir / "config.json"
    if not path.exists():
        write_json(path, identity)
        return
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"'{path}' is not readable JSON; remove the workdir or choose another.") from error
    changed = sorted(k for k in old.keys() | identity.keys() if old.get(k) != identity.get(k))
    if changed:
        shown = "; ".join(f"{k}: {old.get(k)!r} there, {identity.get(k)!r} now" for k in changed[:4])
        raise UserError(f"--workdir = '{workdir}' belongs to another config ({shown}); choose another workdir.")
