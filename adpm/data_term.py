"""The data term at many times, the expected cost of a last step, measured on training images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from adpm.bound import Images
from adpm.classes import at
from adpm.denoiser import Denoise
from adpm.likelihood import Decoder, Levels, Statistics, keyed_noise, measure_statistics, prior_nats
from adpm.process import Array, Process
from adpm.progress import Arrays, Keep, in_memory, progress

AT_ONCE = 10
"""Times whose terms are measured together: the images are read once for all of them."""


@torch.inference_mode()
def statistics_of(
    denoise: Denoise,
    process: Process,
    decoder: Decoder,
    levels: Levels,
    images: Images,
    numbers: Tensor,
    times: Array,
    *,
    seed: int,
    batch_size: int,
    stream: str = "likelihood",
) -> Statistics:
    """Bound statistics of the images with these numbers at `times`; the default noise is that of the bound."""
    squared, data, prior, dim = [], [], [], 1
    parts = numbers.split(batch_size)
    for part in progress(parts, total=len(parts), what="statistics"):
        x0 = images(part).double()
        dim = x0[0].numel()
        noise = keyed_noise(seed, process, part.to(x0.device), tuple(x0.shape[1:]), x0.dtype, stream)
        rows = list(measure_statistics(at(denoise, part), process, decoder, levels, times, x0, noise))
        squared.append(np.stack([row[1] for row in rows]))
        data.append(np.stack([row[2] for row in rows]))
        prior.append(prior_nats(process, x0).cpu().numpy())
    return Statistics(times, np.concatenate(squared, 1), np.concatenate(data, 1), np.concatenate(prior), dim)


def planning_images(size: int, draws: int, seed: int) -> Tensor:
    """Numbers of the images that planning measures on: `draws` of `size`, chosen by the seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:draws]


def measure_data_row(
    denoise: Denoise,
    process: Process,
    decoder: Decoder,
    levels: Levels,
    images: Images,
    numbers: Tensor,
    times: Array,
    *,
    seed: int,
    batch_size: int,
    keep: Keep = in_memory,
) -> Arrays:
    """Nats per dimension of a last step t -> 0, at these times."""
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "stream": "data term"}

    def work(items: range) -> Arrays:
        some = times[items.start : items.stop]
        found = statistics_of(denoise, process, decoder, levels, images, numbers, some, **options)
        return {"nats": found.data.mean(1) / found.dim}

    parts = keep(len(times), AT_ONCE, work, "data term")
    return {"times": times, "nats": np.concatenate([part["nats"] for part in parts])}


def data_row(process: Process, measured: Arrays) -> Array:
    """F[0, t] in nats per dimension for all reference times, [N+1], interpolated in log-SNR; entry 0 is inf."""
    times, nats = measured["times"].astype(np.float64), measured["nats"].astype(np.float64)
    if len(times) < process.steps:
        nats = PchipInterpolator(-process.log_snr(times), nats)(-process.log_snr(process.times[1:]))
    return np.concatenate([[np.inf], nats])
