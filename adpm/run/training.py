"""The training loop's one iteration: EMA, warm-up, gradient clipping, and a resume that continues bit for bit.

Iteration i is a pure function of (seed, i) and the state before it: data order, times, noise and dropout are all
seeded per iteration, so a state holds no generator, and a killed run that resumes gives the same weights.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adpm.denoiser import Denoise, per_sample
from adpm.errors import UserError, lookup
from adpm.noise import KeyedNoise
from adpm.objective import Objective
from adpm.process import Process
from adpm.run.data import DataSet
from adpm.run.files import differences, write_whole
from adpm.run.times import TIMES

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))),
}


@dataclass(frozen=True)
class TrainOptions:
    """config.train, checked; see configs/base.py for units."""

    objective: str
    times: str
    iterations: int
    batch_size: int
    learning_rate: float
    warmup: int
    schedule: str
    weight_decay: float
    grad_clip: float
    ema_decay: float
    log_every: int
    test_every: int
    sample_every: int
    save_every: int
    trunk_dropout: bool

    def __post_init__(self) -> None:
        least = dict.fromkeys(("iterations", "batch_size", "log_every", "test_every", "save_every"), 1)
        least |= dict.fromkeys(("warmup", "sample_every", "weight_decay", "grad_clip"), 0)
        for name, value in least.items():
            if not value <= getattr(self, name) < math.inf:
                raise UserError(f"config.train.{name} = {getattr(self, name)} must be a number of at least {value}.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"config.train.ema_decay = {self.ema_decay} must lie in [0, 1).")
        if not 0.0 < self.learning_rate < math.inf:
            raise UserError(f"config.train.learning_rate = {self.learning_rate} must be positive and finite.")

    def rate(self, iteration: int) -> float:
        """Learning rate at an iteration: linear warm-up times the schedule."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        return (
            self.learning_rate
            * warm
            * lookup(SCHEDULES, self.schedule, "config.train.schedule")(iteration / self.iterations)
        )


def batch_indices(seed: int, iteration: int, batch_size: int, size: int) -> Tensor:
    """Indices of one batch: consecutive pieces of one fresh permutation per epoch."""
    first = iteration * batch_size
    epochs = range(first // size, (first + batch_size - 1) // size + 1)
    order = torch.cat(
        [torch.randperm(size, generator=torch.Generator().manual_seed((seed << 32) + epoch)) for epoch in epochs]
    )
    start = first - epochs[0] * size
    return order[start : start + batch_size]


def stratified(seed: int, iteration: int, batch_size: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one per stratum of the batch (a lower variance than independent draws)."""
    offset = np.random.default_rng((seed, iteration)).random()
    return (offset + np.arange(batch_size) / batch_size) % 1.0


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that a loop can stop between iterations; the second one interrupts."""
    requested = False
    previous = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, previous)


class Trainer:
    """The state of a training run and its one iteration.

    Args:
        network: the module to train, whose parameters are exactly what is optimised, clipped and averaged.
        denoise: denoiser around `network`.
        objective: loss per example.
        state_file: where the state is saved and resumed from.
        facts: what the state depends on besides the config (a frozen trunk); another one's state is refused.
    """

    def __init__(
        self,
        network: nn.Module,
        denoise: Denoise,
        process: Process,
        data: DataSet,
        objective: Objective,
        options: TrainOptions,
        seed: int,
        state_file: Path,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.denoise, self.process, self.data = network, denoise, process, data
        self.objective, self.options, self.seed, self.state_file = objective, options, seed, state_file
        self.facts = dict(facts or {})
        self.times = TIMES[options.times](process)
        self.device = next(network.parameters()).device
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        self.iteration = 0
        if state_file.exists():
            self._restore()

    def step(self) -> dict[str, float]:
        """One iteration; returns its loss, gradient norm and learning rate.

        Raises:
            UserError: if the loss is not finite (the saved state is left as it was).
        """
        options, i = self.options, self.iteration
        torch.manual_seed((self.seed << 32) + i)  # dropout
        stored = self.data.split("train")
        index = batch_indices(self.seed, i, options.batch_size, len(stored))
        x0 = self.data.scaled(stored[index]).to(self.device)
        t, weights = self.times.draw(stratified(self.seed, i, options.batch_size))
        numbers = i * options.batch_size + torch.arange(options.batch_size, device=self.device)
        eps = KeyedNoise(self.seed, "train")(numbers, 0, x0.shape[1:])
        self.network.train()
        losses = self.loss_of(self.denoise, x0, eps, t)
        loss = (losses * torch.as_tensor(weights, dtype=losses.dtype, device=losses.device)).mean()
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss is {loss.item()} at iteration {i}; lower config.train.learning_rate "
                f"(now {options.learning_rate}) or config.train.grad_clip. The last saved state is untouched."
            )
        rate = options.rate(i)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), options.grad_clip or math.inf)
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        self.times.update(t, losses.detach().double().cpu().numpy())
        self.iteration += 1
        return {"train/loss": loss.item(), "train/grad_norm": norm.item(), "train/learning_rate": rate}

    def loss_of(self, denoise: Denoise, x0: Tensor, eps: Tensor, t: np.ndarray) -> Tensor:
        """The objective of a denoiser at x_t = alpha_t x0 + sigma_t eps, per example."""
        x = per_sample(self.process.alpha(t), x0) * x0 + per_sample(self.process.sigma(t), x0) * eps
        return self.objective(denoise(x, t), x0, eps, t)

    def save(self) -> None:
        state = {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "times": self.times.state(),
            "facts": self.facts,
        }
        write_whole(self.state_file, lambda path: torch.save(state, path))

    def _restore(self) -> None:
        try:
            state = torch.load(self.state_file, map_location=self.device, weights_only=True)
            told = differences(state.get("facts", {}), self.facts)
            if not told:
                self.network.load_state_dict(state["network"])
                self.ema.load_state_dict(state["ema"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.times.restore(state.get("times", {}))
                self.iteration = int(state["iteration"])
        except Exception as error:
            raise UserError(
                f"'{self.state_file}' is not a training state of this config ({error}); remove it."
            ) from error
        if told:
            raise UserError(f"'{self.state_file}' is of a training on something else ({told}); remove it.")
