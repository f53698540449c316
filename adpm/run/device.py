"""Where and how a network runs: device, precision, compilation. All three are config fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from adpm.errors import UserError, lookup

Autocast = Callable[[], AbstractContextManager[object]]


def _auto() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cuda() -> torch.device:
    if not torch.cuda.is_available():
        raise UserError("config.device = 'cuda', but this torch sees no GPU; use auto or cpu.")
    return torch.device("cuda")


DEVICES: dict[str, Callable[[], torch.device]] = {"auto": _auto, "cpu": lambda: torch.device("cpu"), "cuda": _cuda}


def resolve_device(name: str) -> torch.device:
    return lookup(DEVICES, name, "config.device")()


PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def autocast(precision: str, device: torch.device) -> Autocast:
    """A context for network calls: plain float32, or bfloat16 autocast (weights and results stay float32)."""
    dtype = lookup(PRECISIONS, precision, "config.precision")
    if dtype is None:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def runnable(
    network: nn.Module, precision: str, compiled: bool, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as the rest of the code calls it: on its device, in its precision, compiled or not."""
    network.to(device)
    call: Callable[[Tensor, Tensor], Tensor] = torch.compile(network) if compiled else network
    context = autocast(precision, device)

    def forward(x: Tensor, label: Tensor) -> Tensor:
        with context():
            return call(x.float(), label.float()).float()

    return forward


@contextmanager
def inference(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, restored afterwards."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)
