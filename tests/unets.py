"""Networks in diffusers' form that know the truth, and a pipeline of one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from adpm.ideal import IdealDenoiser, Mixture, diagonal_mixture
from adpm.process import DiscreteProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what diffusers imports is not ours
    from diffusers import ConfigMixin, DDPMPipeline, DDPMScheduler, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput

SHAPE = (2, 4, 4)
SPREADS = [[0.02 + 0.02 * (i % 5) for i in range(32)], [0.1 - 0.015 * (i % 6) for i in range(32)]]
MEANS = [[0.25 if i % 3 else -0.3 for i in range(32)], [-0.2 if i % 2 else 0.35 for i in range(32)]]


def mixture() -> Mixture:
    """Two Gaussians on images [2, 4, 4], within [-1, 1] but for a few entries in a million."""
    return diagonal_mixture([0.4, 0.6], MEANS, [[s**2 for s in row] for row in SPREADS], SHAPE)


class Truth(ModelMixin, ConfigMixin):
    """The exact network of `mixture` under the betas of a DDPMScheduler, predicting what a scheduler's config says."""

    @register_to_config
    def __init__(
        self,
        prediction_type: str = "epsilon",
        beta_schedule: str = "linear",
        in_channels: int = 2,
        sample_size: int = 4,
    ) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        process = DiscreteProcess(DDPMScheduler(beta_schedule=beta_schedule).betas.double())
        self.ideal, self.process = IdealDenoiser(mixture(), process), process

    def forward(self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True) -> UNet2DOutput:
        (time,) = torch.as_tensor(timestep).double().flatten().unique().tolist()
        found = self.ideal(sample.double(), time + 1.0)
        alpha, sigma = float(self.process.alpha(time + 1.0)), float(self.process.sigma(time + 1.0))
        said: dict[str, Any] = {
            "epsilon": found.eps,
            "sample": found.x0,
            "v_prediction": alpha * found.eps - sigma * found.x0,
        }
        return UNet2DOutput(sample=said[self.config.prediction_type].to(sample.dtype))


def pipeline(**config: Any) -> DDPMPipeline:
    """A pipeline of the exact network; `config` of its DDPMScheduler."""
    read = {key: config[key] for key in ("prediction_type", "beta_schedule") if key in config}
    pipe = DDPMPipeline(Truth(**read), DDPMScheduler(**{"clip_sample": False, **config}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(count: int = 200) -> Tensor:
    return mixture().sample(count, 0).float()
