"""What a config says of the machine, and the network's call as it wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adpm.errors import UserError
from adpm.run.replay import cuda_graphs
from adpm.run.work import resolve_device, runnable


def check_machine(config: Any, shape: tuple[int, ...]) -> None:
    """Refuse what this machine, or data of this shape, do not have.

    Raises:
        UserError: naming the field.
    """
    if config.graphs and resolve_device(config.device) == torch.device("cpu"):
        raise UserError("config.graphs = True replays recordings on a GPU, but the device is the CPU; set it to False.")
    if config.channels_last and len(shape) != 3:
        raise UserError(f"config.channels_last = True is for images, but the data have shape {shape}; set it to False.")


def called(config: Any, network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """The network's call; with batches of few sizes, where every size has to be prepared."""
    batches = [config[section].batch_size for section in ("moments", "sampling", "likelihood")]
    return runnable(
        network,
        config.precision,
        config.compile,
        device,
        channels_last=config.channels_last,
        record=cuda_graphs() if config.graphs else None,
        sizes=batches if config.compile or config.graphs else (),
    )
