"""What a scheduler knows of its network, as a safetensors file beside its config.

Numbers are tensors, words are JSON in the header. The config holds the file's SHA-256: the two belong together, and
half a file, another's file or none is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from adpm.coordinates import Spectrum
from adpm.diffusers.nodes import Known
from adpm.errors import UserError
from adpm.measured import Moments
from adpm.moments import MomentTable
from adpm.process import DiscreteProcess
from adpm.reading import looks_like, plain_file
from adpm.whole import write_whole

FILE = "adpm_moments.safetensors"
_PATH, _ROW = "path_", "data_nats"


def write(known: Known, folder: Path) -> str:
    """Write the file into a folder, whole or not at all; its SHA-256."""
    moments = known.moments
    arrays = {**(moments.spectrum.arrays() if moments.spectrum else {}), **moments.table.arrays()}
    arrays |= {f"{_PATH}{i}": path for i, path in enumerate(known.paths.values())}
    arrays |= {} if known.data_nats is None else {_ROW: known.data_nats}
    numbers, words = dict[str, NDArray[Any]](), dict[str, Any]()
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.kind in "U":
            words[name] = array.tolist()
        else:
            numbers[name] = np.ascontiguousarray(array).reshape(array.shape)
    data = save(numbers, metadata={"adpm": json.dumps({"words": words, "paths": list(known.paths)}, sort_keys=True)})
    write_whole(folder / FILE, lambda path: path.write_bytes(data))
    return hashlib.sha256(data).hexdigest()


def beside(place: Any, subfolder: str | None, config_name: str, hub: Mapping[str, Any]) -> Path:
    """Where the file lies beside a config of this name, found in a folder or on the hub."""
    folder = Path(place)
    if not folder.is_dir():
        return Path(hf_hub_download(str(place), FILE, subfolder=subfolder, **hub))
    inner = folder / (subfolder or "")
    return (inner if (inner / config_name).is_file() else folder) / FILE


def read(path: Path, sha256: str, process: DiscreteProcess) -> Known:
    """What `write` has written.

    Args:
        path: of the file.
        sha256: that the config beside it tells.
        process: whose times they are.

    Raises:
        UserError: if it is missing, not the one that was saved with the config, or holds what no measurement gives.
    """
    plain_file(path, "moments file")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        told = "" if data[8:9] == b"{" else looks_like(path)
        raise UserError(
            f"moments file '{path}' is not the one that was saved with the scheduler's config"
            f"{f' (it is {told})' if told else ''}: it is damaged, or of another saving; measure again."
        )
    try:
        with safe_open(str(path), framework="np") as file:
            header = json.loads(file.metadata()["adpm"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        arrays |= {name: np.array(value) for name, value in header["words"].items()}
        spectrum = Spectrum.of(arrays) if "about" in arrays else None
        moments = Moments(MomentTable.of(arrays), process, spectrum)
        paths = {key: arrays[f"{_PATH}{i}"] for i, key in enumerate(header["paths"])}
        return Known(moments, arrays.get(_ROW), paths)
    except Exception as error:  # json, numpy and safetensors raise a dozen kinds on what others have written
        raise UserError(f"'{path}' is not a moments file of this project: {str(error).rstrip('.')}.") from error
