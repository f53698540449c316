"""`AnalyticScheduler`: the reverse Gaussian with the optimal variance along planned times, in diffusers' form.

Its timestep n - 1 is this project's time n, and its last step goes to the data themselves. The next node is the path's,
whatever lies between. States of half precision are stepped in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from adpm.conventions import facts_of, predicts_of, process_of
from adpm.denoiser import per_sample
from adpm.diffusers.kept import beside, read, write
from adpm.diffusers.measuring import Effort, config_of, known_of
from adpm.diffusers.nodes import Choice, Known, given_path, path_of, rule_of
from adpm.diffusers.walk import Walk, follow_ddim
from adpm.errors import UserError
from adpm.process import Array
from adpm.provenance import unlike

_HUB = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
_SHA256 = "_moments"
"""Of the moments file, in a saved config only."""


class AnalyticScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # their bases differ in config_name
    """The samplers of DDPM and DDIM with the optimal variance (Bao et al. 2022) along the times that lose least.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas: the forward process, as in
            DDPMScheduler; see `adpm.conventions.process_of`.
        prediction_type: what the network predicts: "epsilon", "sample" or "v_prediction".
        clip_sample, clip_sample_range: whether x_0 is limited to [-r, r], and r; eps is then re-derived from it.
        rescale_betas_zero_snr, thresholding: refused where they are set.
        rule, rule_options: the variance of a step: "spectral" (one number per time and coordinate of a basis),
            "analytic" (one per time), "small", ...
        eta: 1 = DDPM, 0 = DDIM; 0.5 is the best of those tried in ten calls, docs/diffusers.md.
        trajectory, trajectory_options: which times: "least_cost", "fitted", "log_snr", "even", ...

    Attributes:
        known: what was measured of the network, which most rules and times need; `from_pipeline` measures it.

    Raises:
        UserError: for a value that cannot be followed.
    """

    __module__ = "adpm.diffusers"  # the place that saved pipelines name
    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | Array | None = None,
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        rescale_betas_zero_snr: bool = False,
        thresholding: bool = False,
        rule: str = "spectral",
        eta: float = 0.5,
        trajectory: str = "least_cost",
        rule_options: Mapping[str, Any] | None = None,
        trajectory_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.process = process_of(self.config)
        predicts_of(self.config)
        self._choice().check(self.process)
        self.known: Known | None = None
        self.init_noise_sigma = self.process.start_std(float(self.process.times[-1]))
        self.betas = torch.as_tensor(self.process.betas, dtype=torch.float32)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.as_tensor(self.process.alpha(self.process.times[1:]) ** 2, dtype=torch.float32)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.process.steps - 1, -1, -1)
        self._walk: Walk | None = None
        self._begin_index: int | None = None

    def __len__(self) -> int:
        return self.process.steps

    # Made

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As every scheduler's; what the other one had by default is what this one has, too. It brings no moments."""
        if isinstance(config, dict):
            config = {k: v for k, v in config.items() if k not in ("_use_default_values", _SHA256)}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_pipeline(
        cls,
        pipe: Any,
        images: Tensor,
        steps: int | Sequence[int] = 10,
        *,
        basis: str = "auto",
        levels: int | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        effort: Effort | None = None,
        **config: Any,
    ) -> AnalyticScheduler:
        """Measure the network of a pipeline, and make its scheduler: pipe.scheduler = from_pipeline(pipe, images).

        Args:
            pipe: has a `unet`, and a `scheduler` whose config says what that was trained with; with a `vae` the
                network works on latents, which are then not limited (`clip_sample` False).
            images: [n, C, H, W] in [-1, 1], such as those that it was trained on.
            steps: the numbers of steps to plan for at once; others are planned when asked, if moments suffice.
            basis: whose coordinates the rule "spectral" has; "auto": the best of all.
            levels: of the images, whose likelihood the last step is priced by; 256, and 0 (a density) for latents.
            conditions: what else the network is given, [1, ...]: moments are those under this condition.
            effort: how much is measured.
            config: fields that differ from the scheduler's: `rule`, `eta`, `trajectory`, ...

        Raises:
            UserError: if pipe, images or config do not fit each other; mostly before anything is measured.
        """
        made = cls.from_config({**config_of(pipe), **config})
        about: dict[str, Any] = {"basis": basis, "levels": levels, "conditions": conditions}
        made.known = known_of(pipe, made, made._choice(), images, steps, effort or Effort(), **about)
        return made

    # Kept

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write scheduler_config.json and, with what was measured, a safetensors file beside it."""
        before = self._internal_dict
        if self.known is not None:
            self._internal_dict = FrozenDict({**before, _SHA256: write(self.known, Path(save_directory))})
        try:
            super().save_pretrained(save_directory, push_to_hub, **kwargs)
        finally:
            self._internal_dict = before

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read what `save_pretrained` has written, or the config of another scheduler, from a folder or the hub.

        Raises:
            UserError: if the file that the config names is missing, damaged, or about another process or prediction.
        """
        place, hub = pretrained_model_name_or_path, {key: kwargs[key] for key in _HUB if key in kwargs}
        config, left = cls.load_config(place, subfolder=subfolder, return_unused_kwargs=True, **kwargs)
        made, unused = cls.from_config(config, return_unused_kwargs=True, **left)
        if _SHA256 in config:
            made.known = read(beside(place, subfolder, cls.config_name, hub), config[_SHA256], made.process)
            made._require_known()
        return (made, unused) if return_unused_kwargs else made

    # Used

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the path.

        Args:
            num_inference_steps: K, whose times the trajectory gives.
            device: where `timesteps` are put.
            timesteps: the path itself, falling, in place of K.

        Raises:
            UserError: if there is no such path, or what it needs was not measured.
        """
        choice = self._choice()
        choice.check(self.process)
        if choice.needs_moments and self.known is None:
            raise UserError(
                f"the rule '{choice.rule}' or the times '{choice.trajectory}' need moments, and this scheduler has "
                "none: make it with AnalyticScheduler.from_pipeline(pipe, images), or load one that was saved."
            )
        self._require_known()
        if (num_inference_steps is None) == (timesteps is None):
            raise UserError("give either `num_inference_steps` or `timesteps`.")
        if timesteps is not None:
            indices = given_path(timesteps, self.process.steps)
        else:
            assert num_inference_steps is not None
            indices = path_of(choice, num_inference_steps, self.process, self.known)
        rule = rule_of(choice, self.process, self.known)
        self._walk = Walk(self.process, rule, choice.eta, self.process.times[indices], self.config)
        self.num_inference_steps = len(indices) - 1
        self.timesteps = torch.tensor(self._walk.timesteps, dtype=torch.int64, device=device)
        self._begin_index = None

    @property
    def begin_index(self) -> int | None:
        """The first step that is taken, where a pipeline begins on the way."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin on the way, at this number of the path's steps; those before it are then refused."""
        if not 0 <= begin_index < len(self.timesteps):
            raise UserError(f"`begin_index` = {begin_index} must lie in 0..{len(self.timesteps) - 1}.")
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The state itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **of_ddim: Any,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """From the state at a timestep to that at the next one of the path, x_s ~ N(mean, covariance).

        Args:
            model_output: [B, C, ...], with what a second output of the network follows in channels, which is not read.
            timestep: one of `timesteps`.
            sample: [B, C, ...], the state.
            generator: of the noise, one or one per state.
            variance_noise: standard normal noise in place of a generator's.
            return_dict: else (next state, x_0).
            of_ddim: `eta` and `use_clipped_model_output`, which DDIMPipeline gives; neither can say other than config.

        Raises:
            UserError: if `set_timesteps` was not called, or state, timestep or output do not fit.
        """
        walk = self._walk
        if walk is None:
            raise UserError("call `set_timesteps` before `step`.")
        follow_ddim(self.config, **of_ddim)
        number = walk.number_of(timestep)
        if number < (self._begin_index or 0):
            raise UserError(f"`timestep` = {int(timestep)} comes before the step {self._begin_index} to begin at.")
        self._require_shape(sample)

        def noise(draw: int = 0) -> Tensor:
            like: Any = {"device": sample.device, "dtype": sample.dtype}
            z = randn_tensor(sample.shape, generator, **like) if variance_noise is None else variance_noise
            return z.to(x.dtype)

        x = sample if sample.dtype == torch.float64 else sample.float()
        taken = walk.step(number, model_output, x, noise)
        found = taken.x.to(sample.dtype), taken.prediction.x0.to(sample.dtype)
        return DDIMSchedulerOutput(*found) if return_dict else found

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps, for timesteps [B] of diffusers."""
        alpha, sigma = self._scales(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha_t eps - sigma_t x_0, for timesteps [B] of diffusers."""
        alpha, sigma = self._scales(timesteps, sample)
        return alpha * noise - sigma * sample

    # What the config says now; pipelines change it after the scheduler was made

    def _choice(self) -> Choice:
        own, words = self.config, ("rule_options", "trajectory_options")
        return Choice(own["rule"], float(own["eta"]), own["trajectory"], *(dict(own[word] or {}) for word in words))

    def _require_known(self) -> None:
        if self.known and (told := unlike(self.known.moments.table.provenance, facts_of(self.config))):
            raise UserError(f"these moments were measured under another config ({told}); measure again.")

    def _require_shape(self, sample: Tensor) -> None:
        measured, given = self.known.moments.table.shape if self.known else (), tuple(sample.shape[1:])
        if measured and measured != given:
            raise UserError(
                f"moments were measured on states of shape {measured}, not {given}; measure again on these."
            )

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        times = np.asarray(timesteps.detach().cpu(), dtype=np.float64) + 1.0
        return per_sample(self.process.alpha(times), like), per_sample(self.process.sigma(times), like)
