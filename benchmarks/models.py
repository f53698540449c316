"""The networks that benchmarks/gpu.py runs: the shipped ones, as their files say, and a large random one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adpm.denoiser import Denoiser, TimeLabel, index_label
from adpm.formats import read_weights
from adpm.nn import iddpm, score_sde
from adpm.nn.checkpoint import load_weights, read_header
from adpm.process import Array, DiscreteProcess, Process, linear_betas
from sde.process import VE, VP

PRETRAINED = Path(__file__).parent.parent / "pretrained"
DIGITS = (1, 8, 8)
SHIPPED = ("digits", "digits_vp", "digits_ve", "digits_npr")  # the last is a head alone, on the trunk of the first

NETWORKS: dict[str, Callable[..., nn.Module]] = {"iddpm": iddpm.build, "score_sde": score_sde.build}
PROCESSES: dict[str, Callable[..., Process]] = {
    "linear": lambda steps: DiscreteProcess(linear_betas(steps)),
    "vp": VP,
    "ve": VE,
}
LABELS: dict[str, Callable[[Process], TimeLabel]] = {
    "index": lambda process: index_label(0, 1000.0 / process.steps),
    "time_999": lambda process: lambda t: 999.0 * t,
    "sigma": lambda process: process.sigma,
}

# As in configs/cifar10.py: 52,542,979 parameters.
CIFAR10 = {
    "model_channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "num_res_blocks": 3,
    "attention_downsample": (2, 4),
    "num_heads": 4,
}
TINY = {**CIFAR10, "model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_downsample": (2,)}


@dataclass(frozen=True)
class Model:
    """A network on the CPU, in evaluation mode, and how it is read.

    Attributes:
        shape: (C, H, W) of its images.
        predicts, label: as `adpm.denoiser.Denoiser` takes them.
        range: of the data; x0 is limited to it.
    """

    name: str
    network: nn.Module
    shape: tuple[int, int, int]
    process: Process
    predicts: str
    label: TimeLabel
    range: tuple[float, float]

    def denoiser(self, run: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
        """A denoiser that calls the network through `run`."""
        return Denoiser(run, self.process, predicts=self.predicts, time_label=self.label, clip=self.range)

    def times(self, steps: int) -> Array:
        """`steps` + 1 reference times, evenly spread, from the data to the prior."""
        return self.process.times[np.linspace(0, self.process.steps, steps + 1).round().astype(int)]

    def noisy(self, z: Tensor, eps: Tensor, t: float) -> Tensor:
        """alpha_t x0 + sigma_t eps, x0 = z spread over the data range."""
        low, high = self.range
        x0 = ((low + high) / 2 + (high - low) / 4 * z).clamp(low, high)
        return float(self.process.alpha(t)) * x0 + float(self.process.sigma(t)) * eps


def shipped(name: str) -> Model:
    """A model of `pretrained/`, from the config in the header of its file."""
    path = PRETRAINED / f"{name}.safetensors"
    config = read_header(path)["config"]
    section, denoiser = config["network"], config["denoiser"]
    state = read_weights(path)
    if section["head"] != "none":
        state = {**read_weights(PRETRAINED.parent / section["pretrained"]), **state}
    network = NETWORKS[section["name"]](DIGITS, **options(section, "name", "pretrained", "head_pretrained"))
    load_weights(network, state, str(path))
    process = PROCESSES[config["process"]["name"]](**options(config["process"], "name", "betas_file"))
    low, high = (config["data"].get(end) for end in ("low", "high"))
    return Model(
        name,
        network.eval(),
        DIGITS,
        process,
        denoiser["predicts"],
        LABELS[denoiser.get("label", "index")](process),
        (-1.0 if low is None else low, 1.0 if high is None else high),
    )


def options(section: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """What a section of a header says, without what is unset."""
    return {key: value for key, value in section.items() if value is not None and key not in left_out}


def random_cifar10(tiny: bool = False, **other: Any) -> Model:
    """A network of CIFAR-10's size, or with `other` options, its weights random, so that no layer starts as nothing.

    Their variance is 1/fan-in.
    """
    shape = (3, 8, 8) if tiny else (3, 32, 32)
    network = iddpm.build(shape, **(TINY if tiny else {**CIFAR10, **other}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.dim() > 1:
                p.normal_(0.0, 1.0 / math.sqrt(math.prod(p.shape[1:])), generator=generator)
    process = DiscreteProcess(linear_betas(1000))
    return Model("cifar10", network.eval(), shape, process, "eps", LABELS["index"](process), (-1.0, 1.0))
