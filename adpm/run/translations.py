"""Translations of a session: those on disk read, the others made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path as File
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adpm.egsde import EnergyNeeds, Noised
from adpm.energies import Energy, gradient_of
from adpm.errors import UserError
from adpm.families import built
from adpm.paths import Path
from adpm.progress import Arrays
from adpm.run.assembly import Session
from adpm.run.classes import of_samples
from adpm.run.classifiers import NoisyClassifier, classifier_file
from adpm.run.growing import grown
from adpm.run.measure import variance_for
from adpm.run.naming import naming
from adpm.run.paths import path_up_to, sampler_key, sampler_name
from adpm.run.source_images import SourceImages
from adpm.run.store import digest, write_json
from adpm.translation import Translator, start_index


@dataclass(frozen=True)
class Translations:
    """Translated images.

    Attributes:
        kept: [n, C, H, W] as they are kept, see `adpm.run.samples.Samples`.
        sources: [n, C, H, W], what they were made of, in the data's range.
        first: of the first batch, see `adpm.drawing.Sampler`.
        path: from 0 to the time that sources are noised to.
        folder, file: where they lie, with their protocol.
    """

    kept: NDArray[Any]
    sources: Tensor
    first: Arrays
    path: Path
    folder: File
    file: File


@dataclass(frozen=True)
class Job:
    """One translation: what is decided before any work. Attributes: session: whose it is."""

    session: Session

    @cached_property
    def images(self) -> SourceImages:
        session = self.session
        if session.config.sampling.start != session.house.table.default("sampling.start"):
            raise UserError(
                f"config.sampling.start = '{session.config.sampling.start}' is for samples; a translation begins with "
                "its source images: unset it."
            )
        return session.build("translate.source", session.data)

    @property
    def count(self) -> int:
        """How many images are translated."""
        wanted = int(self.session.config.translate.images)
        return min(wanted, self.images.count) if wanted else self.images.count

    @property
    def names(self) -> list[str]:
        """Of the energies."""
        return str(self.session.config.translate.energies or "").split("+") if self._guided else []

    @property
    def _guided(self) -> bool:
        return bool(self.session.config.translate.energies)

    @cached_property
    def classifier(self) -> NoisyClassifier | None:
        """The classifier of noisy images, where an energy asks for one; looked for now, read when it is used.

        Raises:
            UserError: if there is none.
        """
        family = self.session.house.families["energy"]
        asked = any("classifier.name" in family[name].reads for name in self.names)
        return NoisyClassifier(self.session, classifier_file(self.session)) if asked else None

    def energies(self, source: Noised) -> Sequence[tuple[Energy, float]]:
        """Of a batch of sources."""
        session, out = self.session, []

        def known() -> NoisyClassifier:
            assert self.classifier is not None, "an energy that reads the classifier says so"
            return self.classifier

        needs = EnergyNeeds(source, lambda: known().logits, lambda: known().features)
        for name in self.names:
            options = session.house.table.options(session.config, "translate.energies", name)
            with naming(session.house.table, "translate"):
                out.append(built(session.house.families["energy"], name, "`energies`", needs, **options))
        return out

    def check(self, path: Path) -> None:
        """Take every energy's gradient of one image, so that what is wrong is said before any work.

        Raises:
            UserError: as `Steered` raises.
        """
        x0 = self.sources(torch.arange(1))
        with naming(self.session.house.table, "translate"):
            for energy, weight in self.energies(Noised(self.session.process, x0, torch.zeros_like(x0))):
                if weight:
                    gradient_of(energy, x0, float(path.times[-1]))

    def sources(self, numbers: Tensor) -> Tensor:
        """Source images by number, in the network's range, on the device."""
        return self.session.data.scaled(self.images.stored(numbers)).to(self.session.device)

    def key(self, path: Path) -> dict[str, Any]:
        """Everything that translations depend on."""
        return {
            **sampler_key(self.session, path),
            "translation": self.session.house.table.part(self.session.config, "translation"),
            "classifier": None if self.classifier is None else self.classifier.weights,
            "sources": self.images.digest,
        }


def translations_for(session: Session) -> Translations:
    """config.translate.images images translated: those on disk read, the others made; moments and path when missing."""
    job, section, table = Job(session), session.config.sampling, session.house.table
    with naming(table, "translate"):
        count, last = job.count, start_index(session.process, session.config.translate.share)
    _ = job.classifier  # what is missing is told before anything else
    model = session.sampler_model
    path = path_up_to(session, last)
    job.check(path)
    key = job.key(path)
    name = "+".join(job.names) or "sdedit"
    folder = session.workdir / "translations" / f"{name}-{sampler_name(session)}-{digest(key)}"
    with naming(table, "sampling"):
        found = grown(
            folder / "translations.npy",
            session.data.shape,
            session.data.kept_as,
            section.batch_size,
            count,
            partial(_worker, job, path),
            _check,
        )
    write_json(folder / "protocol.json", {**key, "weights_from": model.source, "images": len(found.images)})
    sources = job.sources(torch.arange(count)).cpu()
    return Translations(found.images[:].numpy(), sources, found.first, path, folder, found.file)


def _worker(job: Job, path: Path) -> Callable[[range], Arrays]:
    """What translates a range of the sources; what is missing is measured first."""
    session = job.session
    solver = session.solver(variance_for(session), path.times)
    session.learn()
    translator = Translator(
        of_samples(session, session.sampler_model.denoise),
        solver,
        session.process,
        path.times,
        job.energies,
        repeats=session.config.translate.repeats,
        seed=session.config.seed,
        clip=(session.data.low, session.data.high) if session.config.denoiser.clip else None,
        eps_after_clip=session.config.denoiser.eps_after_clip,
    )

    def work(items: range) -> Arrays:
        numbers = torch.arange(items.start, items.stop, device=session.device)
        arrays = translator.translate(job.sources(numbers), numbers)
        return {**arrays, "samples": session.data.encode(arrays["samples"])}

    return work


def _check(arrays: Arrays) -> None:
    """What is known of the first batch."""
    _ = [arrays[name] for name in ("t", "variance", "clipped", "strip", "shown", "nfe")]
