"""Network weights: our own safetensors files, and the published layouts of foreign checkpoints, read strictly.

Ours: one file, EMA weights under the network's own names, what made them in the header. Foreign (`torch.save`): read
without running code; a bare state dict, itself or under `state_dict` or `model`, a dict with `ema_models_states`, or a
`N.ckpt` directory (Analytic-DPM and Extended-Analytic-DPM), `ema_*.pt` (Improved DDPM), `checkpoint_*.pth` (score_sde),
a folder of a diffusers network.
EMA weights are taken where both kinds are stored; the prefixes `module.` and `_orig_mod.` are taken off.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.nn.diffusers_folder import current_names, network_folder, weights_file
from adpm.pickles import safe_load
from adpm.reading import looks_like, plain_file

# Entries that no network uses: a file may have them or not, and a network keeps its own.
_IGNORED = frozenset({"sigmas"})
# What score_sde never trains and therefore leaves out of its list of EMA weights: that buffer and the Fourier features.
_NOT_AVERAGED = _IGNORED | {"all_modules.0.W"}
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a weights file or checkpoint directory, without the prefixes of parallel or compiled modules.

    Raises:
        UserError: if the file is missing or not plain, of an unknown layout, needs code execution to be read, or holds
            tensors that are no weights.
    """
    if path.is_dir():
        path = weights_file(path) if network_folder(path) else path / "ema_models_states" / "model.pth"
    plain_file(path, "weights file")
    stored = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = current_names(_without_prefixes(_state_dict(stored, path)))
    for name, tensor in state.items():
        if name not in _IGNORED and not (tensor.is_floating_point() and tensor.layout is torch.strided):
            raise UserError(
                f"weights file '{path}' holds {_kind(tensor)} in '{name}'; weights are dense tensors of floating point."
            )
    return state


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype if tensor.layout is torch.strided else tensor.layout).removeprefix("torch.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        told = looks_like(path) or str(error)
        raise UserError(f"weights file '{path}' is not a whole safetensors file ({told}).") from error


def _read_pickle(path: Path) -> object:
    if told := looks_like(path):
        raise UserError(f"weights file '{path}' is not a whole checkpoint: it is {told}.")
    try:
        return safe_load(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"weights file '{path}' cannot be read without running code stored in it; refused.") from error
    except Exception as error:  # torch names a broken file in many ways
        raise UserError(f"weights file '{path}' is not a whole checkpoint ({error}).") from error


def _state_dict(stored: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds: itself, or under one of the names that training codes give it."""
    if isinstance(stored, Mapping) and not _is_state(stored):
        if "ema_models_states" in stored:
            models = stored["ema_models_states"]
            stored = models.get("eps_model", models.get("model")) if isinstance(models, Mapping) else None
        elif {"model", "ema"} <= stored.keys():
            stored = _with_shadow(stored["model"], stored["ema"], path)
        else:
            stored = _wrapped(stored, path)
    if not isinstance(stored, Mapping) or not _is_state(stored):
        raise UserError(
            f"weights file '{path}' is not in a layout this project reads (a state dict, itself or under 'state_dict' "
            "or 'model', or a dict with EMA)."
        )
    return {str(name): tensor.detach() for name, tensor in stored.items()}


def _is_state(stored: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in stored.values())


def _wrapped(stored: Mapping[Any, Any], path: Path) -> object:
    """What lies under `state_dict` or `model`, beside an optimizer and whatever else that is no other set of weights.

    Raises:
        UserError: if there is an average, too, in a layout of which it is not known how its names go.
    """
    inner = next((stored[name] for name in _WRAPPERS if name in stored), None)
    averages = [k for k, v in stored.items() if "ema" in str(k).lower() and isinstance(v, Mapping | list | tuple)]
    if inner is not None and averages:
        raise UserError(
            f"weights file '{path}' holds '{averages[0]}' beside its weights, in a layout that this project does not "
            "read; save the state dict that is to be used as a file of its own."
        )
    return inner


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network has them: what DistributedDataParallel and torch.compile put before all of them goes."""
    while state and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), "")):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _with_shadow(model: Any, ema: Any, path: Path) -> dict[str, Tensor] | None:
    """score_sde's `model` with the EMA weights in place of the raw ones; None where it is not that layout.

    `ema["shadow_params"]` has no names: its tensors are those of `model` in order, without what is never trained.

    Raises:
        UserError: unless count and every shape agree.
    """
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(shadow, list):
        return None
    if not all(isinstance(tensor, Tensor) for tensor in (*model.values(), *shadow)):
        return None
    state = _without_prefixes({str(name): tensor for name, tensor in model.items()})
    names = [name for name in state if name not in _NOT_AVERAGED]
    if len(shadow) != len(names):
        raise UserError(
            f"weights file '{path}' holds {len(shadow)} EMA tensors for {len(names)} trained parameters; "
            "they have no names, so which is which cannot be told."
        )
    for name, average in zip(names, shadow, strict=True):
        if average.shape != state[name].shape:
            raise UserError(
                f"weights file '{path}' holds an EMA tensor of shape {tuple(average.shape)} where {name} "
                f"{tuple(state[name].shape)} is due; the list does not belong to the parameters."
            )
        state[name] = average
    return state


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
