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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adpm.basis import Basis
from adpm.bound import Bound, Terms, bound_of
from adpm.classes import renumbered
from adpm.conventions import settings_of
from adpm.denoiser import Denoise, Denoiser, TimeLabel
from adpm.drawing import Sampler, draw
from adpm.draws import Source
from adpm.ems import EMS
from adpm.ems_measure import image_of, keyed_draws, measure_ems
from adpm.errors import UserError, lookup
from adpm.families import Families, built
from adpm.fitting import Flow
from adpm.measured import Moments, Plan, known_shape, known_statistics, measured_moments, need, need_spectrum
from adpm.members import MEMBERS
from adpm.moments import spread_times
from adpm.paths import Pricing, find_path
from adpm.process import Process
from adpm.progress import Keep, in_memory
from adpm.reference import measure_reference
from adpm.solver import Solver
from adpm.start import Start
from adpm.subject import Subject
from adpm.variance import Rule


class Model(Subject):
    """A noise predictor and its process.

    Args:
        network: (x [B, ...], label [B]) -> [B, ...]; a module, which is put into evaluation mode, or any callable.
        process: the forward process it was trained for.
        predicts: what its output is: "eps", "x0", "score", "v", "flow" or "edm".
        label: what it receives as time: a name ("index": n - 0, times 1000/N), or a function of times.
        data_range: (a, b) of the data, which x0 is clipped to; None: no limits.
        clip: whether x0 is limited to data_range.
        eps_after_clip: "rederive" or "keep".
        device: where it runs; the module's own unless given.
        images, levels, families: see `Subject`.
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
        super().__init__(denoise, process, data_range, torch.device(device or "cpu"), images or {}, levels, families)

    @classmethod
    def of(cls, denoise: Denoise, process: Process, **settings: Any) -> Model:
        """A model around a denoiser that there is already, such as an exact one; `settings` are those of `Subject`."""
        model = cls.__new__(cls)
        Subject.__init__(model, denoise, process, **settings)
        return model

    @classmethod
    def from_diffusers(cls, unet: nn.Module, scheduler: Any, **settings: Any) -> Model:
        """A diffusers network, read as the config of its scheduler says; see `adpm.conventions.settings_of`."""
        return cls(**settings_of(unet, scheduler, **settings))

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
        basis: str | Basis | Mapping[str, Basis] = "",
        target_error: float = 0.0,
        **options: Any,
    ) -> Moments:
        """Var[x_0 | x_t] with error bars, from draws of (image, noise) at times even in log-SNR.

        Args:
            images: [n, ...] in the network's range; the model's own training images unless given.
            draws: per time.
            times: how many reference times; 0 = all.
            seed, batch_size: of images and noise; draws per network call.
            keep, provenance: see `Keep`; what the numbers depend on, for the file.
            basis: measures per coordinate, too: a basis or its name, "auto" for the best of all, or several by name.
            target_error: relative standard error of Var_t that draws and times grow to; 0: no. See adpm/target.py.
            options: of a named basis.
        """
        wanted, source = spread_times(self.process, times), self.source_of(images)
        if options and not basis:
            raise UserError(f"`measure` has no option `{min(options)}` without a basis.")
        bases = self.bases(basis, source, **options) if basis else None
        settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "keep": keep, "provenance": provenance}
        settings |= {"bases": bases, "target_error": target_error}
        return measured_moments(self.denoise, self.process, source, wanted, draws, **settings)

    def measure_statistics(
        self, images: Tensor | Source | None = None, nodes: int = 61, draws: int = 1000, seed: int = 0, **options: Any
    ) -> EMS:
        """What the solver 'dpm_solver_v3' needs to know of the raw network; minutes of work for a large one.

        Args:
            images: [n, ...] in the network's range; the model's own training images unless given.
            nodes, draws: see `adpm.ems_measure.measure_ems`.
            seed: of images, noise and signs.
            options: `derivative`, `batch_size`, `keep` and `provenance` of `measure_ems`.
        """
        source = self.source_of(images)
        denoise = renumbered(self.denoise, image_of(source, seed))
        return measure_ems(denoise, self.process, keyed_draws(source, seed), draws, nodes, **options)

    def measure_trajectories(
        self,
        images: Tensor | Source | None = None,
        starts: int = 200,
        nodes: int = 60,
        *,
        basis: str | Basis = "pca",
        seed: int = 0,
        batch_size: int = 256,
        keep: Keep = in_memory,
        provenance: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Flow:
        """Trajectories of the network's probability flow, for the solver and the times 'fitted'.

        Args:
            images: [n, ...] whose shape and, for some bases, covariance is taken; the model's own unless given.
            starts, nodes: see `adpm.reference.measure_reference`: starts x nodes network calls.
            basis: whose coordinates are fitted, or its name.
            seed, batch_size, keep, provenance: of the measurement.
            options: of a named basis.
        """
        source = self.source_of(images)
        own = self.basis(basis, source, **options)
        about: dict[str, Any] = {
            "seed": seed,
            "batch_size": batch_size,
            "keep": keep,
            "provenance": provenance,
            "device": self.device,
        }
        shape = tuple(source.mean.shape)
        reference = measure_reference(self.denoise, self.process, own, shape, starts, nodes, **about)
        return Flow(reference, self.denoise, self.process, batch_size, self.device)

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
        statistics: Flow | None = None,
        **options: Any,
    ) -> Plan:
        """The K times of a path.

        Args:
            moments: from `measure`; a fixed trajectory such as "even" needs none.
            steps: K.
            trajectory: "least_cost", "log_snr", "even", ...
            images: to measure the last step or `cost="measured"` on; the model's own training images unless given.
            rule, eta, decoder, levels, draws, seed, batch_size: of these measurements.
            statistics: from `measure_trajectories`, for the trajectory "fitted".
            options: of the trajectory: `budget`, `cost`, `data_term`, `projection`, `method`; `log_snr_min`, ...
                Unless `data_term` is said, the last step is priced where there are images to measure it on; else
                a path goes through the first reference time.
        """
        if "data_term" in lookup(self.families["trajectory"], trajectory, "`trajectory`").fields:
            options = {"data_term": images is not None or "train" in self.images, **options}
        pricing = Pricing(
            self.denoiser_for(rule, moments),
            self.process,
            rule=lambda: self.rule(rule, moments),
            eta=eta,
            table=lambda: need(moments, "planning").table,
            spectrum=lambda: need_spectrum(moments, "planning on the axes"),
            decoder=lambda: self.decoder(decoder, moments),
            levels=lambda: self.levels_of(levels),
            images=lambda: self.on_device(images, "train"),
            draws=draws,
            seed=seed,
            batch_size=batch_size,
        )
        given = (self.families, trajectory, self.process, steps, pricing.needs, pricing.gamma)
        if statistics is not None:
            options["flow"] = lambda: statistics
        return Plan(find_path(*given, **options), moments, lambda last: find_path(*given, last=last, **options))

    # Drawing

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
        statistics: EMS | Flow | None = None,
        batch_size: int = 256,
        **options: Any,
    ) -> Tensor:
        """n samples [n, ...] along a plan; sample i depends on (seed, i) alone.

        Args:
            plan: from `plan`.
            rule: the variance of a step, a name or a rule; some solvers have none.
            n: how many.
            shape: of a sample; that of the data that moments were measured on unless given.
            seed: of the noise.
            eta: 1 = DDPM, 0 = DDIM.
            solver: a name or a solver.
            start: a name, or one that `start` has made; where it jumps, fewer steps of the plan are left.
            statistics: from `measure_statistics` or `measure_trajectories`, for a solver that needs them.
            batch_size: samples per network call.
            options: of the solver.
        """
        begin = self.start(start) if isinstance(start, str) else start
        along, chosen = plan.after(begin, self.process), solver
        if isinstance(chosen, str):
            facts = lookup(self.families["solver"], chosen, "`solver`").facts
            needed = partial(known_statistics, facts.statistics, statistics, plan.moments, f"solver '{chosen}'")
            protocol = facts.given(along, eta, lambda: self.rule(rule, plan.moments), needed)
            chosen = built(self.families["solver"], chosen, "`solver`", self.process, protocol=protocol, **options)
        denoise, like = self.denoiser_for(rule, plan.moments), known_shape(shape, plan.moments, self.images)
        sampler = Sampler(denoise, chosen, self.process, along, like, seed, self.device, begin)
        return torch.as_tensor(draw(sampler, n, batch_size))

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
            self.denoiser_for(rule, plan.moments),
            self.process,
            self.rule(rule, plan.moments),
            self.decoder(decoder, plan.moments),
            self.levels_of(levels),
            plan.path.times,
            eta,
        )
        return bound_of(terms, *self.on_device(images, "test"), seed=seed, batch_size=batch_size)
