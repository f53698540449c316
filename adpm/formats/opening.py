"""Opening a checkpoint without running anything in it: safetensors, torch.save's files, plain pickles."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from adpm.errors import UserError
from adpm.formats.checkpoint import Opened
from adpm.formats.records import read_records
from adpm.pickles import safe_load
from adpm.reading import looks_like, plain_file

_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save began before it wrote archives."""


def opened(path: Path) -> Opened:
    """What lies at a path; large tensors are mapped, so that what is not used takes no memory.

    Raises:
        UserError: if there is nothing, if it is not whole, or needs code execution to be read.
    """
    if path.is_dir():
        return Opened(path)
    plain_file(path, "weights file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if told := looks_like(path):
        raise UserError(f"weights file '{path}' is not a whole checkpoint: it is {told}.")
    read = read_records if _is_pickle(path) else safe_load
    try:
        return Opened(path, read(path))
    except pickle.UnpicklingError as error:
        raise UserError(f"weights file '{path}' cannot be read without running code stored in it; refused.") from error
    except Exception as error:  # torch and pickle name a broken file in many ways
        raise UserError(f"weights file '{path}' is not a whole checkpoint ({error}).") from error


def _is_pickle(path: Path) -> bool:
    """A pickle that torch.save has not written."""
    with path.open("rb") as file:
        start = file.read(len(_TORCH_MAGIC))
    return start[:1] == b"\x80" and start != _TORCH_MAGIC and not zipfile.is_zipfile(path)


def _safetensors(path: Path) -> Opened:
    try:
        with safe_open(str(path), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return Opened(path, state, file.metadata() or {})
    except SafetensorError as error:
        told = looks_like(path) or str(error)
        raise UserError(f"weights file '{path}' is not a whole safetensors file ({told}).") from error
