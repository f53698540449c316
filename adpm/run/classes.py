"""What a class-conditional network of a run is told: classes of images by their labels, of samples by the config."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adpm.classes import ClassNeeds, Conditional, Told, of_table
from adpm.denoiser import Denoise
from adpm.errors import UserError
from adpm.nn.heads import NetworkFacts
from adpm.noise import KeyedNoise
from adpm.run.problem import Problem
from adpm.run.store import digest

_SHARES = 1 << 24
"""In how many parts the share of dropped classes is drawn."""


def class_needs(problem: Problem) -> ClassNeeds:
    """How many classes the network is told, 0 for one that is told none or where there is no network."""
    facts = problem.kind("network.name").facts if problem.kind("denoiser.name").facts.trainable else None
    count, null = (facts or NetworkFacts()).classes(**problem.house.table.options(problem.config, "network.name"))
    return ClassNeeds(count, null, problem.config.seed)


def check_classes(problem: Problem) -> None:
    """Refuse classes that there are not, and fields about them where no network is told any.

    Raises:
        UserError: naming the fields.
    """
    needs, chosen = class_needs(problem), problem.config.sampling.classes
    guidance = problem.house.table.options(problem.config, "denoiser.name").get("guidance", 1.0)
    if guidance != 1.0 and not needs.null:
        raise UserError(
            f"config.denoiser.guidance = {guidance:g} goes away from no class, which the network does not know (iddpm: "
            "config.network.num_classes and null_class = True); set it to 1."
        )
    if not needs.count:
        if chosen != problem.house.table.default("sampling.classes"):
            raise UserError(
                f"config.sampling.classes = '{chosen}' goes with a network that is told classes (iddpm: "
                "config.network.num_classes); unset it."
            )
        return
    problem.build("sampling.classes", needs)
    for split, labels in problem.data.labels.items():
        if not 0 <= int(labels.min()) <= int(labels.max()) < needs.count:
            raise UserError(
                f"the network is told {needs.count} classes (config.network), but the {split} labels of data set "
                f"'{problem.data.name}' run from {int(labels.min())} to {int(labels.max())}; classes count from 0."
            )


def labels_of(problem: Problem, split: str) -> Tensor:
    """Of the images of a split, [n].

    Raises:
        UserError: if the data set has none.
    """
    labels = problem.data.labels.get(split)
    if labels is None:
        raise UserError(
            f"the network is told {class_needs(problem).count} classes (config.network): what is measured of it, and "
            f"its training, is about images with their classes, and data set '{problem.data.name}' has no {split} "
            "labels. Use one that has, or name what was measured before in config.moments.file."
        )
    return labels


def of_images(problem: Problem, denoise: Denoise, split: str) -> Denoise:
    """`denoise`, told the classes of a split's images where its network has to be."""
    return Told(denoise, of_table(labels_of(problem, split))) if class_needs(problem).count else denoise


def of_samples(problem: Problem, denoise: Denoise) -> Denoise:
    """`denoise`, told the classes of the config's samples where its network has to be."""
    needs = class_needs(problem)
    return Told(denoise, problem.build("sampling.classes", needs)) if needs.count else denoise


def labels_key(problem: Problem) -> dict[str, str]:
    """Which labels these are, where a network is told them and the config does not say it."""
    if not (class_needs(problem).count and problem.data.digest):
        return {}
    return {"labels": digest({split: labels.tolist() for split, labels in problem.data.labels.items()})}


@dataclass(frozen=True)
class TrainingClasses:
    """Classes of a training's images.

    Attributes:
        splits: "train" and "test" -> labels [n].
        null: what stands for no class; None: the network does not know it.
        dropout: share of the training examples that are of no class.
        seed: of which ones.
    """

    splits: dict[str, Tensor]
    null: int | None
    dropout: float
    seed: int

    @staticmethod
    def of(problem: Problem) -> TrainingClasses | None:
        """Those of a config; None where the network is told none."""
        needs = class_needs(problem)
        if not needs.count:
            return None
        splits = {split: labels_of(problem, split) for split in ("train", "test")}
        dropout = float(problem.config.train.class_dropout) if needs.null else 0.0
        return TrainingClasses(splits, needs.count if needs.null else None, dropout, needs.seed)

    def of_examples(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Of training images [B] in the examples with these numbers [B], which say whose class is dropped."""
        classes = self.splits["train"][images]
        if self.null is None:
            return classes
        drawn = KeyedNoise(self.seed, "class dropout").integers(numbers.cpu(), _SHARES)
        return torch.where(drawn < round(self.dropout * _SHARES), self.null, classes)

    def of_tests(self, images: Tensor) -> Tensor:
        """Of test images [B]."""
        return self.splits["test"][images]


def given(denoise: Denoise, classes: Tensor | None) -> Denoise:
    """`denoise` for a batch of these classes; itself where there are none."""
    if classes is None:
        return denoise
    assert isinstance(denoise, Conditional), "its network is told classes"
    return denoise.given(classes)
