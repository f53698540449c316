"""Measuring the network of a pipeline on images, or on their latents where it works on these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adpm.conventions import facts_of
from adpm.data_term import measure_data_row, planning_images
from adpm.diffusers.nodes import Choice, Known, path_of
from adpm.errors import UserError
from adpm.likelihood import Levels
from adpm.measured import Moments
from adpm.model import Model
from adpm.moments import implausible
from adpm.noise import KeyedNoise

PIXEL_LEVELS = 256
"""Of images of eight bits in [-1, 1]; latents are continuous."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        draws: at each time, of images and of noise.
        times: even in log-SNR; 0 = all.
        seed: of them.
        batch_size: images per network call.
        starts, nodes: of the trajectories that fitted times are found on, where these are asked for.
    """

    draws: int = 300
    times: int = 100
    seed: int = 0
    batch_size: int = 64
    starts: int = 200
    nodes: int = 60


def network_of(pipe: Any) -> nn.Module:
    """The network of a pipeline.

    Raises:
        UserError: if it has no `unet`.
    """
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise UserError(f"a pipeline with a `unet` is wanted, and {type(pipe).__name__} has none.")
    return unet


def encoder_of(pipe: Any) -> nn.Module | None:
    """The autoencoder of a pipeline whose network works on latents; None where it works on pixels."""
    found = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    return found if isinstance(found, nn.Module) else None


@torch.no_grad()
def latents_of(encoder: nn.Module, images: Tensor, seed: int, batch_size: int) -> Tensor:
    """What a network of latents was trained on: (z - shift) scale, z drawn from the encoder's Gaussian.

    Args:
        encoder: AutoencoderKL, or VQModel, which has no Gaussian.
        images: [n, C, H, W] in [-1, 1].
        seed: of the draws, which are a function of (seed, image).
        batch_size: images per call.
    """
    config: Mapping[str, Any] = getattr(encoder, "config", {})
    shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
    first, keyed, parts = next(encoder.parameters()), KeyedNoise(seed, "latents"), []
    for numbers in torch.arange(len(images)).split(batch_size):
        made = encoder.encode(images[numbers].to(first.device, first.dtype))  # type: ignore[operator]
        if hasattr(made, "latent_dist"):
            mean, deviation = made.latent_dist.mean.float(), made.latent_dist.std.float()
            z = mean + deviation * keyed(numbers.to(first.device), 0, tuple(mean.shape[1:]))
        else:
            z = made.latents.float()
        parts.append((z - shift) * scale)
    return torch.cat(parts)


def config_of(pipe: Any) -> dict[str, Any]:
    """The config of a pipeline's scheduler, as a network of latents wants it where it is one: x_0 is not limited."""
    latent = {"steps_offset": 1, "clip_sample": False} if encoder_of(pipe) is not None else {}
    return {**pipe.scheduler.config, **latent}


def known_of(
    pipe: Any,
    scheduler: Any,
    choice: Choice,
    images: Tensor,
    steps: int | Sequence[int],
    effort: Effort,
    *,
    basis: str,
    levels: int | None,
    conditions: Mapping[str, Tensor] | None,
) -> Known:
    """Moments of a pipeline's network, the price of the last step, and paths of so many steps.

    Args:
        pipe, images, steps, effort, basis, levels, conditions: see `AnalyticScheduler.from_pipeline`.
        scheduler: its config says how the network is read.
        choice: what the moments are for.

    Raises:
        UserError: if pipe and images do not fit, or if no network has such moments that is what it is said to be.
    """
    unet, encoder, counts = network_of(pipe), encoder_of(pipe), [steps] if isinstance(steps, int) else list(steps)
    _require_images(images)
    if wrong := [count for count in counts if not 1 <= count <= len(scheduler)]:
        raise UserError(f"`steps` = {wrong[0]} must lie in 1..{len(scheduler)}, the timesteps of the scheduler.")
    if encoder is not None:
        images = latents_of(encoder, images, effort.seed, effort.batch_size)
    if levels is None:
        levels = PIXEL_LEVELS if encoder is None else 0
    model = Model.from_diffusers(unet, scheduler, conditions=conditions)
    own: dict[str, Any] = {"seed": effort.seed, "batch_size": effort.batch_size}
    about: dict[str, Any] = {"basis": basis if choice.per_coordinate else "", "provenance": facts_of(scheduler.config)}
    moments = model.measure(images, effort.draws, effort.times, **about, **own)
    if told := implausible(moments.table, model.process):
        raise UserError(f"these moments are of no network that fits the scheduler's config: {told}.")
    nats = _data_nats(model, moments, images, effort, levels) if choice.prices_the_data else None
    known = Known(moments, nats)
    flow = cache(lambda: model.measure_trajectories(images, effort.starts, effort.nodes, **own))
    for count in counts:
        path_of(choice, count, scheduler.process, known, flow)
    return known


def _require_images(images: Tensor) -> None:
    if not images.is_floating_point() or images.ndim != 4 or not len(images):
        told = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(f"`images` are {told}; floats [n, C, H, W] in [-1, 1] are wanted.")
    low, high = float(images.min()), float(images.max())
    if not -1.001 <= low <= high <= 1.001:
        raise UserError(f"`images` lie in [{low:.4g}, {high:.4g}], and those of diffusers in [-1, 1].")


def _data_nats(model: Model, moments: Moments, images: Tensor, effort: Effort, levels: int) -> Any:
    """Nats per dimension of a last step from each measured time, with the decoder's best variance."""
    seen, count = model.on_device(images, "train")
    found = measure_data_row(
        model.denoise,
        model.process,
        model.decoder("optimal", moments),
        Levels(levels, -1.0, 1.0),
        seen,
        planning_images(count, effort.draws, effort.seed),
        moments.times,
        seed=effort.seed,
        batch_size=effort.batch_size,
    )
    return found["nats"]
