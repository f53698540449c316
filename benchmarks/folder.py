"""What a folder of small images costs: listing it, and training from it beside training from memory.

    python -m benchmarks.folder [--images=100000] [--workers=2] [--steps=5] [--repeats=9]

First, RGB crops of 32x32 of scikit-learn's photographs are written as PNG files, a thousand to a folder, and listed
(the system has just written them and knows where they are, as it does on a second run of anybody's). Then interleaved
runs of training steps of a U-Net for these images, from memory and from the folder, whose files are read ahead by
worker processes; the ratio of each pair, and their median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.listing import listing
from adpm.run.modes.train import make_trainer
from adpm.run.stored import in_batches
from adpm.run.training import Trainer
from benchmarks.protocol import describe, interleaved

SIZE, PER_FOLDER = 32, 1000
LISTED, SPEED = 10.0, 0.8
"""Goals: seconds for 100,000 files, and a share of the speed from memory."""

NETWORK: dict[str, Any] = {
    "network.model_channels": 16,
    "network.channel_mult": (1, 2, 2),
    "network.attention_downsample": (4,),
}


def write(folder: Path, count: int) -> None:
    """Crops at random places."""
    photographs, draw = load_sample_images().images, np.random.default_rng(0)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        top, left = (draw.integers(0, side - SIZE) for side in photograph.shape[:2])
        place = folder / f"{i // PER_FOLDER:04d}"
        if i % PER_FOLDER == 0:
            place.mkdir()
        Image.fromarray(photograph[top : top + SIZE, left : left + SIZE]).save(place / f"{i:07d}.png", compress_level=1)


def trainers(images: Path, workdir: Path, workers: int, batch: int) -> tuple[Trainer, Trainer]:
    """The same training from memory and from the folder."""
    config = load_config("configs/digits.py")[0]
    fields = {"network.pretrained": "", "data.name": "folder", "data.folder": str(images), "data.workers": workers}
    house().table.update(config, {**fields, **NETWORK, "train.batch_size": batch})
    of_files = Session.make(config, workdir / "files", house(), trains=True)
    of_memory = Session.make(config, workdir / "memory", house(), trains=True)
    splits = {
        name: torch.cat(list(in_batches(stored, torch.arange(len(stored)).split(2048))))
        for name, stored in of_files.data.splits.items()
    }
    of_memory.__dict__["data"] = replace(of_files.data, splits=splits)
    return make_trainer(of_memory), make_trainer(of_files)


def listed(folder: Path) -> float:
    """Seconds that listing a folder takes."""
    started = time.perf_counter()
    listing(folder)
    return time.perf_counter() - started


def rate(trainer: Trainer, count: int = 2000) -> float:
    """Images per second that this process reads from the trainer's files."""
    started, images = time.perf_counter(), trainer.data.split("train")
    _ = images[torch.arange(min(count, len(images)))]
    return min(count, len(images)) / (time.perf_counter() - started)


def parameters(trainer: Trainer) -> float:
    """In millions."""
    return sum(p.numel() for p in trainer.network.parameters()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="steps timed together")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    describe(
        f"a folder of {options.images:,} images of {SIZE}x{SIZE}: {options.workers} workers, batch {options.batch}, "
        f"{options.repeats} interleaved pairs of {options.steps} steps"
    )
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        write(images, options.images)
        print(f"listing:       {listed(images):.2f} s (goal: below {LISTED:g} s for 100,000)")
        memory, files = trainers(images, Path(folder), options.workers, options.batch)
        print(f"reading:       {rate(files):,.0f} images/s in one process, {parameters(files):.1f} million parameters")

        def steps(trainer: Trainer) -> Callable[[], None]:
            def run() -> None:
                for _ in range(options.steps):
                    trainer.step()

            return run

        ratios, seconds = interleaved(steps(memory), steps(files), options.repeats)
    speeds = [1.0 / ratio for ratio in ratios]
    print(f"memory:        {1e3 * statistics.median(seconds) / options.steps:.0f} ms a step (median)")
    low, middle, high = np.quantile(speeds, [0.25, 0.5, 0.75])
    told = f"{middle:.3f} of the speed, median; quartiles {low:.3f} to {high:.3f}"
    print(f"folder/memory: {told} (goal: at least {SPEED})")


if __name__ == "__main__":
    main()
