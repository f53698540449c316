"""State dicts: bare, under `state_dict` or `model`, with an average of the same names beside them or without.

Files of Extended-Analytic-DPM (`*.pth`), Improved DDPM (`ema_*.pt`), DDIM and pytorch_diffusion (`model-*.ckpt`), and
of whoever calls `torch.save(network.state_dict())`; safetensors files, ours among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats.checkpoint import AS_STORED, EMA, OURS, RAW, Checkpoint, FormatFacts, Opened, as_state, is_state
from adpm.formats.checkpoint import unknown_layout as unknown
from adpm.formats.converted import stated
from adpm.formats.names import alphas_cumprod, noise_levels, taken_apart

_WRAPPERS = {name: lambda stored: RAW if "optimizer" in stored else AS_STORED for name in ("state_dict", "model")} | {
    "ema": lambda stored: EMA
}
"""Where a state dict may lie -> which weights those are, by what lies beside them."""


def checkpoint_of(stored: Mapping[Any, Tensor], chosen: str, **more: Any) -> Checkpoint:
    """The checkpoint of a state dict, prefixes and schedule taken off."""
    state, schedule = taken_apart(as_state(stored))
    if any(str(name).startswith("ema_model.") for name in stored) and chosen == AS_STORED:
        chosen = EMA
    return Checkpoint(state, chosen, alphas_cumprod(schedule), noise_levels(state), **more)


def _bare(opened: Opened) -> Checkpoint:
    """A file of ours has a header, with what others said where it was converted."""
    header = opened.metadata.get("adpm")
    if header is None:
        return checkpoint_of(opened.content, AS_STORED)
    return replace(checkpoint_of(opened.content, OURS), **stated(header))


def _wrapped(opened: Opened) -> Checkpoint:
    """Beside an optimizer and whatever else that is no other set of weights.

    Raises:
        UserError: if there is an average, too, that is not the weights' by its names.
    """
    stored = opened.content
    name = next((w for w in _WRAPPERS if w in stored), None)
    if name is None or not is_state(stored[name]):
        raise unknown(opened.path)
    averages = (k for k in stored if k != name and "ema" in str(k).lower())
    others = [k for k in averages if isinstance(stored[k], Mapping | list | tuple)]
    if not others:
        return checkpoint_of(stored[name], _WRAPPERS[name](stored))
    average = stored[others[0]]
    if len(others) == 1 and is_state(average) and same_entries(average, stored[name]):
        return checkpoint_of(average, EMA)
    raise UserError(
        f"weights file '{opened.path}' holds '{others[0]}' beside its weights, in a layout that this project does not "
        "read; save the state dict that is to be used as a file of its own."
    )


def same_entries(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> bool:
    """Whether two state dicts are of one network: names, but for prefixes, and shapes."""
    shapes = [{n: t.shape for n, t in taken_apart(as_state(state))[0].items()} for state in (one, other)]
    return shapes[0] == shapes[1]


BARE = Kind(_bare, "a state dict", FormatFacts(lambda opened: is_state(opened.content)))
WRAPPED = Kind(
    _wrapped,
    "a dict with the state dict under 'state_dict' or 'model'",
    FormatFacts(lambda opened: isinstance(opened.content, Mapping)),
)
