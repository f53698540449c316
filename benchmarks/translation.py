"""Faithfulness against realism in the translation of digits: threes into eights, at 10, 25 and 100 steps.

configs/digits_translate.py: the digits model with the classifier's energy of eights is the model of the target, sources
are training threes. SDEdit has no other energy and begins at several shares of the times; EGSDE adds `features` and
`low_pass`, the latter by several weights, begins at the config's share, and has the rules small, analytic and spectral.

    L2, SSIM    to the source: faithfulness (SSIM over windows of 7x7 pixels, by torchmetrics)
    Frechet     to the training eights in the digits classifier's features: realism; as many real eights are the floor
    eights      share that the digits classifier, which the guidance does not know, takes for eights

    python -m benchmarks.translation [--images=96] [--steps 10 25 100] [--workdir=runs/translation]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.metrics import DIGITS, digit_features, frechet
from adpm.run.translations import translations_for
from benchmarks.protocol import describe

CONFIG, TARGET = "configs/digits_translate.py", 8
SHARES, WEIGHTS, RULES = (0.3, 0.5, 0.7), (0.1, 0.5, 2.0), ("small", "analytic", "spectral")


def methods() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, place on its curve, fields)."""
    for share in SHARES:
        fields = {"translate.energies": "target", "translate.share": share, "rule.name": "small"}
        yield "SDEdit", f"M/N = {share:g}", fields
    for rule in RULES:
        for weight in WEIGHTS:
            yield f"EGSDE, {rule}", f"li = {weight:g}", {"translate.low_pass_weight": weight, "rule.name": rule}


class Judge:
    """Figures of translated digits, in features that the guidance does not know.

    Args:
        real: training images of the target, in the network's range.
    """

    def __init__(self, real: Tensor) -> None:
        self.network: Any = digit_features(DIGITS)
        self.real = real

    @torch.inference_mode()
    def moments(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        found = self.network(images).double().numpy()
        return found.mean(0), np.cov(found.T)

    def realism(self, images: Tensor) -> float:
        return frechet(*self.moments(images), *self.moments(self.real))

    def floor(self, count: int) -> float:
        """What as many real images score, drawn with replacement."""
        return self.realism(self.real[np.random.default_rng(0).integers(len(self.real), size=count)])

    @torch.inference_mode()
    def figures(self, images: Tensor, sources: Tensor) -> tuple[float, ...]:
        """L2, SSIM, Frechet distance, share of the target."""
        off = float((images - sources).flatten(1).norm(dim=1).mean())
        alike = float(ssim(images, sources, gaussian_kernel=False, kernel_size=7, data_range=2.0))
        target = self.network.classify(images).argmax(1) == TARGET
        return off, alike, self.realism(images), float(target.double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="translation of digits")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 100])
    parser.add_argument("--workdir", type=Path, default=Path("runs/translation"))
    args = parser.parse_args()
    describe("Threes into eights: faithfulness and realism")
    judge: Judge | None = None
    for name, place, fields in methods():
        for steps in args.steps:
            config, house = load_config(CONFIG)
            more = {"translate.source_split": "train", "translate.images": args.images, "trajectory.steps": steps}
            house.table.update(config, {**more, **fields})
            session = Session.make(config, args.workdir, house)
            if judge is None:
                data = session.data
                judge = Judge(data.scaled(data.split("train"))[data.labels["train"] == TARGET])
                print(f"{args.images} threes, {len(judge.real)} eights, Frechet floor {judge.floor(args.images):.2f}\n")
                print("| method | curve | steps | NFE | L2 | SSIM | Frechet | eights |\n" + "|---" * 8 + "|")
            made = translations_for(session)
            off, alike, distance, share = judge.figures(session.data.decode(made.kept), made.sources)
            told = f"{off:.2f} | {alike:.3f} | {distance:.2f} | {share:.0%}"
            print(f"| {name} | {place} | {steps} | {int(made.first['nfe'])} | {told} |", flush=True)


if __name__ == "__main__":
    main()
