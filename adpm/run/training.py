"""The training loop's one iteration: EMA, warm-up, gradient clipping, and a resume that continues bit for bit.

Iteration i is a pure function of (seed, i) and the state before it: data order, times, noise and dropout are all
seeded per iteration, so a state holds no generator, and a killed run that resumes gives the same weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adpm.denoiser import Denoise
from adpm.errors import UserError, lookup
from adpm.families import Kind
from adpm.moving import moved
from adpm.nn.checkpoint import load_weights, state_hash
from adpm.noise import KeyedNoise
from adpm.objective import Objective
from adpm.objective import losses as losses_of
from adpm.process import Array, Process
from adpm.run.classes import TrainingClasses, given
from adpm.run.dataset import DataSet
from adpm.run.order import batch_indices, mixed
from adpm.run.state import check_state, largest, read_state, torch_save_bytes
from adpm.run.store import differences
from adpm.run.stored import in_batches
from adpm.run.times import TIMES, stratified
from adpm.run.together import Together
from adpm.whole import write_whole

SCHEDULES: dict[str, Kind] = {
    "constant": Kind(lambda: lambda done: 1.0, "the same rate throughout"),
    "cosine": Kind(
        lambda: lambda done: 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))), "to zero at the last iteration"
    ),
}


@dataclass(frozen=True)
class TrainOptions:
    """The fields of config.train that a training may be continued with otherwise."""

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

    def rate(self, iteration: int) -> float:
        """Learning rate at an iteration: linear warm-up times the schedule."""
        warm = min(1.0, (iteration + 1) / max(1, self.warmup))
        schedule = lookup(SCHEDULES, self.schedule, "config.train.schedule").build()
        return self.learning_rate * warm * schedule(iteration / self.iterations)

    def decay(self, iteration: int) -> float:
        """Decay of the average at an iteration k = 0, 1, ...: min(ema_decay, (1 + k) / (10 + k)).

        Without this warm-up, ema_decay^k of the average would still be the initial weights after k iterations.
        """
        return min(self.ema_decay, (1 + iteration) / (10 + iteration))


class Trainer:
    """The state of a training run and its one iteration.

    The average begins as the network and becomes decay_k average + (1 - decay_k) weights at iteration k = 0, 1, ...,
    with `TrainOptions.decay`.

    A saved state goes on with other options than it was saved with: a finished training with more iterations, a
    diverged one with a lower rate. Schedules are functions of the new `iterations`.

    Args:
        network: the module to train, whose parameters are exactly what is optimised, clipped and averaged.
        denoiser: module -> the denoiser around it that the objective sees; called for the network and its average.
        objective: loss per example; None: `loss_of` is the trainer's own.
        state_file: where the state is saved and resumed from.
        facts: what the state depends on besides the options (a frozen trunk); another one's state is refused.
        start: weights to begin with, by the network's names, where there is no state yet; the average begins there,
            too. None: those that the network has.
        classes: of the images; None for a network that is told none.

    Attributes:
        ema: the average, in `ema.module`.
        averaged: its denoiser.
        iteration: iterations that are done.
        changed: the options that the restored state had otherwise, in words; "" when there are none.

    Raises:
        UserError: if there is a state that is damaged or of something else, or if `start` does not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        denoiser: Callable[[nn.Module], Denoise],
        process: Process,
        data: DataSet,
        objective: Objective | None,
        options: TrainOptions,
        seed: int,
        state_file: Path,
        facts: Mapping[str, Any] | None = None,
        start: Mapping[str, Tensor] | None = None,
        classes: TrainingClasses | None = None,
    ) -> None:
        self.network, self.process, self.data, self.classes = network, process, data, classes
        self.objective, self.options, self.seed, self.state_file = objective, options, seed, state_file
        self.facts = {**(facts or {}), "seed": seed, "start": None if start is None else state_hash(start)}
        self.times = TIMES[options.times].build(process)
        if start is not None:
            load_weights(network, start, "start")
        self.denoise = denoiser(network)
        self.device = next(network.parameters()).device
        self.together = Together(options.batch_size, self.device)
        self.ema = AveragedModel(network, multi_avg_fn=self._average)
        self.ema.n_averaged += 1  # the weights that it begins with; else its first update would copy
        self.averaged = denoiser(self.ema.module)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        self.iteration, self.changed = 0, ""
        self._ahead: Generator[Tensor, None, None] = (_ for _ in ())  # batches that are read ahead
        self._last = -1  # the iteration whose batch is at hand
        self._batch: tuple[Tensor, Tensor] | None = None
        if state_file.exists():
            self._restore()
        joined = self.together.joined(network)
        self._stepping = self.denoise if joined is network else denoiser(joined)

    def step(self) -> dict[str, float]:
        """One iteration; returns its loss, gradient norm and learning rate.

        Raises:
            UserError: if the loss or its gradient is not finite (the saved state is left as it was).
        """
        options, i = self.options, self.iteration
        x0, eps, t, weights, classes = self._examples(i)
        self.network.train()
        with torch.random.fork_rng([x0.device] if x0.is_cuda else []):
            torch.manual_seed(mixed(self.seed, i + self.together.salt))  # dropout
            losses = self.loss_of(self._stepping, x0, eps, t[self.together.part], classes)
        weight = moved(weights, losses.device, losses.dtype)
        loss = (losses * weight[self.together.part]).mean()
        of_all = self.together.all_of(losses.detach())
        total = (of_all * weight).mean().item()
        self.require_finite("the training loss", total)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, options.grad_clip or math.inf)
        self.require_finite("the gradient's norm", norm.item())
        rate = options.rate(i)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.ema.update_parameters(self.network)
        self.times.update(t, of_all.double().cpu().numpy())
        self.iteration += 1
        return {"train/loss": total, "train/grad_norm": norm.item(), "train/learning_rate": rate}

    def loss_of(self, denoise: Denoise, x0: Tensor, eps: Tensor, t: Array, classes: Tensor | None = None) -> Tensor:
        """The objective of a denoiser at x_t = alpha_t x0 + sigma_t eps, per example, of these classes if any."""
        assert self.objective is not None, "a trainer without one has losses of its own"
        return losses_of(self.objective, given(denoise, classes), self.process, x0, eps, t)

    def save(self) -> None:
        """Save the state, whole or not at all.

        Raises:
            UserError: if it is no good, see `check`; the saved state is left as it was.
        """
        self.check()
        state = {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "times": self.times.state(),
            "facts": self.facts,
            "options": dataclasses.asdict(self.options),
        }
        write_whole(self.state_file, lambda path: path.write_bytes(torch_save_bytes(state)))

    def check(self) -> None:
        """Look at everything that would be saved, and at the losses that it leads to.

        Raises:
            UserError: if weights, average or optimizer, or a loss of the next examples, is not finite.
        """
        optimizer = [tensor for entry in self.optimizer.state.values() for tensor in entry.values()]
        self.require_finite("the largest weight", largest(self.network.state_dict().values()))
        self.require_finite("the largest averaged weight", largest(self.ema.state_dict().values()))
        self.require_finite("the largest number of the optimizer", largest(optimizer))
        x0, eps, t, _, classes = self._examples(self.iteration)
        self.network.eval()
        self.ema.module.eval()
        with torch.inference_mode():
            for what, denoise in {"the loss": self.denoise, "the loss of the average": self.averaged}.items():
                losses = self.loss_of(denoise, x0, eps, t[self.together.part], classes)
                self.require_finite(what, self.together.all_of(losses).mean().item())

    def require_finite(self, what: str, value: float) -> None:
        """Refuse a number that says that the training has diverged.

        Raises:
            UserError: naming the number and the iteration.
        """
        if not math.isfinite(value):
            kept = f"'{self.state_file}' is the last good state, and goes on with other options"
            raise UserError(
                f"{what} is {value} at iteration {self.iteration}; lower config.train.learning_rate (now "
                f"{self.options.learning_rate}) or config.train.grad_clip"
                + (f": {kept}." if self.state_file.exists() else ". Nothing was saved yet.")
            )

    def _examples(self, iteration: int) -> tuple[Tensor, Tensor, Array, Array, Tensor | None]:
        """x0, eps, times, weights and classes of an iteration: of (seed, iteration) and of what `times` learned.

        Times and weights are those of the whole batch, the others of this rank's part.
        """
        size = self.options.batch_size
        images, stored = self._stored(iteration)
        x0 = moved(self.data.scaled(stored), self.device)
        t, weights = self.times.draw(stratified(self.seed, iteration, size))
        numbers = iteration * size + torch.arange(size, device=self.device)[self.together.part]
        if self.data.flips:
            mirrored = KeyedNoise(self.seed, "flips")(numbers, 0, torch.Size((1, 1, 1))) < 0.0
            x0 = torch.where(mirrored, x0.flip(-1), x0)
        classes = self.classes.of_examples(images, numbers) if self.classes else None
        return x0, KeyedNoise(self.seed, "train")(numbers, 0, x0.shape[1:]), t, weights, classes

    def close(self) -> None:
        """End the processes that read ahead, now: found in a cycle by the garbage collector, they take 5 s each."""
        self._ahead.close()
        self._last, self._batch = -1, None
        self.together.close()

    def _stored(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Numbers and images, as they are stored, of an iteration; those of the next ones are read ahead from files.

        Those of the last one are kept: a check before saving asks for what the next iteration takes.
        """
        if iteration != self._last:
            size, images = self.options.batch_size, self.data.split("train")

            def numbers_of(i: int) -> Tensor:
                return batch_indices(self.seed, i, size, len(images))[self.together.part]

            if iteration != self._last + 1 or self._batch is None:
                self._ahead.close()
                self._ahead = in_batches(images, map(numbers_of, itertools.count(iteration)))
            self._batch, self._last = (numbers_of(iteration), next(self._ahead)), iteration
        assert self._batch is not None
        return self._batch

    def _average(self, averages: Any, parameters: Any, count: Any) -> None:
        get_ema_multi_avg_fn(self.options.decay(self.iteration))(averages, parameters, count)

    def _restore(self) -> None:
        """Go on from the saved state.

        Raises:
            UserError: if it is damaged, or of another training; nothing was taken from it then.
        """
        free = {f"train.{name}": value for name, value in dataclasses.asdict(self.options).items()}
        try:
            state = read_state(self.state_file)
            there = {f"train.{name}": value for name, value in state["options"].items()}
            told = differences(state["facts"], self.facts)
            if not told:
                self._take(state)
        except Exception as error:  # whatever torch says about what it cannot use
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"'{self.state_file}' is not a training state of this config ({what}); remove it."
            ) from error
        if told:
            raise UserError(f"'{self.state_file}' is of a training on something else ({told}); remove it.")
        one_by_one = (differences(there, {name: value}) for name, value in free.items())
        self.changed = "; ".join(filter(None, one_by_one))

    def _take(self, state: Mapping[str, Any]) -> None:
        """Check a state and take it; of the optimizer what it has learned, and not its options.

        Raises:
            ValueError: saying what is off.
        """
        iteration, groups = state["iteration"], self.optimizer.state_dict()["param_groups"]
        check_state(state, self.network.state_dict(), self.ema.state_dict(), self.parameters)
        self.times.restore(state["times"])
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.iteration = iteration
