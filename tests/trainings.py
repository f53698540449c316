"""A training that takes milliseconds: two layers on the toy mixture, without config, workdir and mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adpm.denoiser import Denoiser
from adpm.objective import eps_matching
from adpm.process import linear
from adpm.run.data import toy
from adpm.run.training import Trainer, TrainOptions
from configs import base

PROCESS = linear(100)
DATA = toy()


class Small(nn.Module):
    """eps from x [B, 1, 4, 4] and the label; what its dropout lets pass is never exactly 0."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(17, 32), nn.Linear(32, 16)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = torch.tanh(self.first(torch.cat([x.flatten(1), label[:, None] / PROCESS.steps], dim=1)))
        return self.second(self.drop(h)).reshape(x.shape)


def denoiser(network: nn.Module) -> Denoiser:
    return Denoiser(network, PROCESS)


def options(**changes: Any) -> TrainOptions:
    """The defaults, changed."""
    train = base.get_config().train.to_dict()
    return TrainOptions(**{name: train[name] for name in TrainOptions.__dataclass_fields__} | changes)


def small_trainer(folder: Path, *, network: nn.Module | None = None, **changes: Any) -> Trainer:
    """A trainer whose state lies in the folder; what is not one of its own arguments is an option.

    `loss` is the objective.
    """
    own = {"data": DATA, "loss": eps_matching, "seed": 0, "facts": None, "start": None, "denoiser": denoiser}
    own |= {name: changes.pop(name) for name in list(changes) if name in own}
    loss = own.pop("loss")
    return Trainer(
        network or Small(),
        process=PROCESS,
        objective=loss,
        options=options(**{"batch_size": 16, "iterations": 30, "warmup": 0, "sample_every": 0} | changes),
        state_file=folder / "train_state.pt",
        **own,
    )


def steps(trainer: Trainer, number: int) -> Trainer:
    for _ in range(number):
        trainer.step()
    return trainer
