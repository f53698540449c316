"""A path that is walked one step at a time, with the network called by somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adpm.conventions import clip_of, label_of, predicts_of
from adpm.denoiser import Denoiser, Watched
from adpm.errors import UserError
from adpm.noise import Noise
from adpm.process import Array, DiscreteProcess
from adpm.solver import ReverseGaussian, Step
from adpm.variance import Rule


class Walk:
    """The reverse Gaussian down a path, given the network's outputs.

    Args:
        process, rule, eta: of the steps.
        times: the path [K+1], increasing from 0.
        config: says what an output is, and how far x_0 is limited.
    """

    def __init__(
        self, process: DiscreteProcess, rule: Rule, eta: float, times: Array, config: Mapping[str, Any]
    ) -> None:
        self.times = times
        self._output = torch.empty(0)
        read: Any = {"predicts": predicts_of(config), "time_label": label_of, "clip": clip_of(config)}
        self._denoise = Watched(Denoiser(self._handed, process, **read))
        self._solver = ReverseGaussian(process, rule, eta)

    @property
    def timesteps(self) -> list[int]:
        """The path in the numbers of diffusers, from the noise down: time n is timestep n - 1."""
        return [int(t) - 1 for t in self.times[:0:-1]]

    def number_of(self, timestep: int | float | Tensor) -> int:
        """Which step of the path begins at a timestep, 0 for the first.

        Raises:
            UserError: if none does.
        """
        at = np.flatnonzero(self.times[:0:-1] == float(timestep) + 1.0)
        if not at.size:
            raise UserError(f"`timestep` = {float(timestep):g} is none of this path's: {self.timesteps}.")
        return int(at[0])

    def step(self, number: int, output: Tensor, x: Tensor, noise: Noise) -> Step:
        """The step with this number from the state x [B, ...], for which the network gave `output`.

        Raises:
            UserError: for an output that is not finite; on a GPU, which is not waited for, in the last step.
        """
        t, s = self.times[::-1][number : number + 2]
        self._output = output
        try:
            step = self._solver.step(self._denoise, x, float(t), float(s), noise)
        finally:
            self._output = torch.empty(0)
        if s == 0.0:
            self._denoise.check()
        return step

    def _handed(self, x: Tensor, label: Tensor) -> Tensor:
        return self._output


def follow_ddim(
    config: Mapping[str, Any], eta: float | None = None, use_clipped_model_output: bool | None = None
) -> None:
    """Refuse what DDIMPipeline passes on, where it says other than the config; eta = 0 is what it says when not asked.

    Raises:
        UserError: naming the field of the config that says it.
    """
    if eta and eta != config["eta"]:
        raise UserError(
            f"`eta` = {eta:g} is not that of the scheduler's config, {config['eta']:g}, which variance and times are "
            "made for: scheduler.register_to_config(eta=...) before `set_timesteps`."
        )
    if use_clipped_model_output is False and clip_of(config):
        raise UserError("`use_clipped_model_output` = False: eps is always re-derived from an x_0 that is limited.")
