"""What a checkpoint says beside its weights, as JSON in the header of the file that it is converted into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from adpm.errors import UserError
from adpm.formats.checkpoint import Checkpoint
from adpm.nn.checkpoint import CONVERTED


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is said of schedule, noise, side, prediction and what goes with them; what is not said is left out."""
    schedule = checkpoint.schedule
    said = {
        "schedule": None if schedule is None else schedule.tolist(),
        "noise": None if checkpoint.noise is None else list(checkpoint.noise),
        "side": checkpoint.side,
        "predicts": checkpoint.predicts,
        "settled": dict(checkpoint.settled),
        "usual": dict(checkpoint.usual),
    }
    return {name: value for name, value in said.items() if value}


def stated(header: str) -> dict[str, Any]:
    """The inverse, from a file's header: arguments of `Checkpoint`; {} for a header of anything else.

    Raises:
        UserError: if it is damaged.
    """
    try:
        told = dict(json.loads(header)).get(CONVERTED, {})
        found = {name: told[name] for name in ("side", "predicts", "settled", "usual") if name in told}
        if "schedule" in told:
            found["schedule"] = torch.tensor(told["schedule"], dtype=torch.float64)
        if "noise" in told:
            most, least = told["noise"]
            found["noise"] = float(most), float(least)
        if not all(isinstance(found.get(name, {}), Mapping) for name in ("settled", "usual")):
            raise ValueError("what goes with its network is no list of names")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the header of the weights says something that cannot be read ({error}).") from error
    return found
