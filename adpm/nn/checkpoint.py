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

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adpm.errors import UserError

# Entries that no network uses: a file may have them or not, and a network keeps its own.
_IGNORED = frozenset({"sigmas"})


CONVERTED = "converted"
"""In the header of what others have trained: where it came from, and what it said."""


def save_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a state dict with a JSON header to a safetensors file (whole-or-absent is the caller's part)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path.write_bytes(save(tensors, metadata={"adpm": json.dumps(header, sort_keys=True)}))


def read_header(path: Path) -> dict[str, Any]:
    """What a file of ours says about its training; {} for files of others, converted ones among them."""
    if path.suffix != ".safetensors" or not path.is_file():  # no pipe is a file
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            header = dict(json.loads((file.metadata() or {}).get("adpm", "{}")))
            return {} if CONVERTED in header else header
    except (SafetensorError, ValueError, TypeError):
        return {}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load strictly.

    Raises:
        UserError: naming missing, left-over and differently shaped entries.
    """
    load_part(network, state, source, network.state_dict().keys())


def load_part(
    network: nn.Module, state: Mapping[str, Tensor], source: str, names: Collection[str], shared: bool = False
) -> None:
    """Load the entries `names` of the network, and leave its others as they are; as strict as `load_weights`.

    Args:
        shared: the network's entries become the given tensors, so that none is held twice: for those that are not
            trained.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if name in names and name not in _IGNORED}
    if told := misfit(own, state):
        raise UserError(f"weights '{source}' do not fit the network ({told}).")
    taken = {name: _like(state[name], tensor) for name, tensor in own.items()}
    del own  # the network's own tensors go as they are replaced
    network.load_state_dict(taken, strict=False, assign=shared)


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What a network's entries and given ones do not have in common, in words; "" where they agree."""
    due, given = ({n: t.shape for n, t in s.items() if n not in _IGNORED} for s in (own, state))
    missing, extra = sorted(due.keys() - given.keys()), sorted(given.keys() - due.keys())
    shapes = [
        f"{name} {tuple(given[name])} instead of {tuple(due[name])}"
        for name in due.keys() & given.keys()
        if given[name] != due[name]
    ]
    problems = [("missing", missing), ("left over", extra), ("of another shape", sorted(shapes))]
    return "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in problems if names)


def _like(tensor: Tensor, own: Tensor) -> Tensor:
    """In the precision of the network's own, and on its device unless that is nowhere."""
    return tensor.detach().to(tensor.device if own.is_meta else own.device, own.dtype).contiguous()


def give_up(network: nn.Module, names: Collection[str]) -> None:
    """Let go of the values of entries that are to be loaded, so that old and new ones are never held together."""
    whole = network.state_dict()
    nowhere = {name: torch.empty_like(whole[name], device="meta") for name in names if name not in _IGNORED}
    del whole
    network.load_state_dict(nowhere, strict=False, assign=True)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits over names, shapes and values: the identity of weights in provenance."""
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if name in _IGNORED:
            continue
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
