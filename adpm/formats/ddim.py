"""DDIM's training file: a list [weights, optimizer, epoch, step], and a fifth entry where there is an average."""

from __future__ import annotations

from collections.abc import Mapping

from adpm.errors import UserError
from adpm.families import Kind
from adpm.formats.checkpoint import EMA, RAW, Checkpoint, FormatFacts, Opened, is_state
from adpm.formats.plain import checkpoint_of, same_entries

_WITH_AVERAGE = 3
"""Entries that a list has at least where its last is an average: weights, optimizer, average."""


def _recognises(file: Opened) -> bool:
    """Weights first, then an optimizer: no other list is read."""
    stored = file.content
    if not isinstance(stored, (list, tuple)) or len(stored) < _WITH_AVERAGE - 1 or not is_state(stored[0]):
        return False
    return isinstance(stored[1], Mapping) and "param_groups" in stored[1]


def _list(file: Opened) -> Checkpoint:
    """Raises: UserError if the last entry is an average of something else."""
    raw, last = file.content[0], file.content[-1]
    if len(file.content) < _WITH_AVERAGE or not isinstance(last, Mapping):
        return checkpoint_of(raw, RAW)
    if not is_state(last) or not same_entries(last, raw):
        raise UserError(
            f"weights file '{file.path}' ends in an average whose names or shapes are not those of its weights; "
            "they do not belong together."
        )
    return checkpoint_of(last, EMA)


LIST = Kind(
    _list, "a training file of DDIM, a list of weights, optimizer, epoch, step, average", FormatFacts(_recognises)
)
