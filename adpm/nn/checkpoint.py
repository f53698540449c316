"""Network weights: our own safetensors files, and the published layouts of foreign checkpoints, read strictly.

Ours: one file, EMA weights under the network's own names, what made them in the header. Foreign (`torch.save`): read
without running code; a bare state dict, a dict with `ema_models_states`, or a `N.ckpt` directory (Analytic-DPM and
Extended-Analytic-DPM), `ema_*.pt` (Improved DDPM), `checkpoint_*.pth` (score_sde). EMA weights are taken where both
kinds are stored.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.pickles import safe_load

# Entries that no network uses: a file may have them or not, and a network keeps its own.
_IGNORED = frozenset({"sigmas"})
# What score_sde never trains and therefore leaves out of its list of EMA weights: that buffer and the Fourier features.
_NOT_AVERAGED = _IGNORED | {"all_modules.0.W"}


def save_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a state dict with a JSON header to a safetensors file (whole-or-absent is the caller's part)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, str(path), metadata={"adpm": json.dumps(header, sort_keys=True)})


def read_header(path: Path) -> dict[str, Any]:
    """What a file of ours says about itself; {} for files of others."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get("adpm", "{}")))
    except (SafetensorError, ValueError, TypeError):
        return {}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a weights file or checkpoint directory.

    Raises:
        UserError: if the file is missing, of an unknown layout, or needs code execution to be read.
    """
    if path.is_dir():
        path = path / "ema_models_states" / "model.pth"
    if not path.is_file():
        raise UserError(f"weights '{path}' do not exist.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise UserError(f"weights '{path}' are not a whole safetensors file ({error}).") from error
    try:
        stored = safe_load(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"weights '{path}' cannot be read without running code stored in them; refused.") from error
    except Exception as error:  # torch names a broken file in many ways
        raise UserError(f"weights '{path}' are not a whole checkpoint file ({error}).") from error
    return _state_dict(stored, path)


def _state_dict(stored: object, path: Path) -> dict[str, Tensor]:
    if isinstance(stored, Mapping) and "ema_models_states" in stored:
        models = stored["ema_models_states"]
        stored = models.get("eps_model", models.get("model")) if isinstance(models, Mapping) else None
    elif isinstance(stored, Mapping) and {"model", "ema"} <= stored.keys():
        stored = _with_shadow(stored["model"], stored["ema"], path)
    if not isinstance(stored, Mapping) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise UserError(f"weights '{path}' are not in a layout this project reads (a state dict, or a dict with EMA).")
    return {str(name): tensor.detach() for name, tensor in stored.items()}


def _with_shadow(model: Any, ema: Any, path: Path) -> dict[str, Tensor] | None:
    """score_sde's `model` with the EMA weights in place of the raw ones; None where it is not that layout.

    `ema["shadow_params"]` has no names: its tensors are those of `model` in order, without what is never trained.

    Raises:
        UserError: unless count and every shape agree.
    """
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(shadow, list):
        return None
    state = {str(name).removeprefix("module."): tensor for name, tensor in model.items()}
    if not all(isinstance(tensor, Tensor) for tensor in (*state.values(), *shadow)):
        return None
    names = [name for name in state if name not in _NOT_AVERAGED]
    if len(shadow) != len(names):
        raise UserError(
            f"weights '{path}' hold {len(shadow)} EMA tensors for {len(names)} trained parameters; "
            "they have no names, so which is which cannot be told."
        )
    for name, average in zip(names, shadow, strict=True):
        if average.shape != state[name].shape:
            raise UserError(
                f"weights '{path}' hold an EMA tensor of shape {tuple(average.shape)} where {name} "
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
        raise UserError(f"weights '{source}' do not fit config.network ({told}).")
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
