"""The front door: a noise predictor and its process, and everything that is measured, planned and drawn with them.

    model = Model(network, process=linear(1000), predicts="eps", data_range=(-1, 1))
    moments = model.measure(images)                                   # Var[x_0 | x_t] with error bars
    plan = model.plan(moments, steps=10)                              # the times that lose least
    samples = model.sample(plan, rule="analytic", n=64)
    bits = model.bits_per_dim(test_images, plan, rule="analytic", levels=256)

Data have any shape: images [C, H, W] or vectors [d]. Nothing global is touched: no random state, no thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adpm.bound import Bound, Images, Terms, bound_of
from adpm.denoiser import Denoise, Denoiser, TimeLabel
from adpm.drawing import draw
from adpm.draws import Source, measure
from adpm.errors import UserError, lookup
from adpm.families import Families, built
from adpm.likelihood import Decoder, DecoderNeeds, Levels, first_posterior_variance
from adpm.measured import Moments, Plan, given_images, known_shape, need
from adpm.members import MEMBERS
from adpm.moments import MomentTable, spread_times, stacked, unstacked
from adpm.paths import Pricing, find_path
from adpm.process import Process
from adpm.progress import Arrays, Keep, in_memory
from adpm.solver import Solver
from adpm.start import Start, StartNeeds
from adpm.variance import Rule, RuleNeeds


class Model:
    """A noise predictor and its process.

    Args:
        network: (x [B, ...], label [B]) -> [B, ...]; a module, which is put into evaluation mode, or any callable.
        process: the forward process it was trained for.
        predicts: what its output is: "eps", "x0" or "score".
        label: what it receives as time: a name ("index": n - 0, times 1000/N), or a function of times.
        data_range: (a, b) of the data, which x0 is clipped to; None: no limits.
        clip: whether x0 is limited to data_range.
        eps_after_clip: "rederive" or "keep".
        device: where it runs; the module's own unless given.
        images: "train" and "test" -> data, for calls that are given none.
        levels: of the data; 0: continuous.
        families: what names mean; those of this package unless given.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor, Tensor], Tensor],
        process: Process,
        *,
        predicts: str = "eps",
        label: str | TimeLabel = "index",
        data_range: tuple[float, float] | None = None,
        clip: bool = True,
        eps_after_clip: str = "rederive",
        device: torch.device | str | None = None,
        images: Mapping[str, Tensor] | None = None,
        levels: int = 0,
        families: Families = MEMBERS,
    ) -> None:
        time_label = built(families["label"], label, "`label`", process) if isinstance(label, str) else label
        denoise = Denoiser(
            network,
            process,
            predicts=predicts,
            time_label=time_label,
            clip=data_range if clip else None,
            eps_after_clip=eps_after_clip,
        )
        if isinstance(network, nn.Module):
            first = next(network.eval().parameters(), None)
            device = device or ("cpu" if first is None else first.device)
            network.to(device)
        self._set(denoise, process, data_range, device or "cpu", images, levels, families)

    @classmethod
    def of(
        cls,
        denoise: Denoise,
        process: Process,
        *,
        data_range: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
        images: Mapping[str, Tensor] | None = None,
        levels: int = 0,
        families: Families = MEMBERS,
    ) -> Model:
        """A model around a denoiser that there is already, such as an exact one."""
        model = cls.__new__(cls)
        model._set(denoise, process, data_range, device, images, levels, families)
        return model

    def _set(
        self,
        denoise: Denoise,
        process: Process,
        data_range: tuple[float, float] | None,
        device: torch.device | str,
        images: Mapping[str, Tensor] | None,
        levels: int,
        families: Families,
    ) -> None:
        self.denoise, self.process, self.data_range, self.levels = denoise, process, data_range, levels
        self.device, self.images, self.families = torch.device(device), dict(images or {}), families

    # Measuring

    @torch.inference_mode()
    def measure(
        self,
        images: Tensor | Source | None = None,
        draws: int = 300,
        times: int = 100,
        *,
        seed: int = 0,
        batch_size: int = 256,
        keep: Keep = in_memory,
        provenance: Mapping[str, Any] | None = None,
    ) -> Moments:
        """Var[x_0 | x_t] with error bars, from draws of (image, noise) at times even in log-SNR.

        Args:
            images: [n, ...] in the network's range; the model's own training images unless given.
            draws: per time.
            times: how many reference times; 0 = all.
            seed: of images and noise.
            batch_size: draws per network call.
            keep: see `Keep`.
            provenance: what the numbers depend on, for the file.
        """
        source = images if isinstance(images, Source) else Source.of(*self._on_device(images, "train"))
        wanted = spread_times(self.process, times)

        def work(items: range) -> Arrays:
            at = wanted[items.start : items.stop].tolist()
            rows = [row for _, row in measure(self.denoise, self.process, source, at, draws, seed, batch_size)]
            return stacked(rows)

        rows = [row for part in keep(len(wanted), 1, work, "moments") for row in unstacked(part)]
        shape = tuple(source.mean.shape)
        return Moments(MomentTable(wanted, tuple(rows), source.variance, dict(provenance or {}), shape), self.process)

    # Planning

    def plan(
        self,
        moments: Moments | None = None,
        steps: int = 25,
        trajectory: str = "least_cost",
        *,
        images: Tensor | None = None,
        rule: str | Rule = "analytic",
        eta: float = 1.0,
        decoder: str = "optimal",
        levels: int | None = None,
        draws: int = 300,
        seed: int = 0,
        batch_size: int = 256,
        **options: Any,
    ) -> Plan:
        """The K times of a path.

        Args:
            moments: from `measure`; a fixed trajectory such as "even" needs none.
            steps: K.
            trajectory: "least_cost", "log_snr", "even", ...
            images: to measure the last step or `cost="measured"` on; the model's own training images unless given.
            rule, eta, decoder, levels, draws, seed, batch_size: of these measurements.
            options: of the trajectory: `budget`, `cost`, `data_term`, `projection`, `method`; `log_snr_min`, ...
                Unless `data_term` is said, the last step is priced where there are images to measure it on; else
                a path goes through the first reference time.
        """
        if "data_term" in lookup(self.families["trajectory"], trajectory, "`trajectory`").fields:
            options = {"data_term": images is not None or "train" in self.images, **options}
        pricing = Pricing(
            self.denoise,
            self.process,
            rule=lambda: self.rule(rule, moments),
            eta=eta,
            table=lambda: need(moments, "planning").table,
            decoder=lambda: self.decoder(decoder, moments),
            levels=lambda: self._levels(levels),
            images=lambda: self._on_device(images, "train"),
            draws=draws,
            seed=seed,
            batch_size=batch_size,
        )
        given = (self.families, trajectory, self.process, steps, pricing.needs, pricing.gamma)
        return Plan(find_path(*given, **options), moments, lambda last: find_path(*given, last=last, **options))

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
        )
        return built(self.families["rule"], rule, "`rule`", needs, **options)

    def decoder(self, name: str, moments: Moments | None = None, estimator: str = "residual") -> Decoder:
        """The variance of the last step by its name."""
        variance = DecoderNeeds(self.process, lambda: need(moments, f"decoder '{name}'").variance(estimator))
        return built(self.families["decoder"], name, "`decoder`", variance)

    # Drawing

    def start(self, name: str, images: Tensor | None = None, **options: Any) -> Start:
        """What sampling begins with, by its name: "noise", "gaussian" or "gaussian_mixture".

        Args:
            name: of one.
            images: [n, ...] that it is fitted to; the model's own training images unless given.
            options: its own, such as `start_log_snr` and `start_respend`.
        """
        needs = StartNeeds.of(self.process, lambda: self._on_device(images, "train"))
        return built(self.families["start"], name, "`start`", needs, **options)

    def sample(
        self,
        plan: Plan,
        rule: str | Rule = "analytic",
        n: int = 64,
        *,
        shape: tuple[int, ...] | None = None,
        seed: int = 0,
        eta: float = 1.0,
        solver: str | Solver = "reverse_gaussian",
        start: str | Start = "noise",
        batch_size: int = 256,
        **options: Any,
    ) -> Tensor:
        """n samples [n, ...] along a plan; sample i depends on (seed, i) alone.

        Args:
            plan: from `plan`.
            rule: the variance of a step, a name or a rule; solvers that bring their own noise use none.
            n: how many.
            shape: of a sample; that of the data that moments were measured on unless given.
            seed: of the noise.
            eta: 1 = DDPM, 0 = DDIM.
            solver: a name or a solver.
            start: a name, or one that `start` has made; where it jumps, fewer steps of the plan are left.
            batch_size: samples per network call.
            options: of the solver.
        """
        begin = self.start(start) if isinstance(start, str) else start
        along, chosen = plan.after(begin, self.process), solver
        if isinstance(chosen, str):
            facts = lookup(self.families["solver"], chosen, "`solver`").facts
            protocol: dict[str, Any] = {"eta": eta} if facts.uses_eta else {}
            protocol |= {"rule": self.rule(rule, plan.moments)} if facts.uses_rule else {}
            protocol |= {"times": along} if facts.uses_path else {}
            chosen = built(self.families["solver"], chosen, "`solver`", self.process, protocol=protocol, **options)
        like = known_shape(shape, plan.moments, self.images)
        settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "device": self.device, "start": begin}
        drawn = draw(self.denoise, chosen, self.process, along, like, n, **settings)
        return torch.as_tensor(drawn.images)

    def bits_per_dim(
        self,
        images: Tensor | None,
        plan: Plan,
        rule: str | Rule = "analytic",
        *,
        levels: int | None = None,
        decoder: str = "optimal",
        eta: float = 1.0,
        seed: int = 0,
        batch_size: int = 256,
    ) -> Bound:
        """The variational bound of images in bits per dimension, term by term, with its error over images.

        Args:
            images: [n, ...] in the network's range; the model's own test images where None.
            plan: from `plan`; it has to begin at the last time.
            rule, eta: of the reverse steps.
            levels: of the data, such as 256; 0: continuous.
            decoder: variance of the last step: "optimal", "published", "published_elbo".
            seed: of the noise.
            batch_size: images per network call.
        """
        terms = Terms(
            self.denoise,
            self.process,
            self.rule(rule, plan.moments),
            self.decoder(decoder, plan.moments),
            self._levels(levels),
            plan.path.times,
            eta,
        )
        return bound_of(terms, *self._on_device(images, "test"), seed=seed, batch_size=batch_size)

    # What was not said

    def _on_device(self, images: Tensor | None, split: str) -> tuple[Images, int]:
        """Images by their numbers, on this model's device, and how many there are."""
        given = given_images(self.images.get(split) if images is None else images, split, self.data_range)
        return lambda index: given[index].to(self.device), len(given)

    def _levels(self, levels: int | None) -> Levels:
        count = self.levels if levels is None else levels
        if count and self.data_range is None:
            raise UserError(f"`levels` = {count} needs the model's `data_range`, in which they are spread evenly.")
        low, high = self.data_range or (0.0, 0.0)
        return Levels(count, low, high)
