"""--mode=train: fit a network or a head, watch it in TensorBoard, leave EMA weights in the workdir."""

from __future__ import annotations

import dataclasses
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from adpm.classes import at
from adpm.denoiser import Denoise
from adpm.moving import moved
from adpm.nn.checkpoint import save_weights
from adpm.noise import KeyedNoise
from adpm.progress import progress, say
from adpm.ranks import ranks
from adpm.run.assembly import Session
from adpm.run.classes import TrainingClasses, of_samples
from adpm.run.interrupts import Stop, deferred_interrupt
from adpm.run.report import Report, image_grid
from adpm.run.trainees import Trainee, trainee_for
from adpm.run.training import Trainer
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.trajectory import Request, trajectory
from adpm.variance import Small
from adpm.whole import write_whole

_PREVIEW_STEPS, _PREVIEW_SAMPLES, _TEST_PASSES, _TEST_IMAGES = 50, 36, 4, 512


def train(session: Session) -> None:
    """Train until config.train.iterations, from the saved state if there is one."""
    trainee = trainee_for(session)
    board = session.workdir / "tensorboard"
    with closing(make_trainer(session, trainee)) as trainer:
        if trainer.iteration:
            changed = f" ({trainer.changed})" if trainer.changed else ""
            say(f"continuing at iteration {trainer.iteration} of {trainer.options.iterations}{changed}.")
        if trainer.iteration < trainer.options.iterations:
            parameters = sum(p.numel() for p in trainer.network.parameters())
            each = f", {trainer.together.own} images each" if ranks().size > 1 else ""
            of = f" in {ranks().size} processes{each}" if each else ""
            say(f"training {parameters:,} parameters on {session.device} ({session.config.precision}){of}.")
            shown = of_samples(session, session.denoiser(trainer.ema.module, clip=True))
            chosen = {"objective": session.config.train.objective} | dataclasses.asdict(trainer.options)
            with Report(board / trainee.name, last=trainer.iteration) as report, deferred_interrupt() as stop:
                report.trial(trainee.name, chosen)
                loop(trainer, report, shown, stop)
        export(trainee, trainer)
    say(f"weights (EMA): {trainee.file}")
    say(f"TensorBoard: tensorboard --logdir {board}")


def make_trainer(session: Session, trainee: Trainee | None = None) -> Trainer:
    """The trainer of a session, restored from the workdir's state."""
    trainee = trainee or trainee_for(session)
    return trainee.trainer(
        trainee.network,
        trainee.denoiser or (lambda network: session.denoiser(network, clip=trainee.clip)),
        session.process,
        session.data,
        trainee.objective,
        trainee.options,
        session.config.seed,
        session.workdir / f"{trainee.name}_state.pt",
        trainee.facts,
        trainee.start,
        trainee.classes or TrainingClasses.of(session),
    )


def loop(trainer: Trainer, report: Report, shown: Denoise, stop: Stop) -> None:
    """All iterations that are left, with their reports; a state is saved after what was reported up to it.

    Args:
        shown: denoiser of the average that sample grids are made with.
        stop: asks the loop to stop after an iteration.

    Raises:
        UserError: when the training diverges.
        KeyboardInterrupt, SystemExit: when it was stopped, with its state saved.
    """
    options = trainer.options
    left = range(trainer.iteration, options.iterations)
    bar = progress(left, total=options.iterations, initial=trainer.iteration, what="iteration")
    for _ in bar:
        values = trainer.step()
        done, last = trainer.iteration, trainer.iteration == options.iterations
        bar.set_postfix(refresh=False, loss=f"{values['train/loss']:.4f}")
        if done % options.log_every == 0:
            report.scalars(values, done)
        if done % options.test_every == 0 or last:
            loss = held_out_loss(trainer)
            report.scalars({"test/loss": loss}, done)
            say(f"iteration {done}: test loss {loss:.4f} (EMA), loss {values['train/loss']:.4f}")
        if options.sample_every and done % options.sample_every == 0:
            report.picture("train/samples", preview(trainer, shown), done)
        stopping = trainer.together.largest(stop.signal or 0)  # all ranks stop after the same iteration
        if done % options.save_every == 0 or last or stopping:
            report.flush()  # a state goes on with what was reported before it
            trainer.save()
        if stopping:
            stop.signal = stopping
            say(f"stopped after iteration {done}; the state is saved in '{trainer.state_file}'.")
            raise stop.error()


@torch.inference_mode()
def held_out_loss(trainer: Trainer) -> float:
    """The EMA network's loss on test images, the same times and noise at every call.

    Raises:
        UserError: if it is not finite.
    """
    trainer.ema.module.eval()  # again: a trunk that a head's average shares with the trained head is in its mode
    data, process = trainer.data, trainer.process
    images = data.split("test")[:_TEST_IMAGES]
    noise = KeyedNoise(trainer.seed, "test loss")
    total, batch = 0.0, 4 * trainer.options.batch_size  # no gradients are kept
    for k in range(_TEST_PASSES):
        # golden-ratio times: evenly spread over 1..N without a seed
        fractions = (np.arange(len(images)) * 0.618033988749895 + k / _TEST_PASSES) % 1.0
        times = process.uniform_times(fractions)
        for numbers in torch.arange(len(images)).split(batch):
            x0 = moved(data.scaled(images[numbers]), trainer.device)
            eps = noise(numbers.to(trainer.device), k, x0.shape[1:])
            classes = trainer.classes.of_tests(numbers) if trainer.classes else None
            total += trainer.loss_of(trainer.averaged, x0, eps, times[numbers.numpy()], classes).sum().item()
    loss = total / (_TEST_PASSES * len(images))
    trainer.require_finite("the test loss", loss)
    return loss


@torch.inference_mode()
def preview(trainer: Trainer, denoise: Denoise) -> Tensor:
    """A grid of DDPM samples of the EMA network, the same noise at every call."""
    process, data = trainer.process, trainer.data
    times = process.times[trajectory("even", Request(process, min(_PREVIEW_STEPS, process.steps)))]
    numbers = torch.arange(_PREVIEW_SAMPLES, device=trainer.device)
    noise = keyed(KeyedNoise(trainer.seed, "preview"), numbers, data.shape)
    trainer.ema.module.eval()
    for step in sample(at(denoise, numbers), ReverseGaussian(process, Small()), process, times, noise):
        x = step.x
    return image_grid(data.to_unit(x).cpu())


def export(trainee: Trainee, trainer: Trainer) -> None:
    """Write the EMA weights with what made them.

    Raises:
        UserError: if they are not finite.
    """
    trainer.check()
    state, header = trainee.tensors(trainer.ema.module), trainee.header(trainer.iteration)
    write_whole(trainee.file, lambda path: save_weights(path, state, header))
