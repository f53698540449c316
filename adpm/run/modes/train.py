"""--mode=train: fit a network or a head, watch it in TensorBoard, leave EMA weights in the workdir."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adpm.denoiser import Denoise
from adpm.nn.checkpoint import save_weights
from adpm.noise import KeyedNoise
from adpm.run.assembly import Session
from adpm.run.files import write_whole
from adpm.run.report import Report, image_grid, progress, say
from adpm.run.trainees import Trainee, trainee_for
from adpm.run.training import Trainer, deferred_interrupt
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.trajectory import Request, trajectory
from adpm.variance import Small

_PREVIEW_STEPS, _PREVIEW_SAMPLES, _TEST_PASSES, _TEST_IMAGES = 50, 36, 4, 512


def train(session: Session) -> None:
    """Train until config.train.iterations, from the saved state if there is one."""
    trainee = trainee_for(session)
    trainer = make_trainer(session, trainee)
    options = trainer.options
    if trainer.iteration:
        say(f"continuing at iteration {trainer.iteration} of {options.iterations}.")
    parameters = sum(p.numel() for p in trainer.network.parameters())
    say(f"training {parameters:,} parameters on {session.device} ({session.config.precision}).")
    report = Report(session.workdir / "tensorboard" / trainee.name, purge_step=trainer.iteration)
    averaged = session.denoiser(trainer.ema.module.eval(), clip=trainee.clip)
    shown = session.denoiser(trainer.ema.module, clip=True)
    bar = progress(range(trainer.iteration, options.iterations), total=options.iterations, initial=trainer.iteration)
    with deferred_interrupt() as interrupted:
        for _ in bar:
            values = trainer.step()
            done = trainer.iteration
            bar.set_postfix(loss=f"{values['train/loss']:.4f}", refresh=False)
            if done % options.log_every == 0:
                report.scalars(values, done)
            if done % options.test_every == 0 or done == options.iterations:
                losses = test_losses(session, trainer, averaged)
                report.scalars(losses, done)
                say(f"iteration {done}: test loss {losses['test/loss']:.4f} (EMA), loss {values['train/loss']:.4f}")
            if options.sample_every and done % options.sample_every == 0:
                report.picture("train/samples", preview(session, shown), done)
            if done % options.save_every == 0 or done == options.iterations or interrupted():
                trainer.save()
            if interrupted():
                report.close()
                say(f"stopped after iteration {done}; the state is saved in '{trainer.state_file}'.")
                raise KeyboardInterrupt
    export(trainee, trainer)
    report.close()
    say(f"weights (EMA): {trainee.file}")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")


def make_trainer(session: Session, trainee: Trainee | None = None) -> Trainer:
    """The trainer of a session, restored from the workdir's state."""
    trainee = trainee or trainee_for(session)
    return Trainer(
        trainee.network,
        session.denoiser(trainee.network, clip=trainee.clip),
        session.process,
        session.data,
        trainee.objective,
        trainee.options,
        session.config.seed,
        session.workdir / f"{trainee.name}_state.pt",
        trainee.facts,
    )


@torch.inference_mode()
def test_losses(session: Session, trainer: Trainer, denoise: Denoise) -> dict[str, float]:
    """The EMA network's loss on test images, the same times and noise at every call."""
    trainer.ema.module.eval()  # again: a trunk that a head's average shares with the trained head is in its mode
    images = session.data.split("test")[:_TEST_IMAGES]
    noise = KeyedNoise(session.config.seed, "test loss")
    total = 0.0
    for k in range(_TEST_PASSES):
        # golden-ratio times: evenly spread over 1..N without a seed
        fractions = (np.arange(len(images)) * 0.618033988749895 + k / _TEST_PASSES) % 1.0
        times = session.process.uniform_times(fractions)
        for numbers in torch.arange(len(images)).split(session.config.train.batch_size):
            x0 = session.data.scaled(images[numbers]).to(session.device)
            eps = noise(numbers.to(session.device), k, x0.shape[1:])
            total += trainer.loss_of(denoise, x0, eps, times[numbers.numpy()]).sum().item()
    return {"test/loss": total / (_TEST_PASSES * len(images))}


@torch.inference_mode()
def preview(session: Session, denoise: Denoise) -> Tensor:
    """A grid of DDPM samples of the EMA network, the same noise at every call."""
    process = session.process
    times = process.times[trajectory("even", Request(process, min(_PREVIEW_STEPS, process.steps)))]
    numbers = torch.arange(_PREVIEW_SAMPLES, device=session.device)
    noise = keyed(KeyedNoise(session.config.seed, "preview"), numbers, session.data.shape)
    for step in sample(denoise, ReverseGaussian(process, Small()), process, times, noise):
        x = step.x
    return image_grid(session.data.to_unit(x).cpu())


def export(trainee: Trainee, trainer: Trainer) -> None:
    """Write the EMA weights with what made them."""
    state, header = trainee.tensors(trainer.ema.module), trainee.header(trainer.iteration)
    write_whole(trainee.file, lambda path: save_weights(path, state, header))
