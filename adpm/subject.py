"""What a model is about, and the members of the families that it chooses by their names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from adpm.bases import BasisNeeds, bases_of, check_basis
from adpm.basis import Basis
from adpm.bound import Images
from adpm.classes import Classes, Told, of_table
from adpm.coordinate_draws import Bases
from adpm.denoiser import Denoise, Denoiser
from adpm.draws import Source
from adpm.errors import UserError, lookup
from adpm.families import Families, built
from adpm.guidance import GuidedByClass
from adpm.likelihood import Decoder, DecoderNeeds, Levels, first_posterior_variance
from adpm.measured import Moments, given_images, need, need_spectrum
from adpm.members import MEMBERS
from adpm.moving import moved
from adpm.process import Process
from adpm.scale import Scale
from adpm.start import Start, StartNeeds
from adpm.variance import Rule, RuleNeeds

S = TypeVar("S", bound="Subject")


@dataclass
class Subject:
    """A denoiser, its process and its data.

    Attributes:
        denoise: predicts x_0 and eps at each time.
        process: the forward process.
        data_range: (a, b) of the data; None: no limits.
        device: where states lie.
        images: "train" and "test" -> data, for calls that are given none.
        levels: of the data; 0: continuous.
        families: what names mean; those of this package unless given.
        scale: r_f that the denoiser's trained head is in units of; None: those of the moments.
    """

    denoise: Denoise
    process: Process
    data_range: tuple[float, float] | None = None
    device: torch.device | str = "cpu"
    images: Mapping[str, Tensor] = field(default_factory=dict)
    levels: int = 0
    families: Families = field(default_factory=lambda: MEMBERS)
    scale: Scale | None = None

    def told(self: S, classes: Tensor | Classes) -> S:
        """This model with its class-conditional network told the classes of what a call is about, by its numbers.

        Moments, plans, bounds and statistics want those of their images, `sample` those of its samples:

            moments = model.told(train_labels).measure(train_images)
            samples = model.told(torch.arange(64) % 10).sample(plan, n=64)

        Args:
            classes: [n], from its beginning again for numbers beyond it; or numbers [B] -> classes [B].

        Raises:
            UserError: if the denoiser is not told classes.
        """
        model = copy.copy(self)
        model.denoise = Told(self.denoise, of_table(classes) if isinstance(classes, Tensor) else classes)
        return model

    def guided(self: S, scale: float) -> S:
        """This model guided towards the classes it is told: see `adpm.guidance`. Measure what the rule needs of it.

        Args:
            scale: w; 1 leaves the model as it is, diffusers' `guidance_scale`.

        Raises:
            UserError: if it is not a network's, or for a scale that is not finite.
        """
        if not isinstance(self.denoise, Denoiser):
            raise UserError("guidance is of a network that is told classes; guide first, then tell them.")
        model = copy.copy(self)
        model.denoise = GuidedByClass(self.denoise, scale)
        return model

    def rule(self, rule: str | Rule, moments: Moments | None = None, **options: Any) -> Rule:
        """A variance rule by its name; a rule is itself."""
        if isinstance(rule, Rule):
            return rule
        low, high = self.data_range or (-np.inf, np.inf)
        needs = RuleNeeds(
            lambda estimator: need(moments, f"rule '{rule}'").variance(estimator),
            lambda: need(moments, f"rule '{rule}'").table.data_variance,
            ((high - low) / 2.0) ** 2,
            lambda: first_posterior_variance(self.process),
            lambda: need_spectrum(moments, f"rule '{rule}'"),
            lambda: self.scale or need_spectrum(moments, f"rule '{rule}'").scale(self.process),
            self.process,
        )
        return built(self.families["rule"], rule, "`rule`", needs, **options)

    def denoiser_for(self, rule: str | Rule, moments: Moments | None = None) -> Denoise:
        """The denoiser with the second output that a rule of this name reads, where no training gives it."""
        around = None if isinstance(rule, Rule) else lookup(self.families["rule"], rule, "`rule`").facts.around
        if around is None:
            return self.denoise
        return around(self.denoise, self.process, need_spectrum(moments, f"rule '{rule}'").basis)

    def decoder(self, name: str, moments: Moments | None = None, estimator: str = "residual") -> Decoder:
        """The variance of the last step by its name."""
        variance = DecoderNeeds(self.process, lambda: need(moments, f"decoder '{name}'").variance(estimator))
        return built(self.families["decoder"], name, "`decoder`", variance)

    def start(self, name: str, images: Tensor | None = None, **options: Any) -> Start:
        """What sampling begins with, by its name: "noise", "gaussian" or "gaussian_mixture".

        Args:
            name: of one.
            images: [n, ...] that it is fitted to; the model's own training images unless given.
            options: its own, such as `start_log_snr` and `start_respend`.
        """
        needs = StartNeeds.of(self.process, lambda: self.on_device(images, "train"))
        return built(self.families["start"], name, "`start`", needs, **options)

    def bases(self, basis: str | Basis | Mapping[str, Basis], source: Source, **options: Any) -> Bases:
        """Bases, or that of a name, or all that "auto" chooses from, with the data's variance along each coordinate."""
        if isinstance(basis, Mapping):
            return Bases.of({name: self.basis(own, source, **options) for name, own in basis.items()}, source)
        if isinstance(basis, Basis):
            return Bases.of({"own": self.basis(basis, source, **options)}, source)
        needs = BasisNeeds(tuple(source.mean.shape), lambda: source)
        return Bases.of(bases_of(self.families["basis"], basis, needs, **options), source)

    def basis(self, basis: str | Basis, source: Source, **options: Any) -> Basis:
        """The basis of a name; one that is given is itself, if it fits the data."""
        shape = tuple(source.mean.shape)
        if isinstance(basis, str):
            return built(self.families["basis"], basis, "`basis`", BasisNeeds(shape, lambda: source), **options)
        if options:
            raise UserError(f"`{min(options)}` is no option of a basis that is given.")
        check_basis(basis, shape)
        return basis

    def source_of(self, images: Tensor | Source | None) -> Source:
        return images if isinstance(images, Source) else Source.of(*self.on_device(images, "train"))

    def on_device(self, images: Tensor | None, split: str) -> tuple[Images, int]:
        """Images by their numbers, on this model's device, and how many there are."""
        given = given_images(images, self.images, split, self.data_range)
        return lambda index: moved(given[index], self.device), len(given)

    def levels_of(self, levels: int | None) -> Levels:
        count = self.levels if levels is None else levels
        if count and self.data_range is None:
            raise UserError(f"`levels` = {count} needs the model's `data_range`, in which they are spread evenly.")
        low, high = self.data_range or (0.0, 0.0)
        return Levels(count, low, high)
