"""score_sde's training file `checkpoint_*.pth`: a dict of optimizer, model, ema and step; the average has no names.

`ema["shadow_params"]` is a list in the order of the model's entries, without what is never trained: the buffer `sigmas`
and NCSN++'s frequencies `all_modules.0.W`. A longer or shifted list is refused: count and every shape have to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats.checkpoint import EMA, Checkpoint, FormatFacts, Opened, as_state, is_state, unknown_layout
from adpm.formats.names import FREQUENCIES, NOISE, taken_apart
from adpm.formats.plain import checkpoint_of

_NOT_AVERAGED = frozenset({NOISE, FREQUENCIES})


def _recognises(file: Opened) -> bool:
    """An average with names is another format's."""
    stored = file.content
    return isinstance(stored, Mapping) and {"model", "ema"} <= stored.keys() and not is_state(stored["ema"])


def _dict(file: Opened) -> Checkpoint:
    """Raises: UserError unless count and every shape of the average agree with the model's."""
    model, ema = file.content["model"], file.content["ema"]
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not is_state(model) or not isinstance(shadow, list) or not all(isinstance(t, Tensor) for t in shadow):
        raise unknown_layout(file.path)
    return checkpoint_of(_averaged(taken_apart(as_state(model))[0], shadow, file), EMA)


def _averaged(state: Mapping[str, Tensor], shadow: list[Any], file: Opened) -> dict[str, Tensor]:
    """The model's entries with the average in the place of what is trained."""
    names = [name for name in state if name not in _NOT_AVERAGED]
    if len(shadow) != len(names):
        raise UserError(
            f"weights file '{file.path}' holds {len(shadow)} EMA tensors for {len(names)} trained parameters; "
            "they have no names, so which is which cannot be told."
        )
    out = dict(state)
    for name, average in zip(names, shadow, strict=True):
        if average.shape != state[name].shape:
            raise UserError(
                f"weights file '{file.path}' holds an EMA tensor of shape {tuple(average.shape)} where {name} "
                f"{tuple(state[name].shape)} is due; the list does not belong to the parameters."
            )
        out[name] = average.detach()
    return out


DICT = Kind(_dict, "a training file of score_sde: optimizer, model, ema, step", FormatFacts(_recognises))
