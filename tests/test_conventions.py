"""What diffusers' configs and networks mean: their own numbers, a network that knows the truth, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import adpm
from adpm.conventions import BETAS, PREDICTS, Network, clip_of, facts_of, predicts_of, process_of
from adpm.likelihood import Levels
from tests.unets import Truth, images, mixture, pipeline

from diffusers import (  # isort: skip  # tests.unets quiets what it warns of
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("schedule", BETAS)
def test_betas_are_those_of_diffusers(schedule):
    config = DDPMScheduler(beta_schedule=schedule, beta_start=0.00085, beta_end=0.012).config
    theirs = DDPMScheduler.from_config(config)
    assert np.allclose(process_of(config).betas, theirs.betas.double(), rtol=2e-5)
    assert np.allclose(process_of(config).alpha(np.arange(1, 1001)) ** 2, theirs.alphas_cumprod.double(), atol=2e-7)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
def test_any_scheduler_of_betas_says_the_process(kind):
    config = kind(num_train_timesteps=400, **LATENT, prediction_type="v_prediction").config
    expected = np.linspace(0.00085**0.5, 0.012**0.5, 400) ** 2
    assert np.allclose(process_of(config).betas, expected, rtol=1e-12) and predicts_of(config) == "v"
    assert clip_of(config) == ((-1.0, 1.0) if "clip_sample" in config else None)


def test_betas_that_were_trained_with_are_taken_as_they_are():
    betas = np.linspace(1e-3, 0.3, 50)
    config = DDIMScheduler(num_train_timesteps=50, trained_betas=betas).config
    assert np.array_equal(process_of(config).betas, betas)
    assert facts_of(config)["betas"] == facts_of({**config, "trained_betas": betas.astype(np.float32)})["betas"]
    assert facts_of(config)["betas"] != facts_of(DDIMScheduler(num_train_timesteps=50).config)["betas"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            DDIMScheduler(rescale_betas_zero_snr=True).config,
            "`rescale_betas_zero_snr` = True of the scheduler's config",
        ),
        (DDIMScheduler(thresholding=True).config, "`thresholding` = True of the scheduler's config cannot be"),
        (FlowMatchEulerDiscreteScheduler().config, "the scheduler's config has no `beta_start`"),
        ({**DDPMScheduler().config, "beta_schedule": "laplace"}, "`beta_schedule` = 'laplace' is unknown"),
        (DDPMScheduler(num_train_timesteps=9, trained_betas=[0.1]).config, r"`trained_betas` has shape \(1,\)"),
    ],
)
def test_what_cannot_be_followed_is_refused(config, told):
    with pytest.raises(adpm.UserError, match=told):
        process_of(config)


def test_a_prediction_that_is_unknown_is_refused():
    with pytest.raises(adpm.UserError, match="`prediction_type` = 'eps' is unknown.*epsilon"):
        predicts_of({"prediction_type": "eps"})


class Spy(nn.Module):
    """Keeps what it is called with, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))

    def forward(self, x, t, **conditions):
        self.seen = x.dtype, t, conditions
        return SimpleNamespace(sample=x)


def test_a_network_is_called_as_pipelines_call_it():
    """In its own dtype, with steps from 0, and with one condition for all."""
    spy, words = Spy(), torch.randn(1, 3, 5)
    model = adpm.Model.from_diffusers(spy, DDPMScheduler(), conditions={"encoder_hidden_states": words})
    prediction = model.denoise(torch.ones(4, 1, 2, 2), 1000.0)
    dtype, t, conditions = spy.seen
    assert dtype == torch.float16 and t.tolist() == [999.0] * 4 and prediction.x0.dtype == torch.float32
    assert torch.equal(conditions["encoder_hidden_states"], words.expand(4, 3, 5))
    with pytest.raises(adpm.UserError, match=r"`conditions`\['class_labels'\] has shape \(2,\)"):
        Network(spy, {"class_labels": torch.zeros(2)})


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_a_model_of_a_diffusers_network_measures_the_truth(predicts, schedule):
    """E tr Cov[x_0 | x_t] / d of the mixture, by 4000 draws of the exact denoiser and by the front door."""
    pipe = pipeline(prediction_type=predicts, beta_schedule=schedule)
    model = adpm.Model.from_diffusers(pipe.unet, pipe.scheduler)
    moments = model.measure(images(400), draws=400, times=6)
    ideal = Truth(beta_schedule=schedule).ideal
    x0 = mixture().sample(4000, 1)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=x0.dtype)
    for t, found, error in zip(moments.times, moments.estimate().values, moments.estimate().errors, strict=True):
        x = float(model.process.alpha(t)) * x0 + float(model.process.sigma(t)) * eps
        exact = float((ideal(x, float(t)).x0 - x0).square().mean())
        assert abs(found / exact - 1.0) < 0.03 + 5.0 * error / exact, t


def test_what_is_said_besides_goes_before_what_the_config_says():
    pipe = pipeline(clip_sample=True)
    model = adpm.Model.from_diffusers(pipe.unet, pipe.scheduler, clip=False, levels=256)
    assert model.data_range == (-1.0, 1.0) and model.denoise.clip is None
    assert model.levels_of(None) == Levels(256, -1.0, 1.0)
