"""The file that a stopped training goes on from: the same training makes the same bytes, and nothing else is read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ADAM = ("exp_avg", "exp_avg_sq")
"""What the optimizer keeps of every parameter, in its shape, besides the number of its steps."""


def torch_save_bytes(value: object) -> bytes:
    """What `torch.save` writes, without the name of a file in it: equal values give equal bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def read_state(path: Path) -> dict[str, Any]:
    """The dict in a training state, on the CPU, without running code that may be stored in it.

    Raises:
        ValueError: saying what is off, if it is no plain file, cannot be read, or holds no dict.
    """
    if not path.is_file():
        raise ValueError("it is no plain file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle name a damaged file in many ways
        raise ValueError(f"it cannot be read: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    for name, kind in {"iteration": int, "network": Mapping, "ema": Mapping, "optimizer": Mapping}.items():
        if name not in state:
            raise ValueError(f"{name} is missing")
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise ValueError(f"{name} is {_told(state[name])}")
    for name in ("times", "facts", "options"):  # older states lack some
        if not isinstance(state.setdefault(name, {}), Mapping):
            raise ValueError(f"{name} is {_told(state[name])}")
    return state


def check_tensors(told: str, there: object, like: Mapping[Any, Tensor]) -> None:
    """Refuse tensors that are not those of `like` in name, shape and type, or not finite.

    Raises:
        ValueError: naming the first that is off.
    """
    if not isinstance(there, Mapping):
        raise ValueError(f"{told} is {_told(there)}")
    for names, what in ((like.keys() - there.keys(), "missing"), (there.keys() - like.keys(), "left over")):
        if names:
            raise ValueError(f"{told}: {sorted(map(str, names))[0]} is {what}")
    for name, own in like.items():
        value = there[name]
        if not isinstance(value, Tensor):
            raise ValueError(f"{told}: {name} is {_told(value)}")
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            raise ValueError(
                f"{told}: {name} has shape {tuple(value.shape)} and type {value.dtype}, not {tuple(own.shape)} and "
                f"{own.dtype}"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"{told}: {name} is not finite")


def check_state(
    state: Mapping[str, Any], network: Mapping[str, Tensor], ema: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> None:
    """Refuse a state that is not one of this network, average and AdamW over these parameters.

    Raises:
        ValueError: naming the first entry that is off.
    """
    check_tensors("network", state["network"], network)
    check_tensors("ema", state["ema"], ema)
    iteration, averaged = state["iteration"], int(state["ema"]["n_averaged"])
    # the average counts the weights that it begins with; in older states it did not
    if iteration < 0 or averaged - iteration not in (0, 1):
        raise ValueError(f"iteration is {iteration}, and the average has seen {averaged}")
    _check_optimizer(state["optimizer"].get("state"), parameters, iteration)


def _check_optimizer(state: object, parameters: Sequence[Tensor], iteration: int) -> None:
    if not isinstance(state, Mapping) or bool(state) != bool(iteration):
        raise ValueError(f"optimizer: its state does not go with {iteration} iterations")
    for index, entry in state.items():  # parameters that never had a gradient have none
        told = f"optimizer, parameter {index}"
        if index not in range(len(parameters)):
            raise ValueError(f"{told}: there is none")
        check_tensors(told, entry, {"step": torch.tensor(0.0), **dict.fromkeys(_ADAM, parameters[index])})
        if not 1 <= float(entry["step"]) <= iteration:
            raise ValueError(f"{told}: step is {float(entry['step']):g} of {iteration} iterations")


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value; nan where there is one."""
    return float(np.max([float(tensor.abs().max()) for tensor in tensors if tensor.numel()], initial=0.0))


def _told(value: object) -> str:
    """A value that should not be there, in a few words."""
    return repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f"a {type(value).__name__}"
