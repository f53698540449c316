"""Network weights: our own safetensors files, and loading into networks, strictly.

Ours: one file, EMA weights under the network's own names, what made them in the header. What else is read, and how,
`adpm.formats` says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adpm.errors import UserError

# Entries that no network uses: a file may have them or not, and a network keeps its own.
_IGNORED = frozenset({"sigmas"})


def save_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a state dict with a JSON header to a safetensors file (whole-or-absent is the caller's part)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path.write_bytes(save(tensors, metadata={"adpm": json.dumps(header, sort_keys=True)}))


def read_header(path: Path) -> dict[str, Any]:
    """What a file of ours says about itself; {} for files of others."""
    if path.suffix != ".safetensors" or not path.is_file():  # no pipe is a file
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get("adpm", "{}")))
    except (SafetensorError, ValueError, TypeError):
        return {}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load strictly.

    Raises:
        UserError: naming missing, left-over and differently shaped entries.
    """
    load_part(network, state, source, network.state_dict().keys())


def load_part(network: nn.Module, state: Mapping[str, Tensor], source: str, names: Collection[str]) -> None:
    """Load the entries `names` of the network, and leave its others as they are; as strict as `load_weights`."""
    whole = network.state_dict()
    own = {name: tensor for name, tensor in whole.items() if name in names}
    kept = {name: tensor for name, tensor in own.items() if name in _IGNORED}
    state = {name: tensor for name, tensor in state.items() if name not in _IGNORED} | kept
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{n} {tuple(state[n].shape)} instead of {tuple(own[n].shape)}"
        for n in own.keys() & state.keys()
        if state[n].shape != own[n].shape
    ]
    problems = [("missing", missing), ("left over", extra), ("of another shape", sorted(shapes))]
    told = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in problems if names)
    if told:
        raise UserError(f"weights '{source}' do not fit the network ({told}).")
    network.load_state_dict(whole | state)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits over names, shapes and values: the identity of weights in provenance."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if name in _IGNORED:
            continue
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
