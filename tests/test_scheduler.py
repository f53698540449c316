"""`AnalyticScheduler` in diffusers' pipelines: our sampler's samples from the same noise, in worlds that are known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import adpm
from adpm.conventions import PREDICTS
from adpm.sampler import walk
from adpm.solver import ReverseGaussian
from tests.unets import SHAPE, images, pipeline

from adpm.diffusers import AnalyticScheduler  # isort: skip  # after tests.unets, which quiets what diffusers warns of
from adpm.diffusers.measuring import Effort  # isort: skip
from diffusers import (  # isort: skip
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    VQModel,
)

ROOT = Path(__file__).parent.parent
FEW = Effort(draws=24, times=12, starts=20, nodes=12)
STEPS = 6
RULES = ["analytic", "spectral"]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(7 + i) for i in range(count)]


def noises(count: int, steps: int, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    """What `generators` give a pipeline: the start, and the noise of every step but the last."""
    drawn = [torch.stack([torch.randn(shape, generator=g) for _ in range(steps)]) for g in generators(count)]
    return list(torch.stack(drawn, 1))


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Pipelines of both rules, their scheduler in place; (pipe, model) by rule."""
    out = {}
    for rule in RULES:
        pipe = pipeline()
        model = adpm.Model.from_diffusers(pipe.unet, pipe.scheduler)
        pipe.scheduler = AnalyticScheduler.from_pipeline(
            pipe, images(), STEPS, effort=FEW, rule=rule, eta=1.0, basis="pca"
        )
        out[rule] = pipe, model
    return out


def ours(scheduler: AnalyticScheduler, model: adpm.Model, z: list[torch.Tensor]) -> torch.Tensor:
    """Our loop, along our plan, by our rule."""
    assert scheduler.known is not None
    choice = scheduler.config
    times = np.concatenate([[0.0], scheduler.timesteps.numpy()[::-1] + 1.0])
    solver = ReverseGaussian(model.process, model.rule(choice.rule, scheduler.known.moments), choice.eta)
    for step in walk(model.denoise, solver, times, z[0], lambda k: z[k]):
        x = step.x
    return x


def as_images(x: torch.Tensor) -> torch.Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
def test_a_pipeline_gives_our_samplers_samples(known, rule, eta):
    pipe, model = known[rule]
    pipe.scheduler.register_to_config(eta=eta)
    for loop in (pipe, in_ddim_pipeline(pipe)):
        made = loop(batch_size=3, generator=generators(3), num_inference_steps=STEPS, output_type="pt").images
        expected = as_images(ours(pipe.scheduler, model, noises(3, STEPS)))
        assert (made - expected).abs().max() < 1e-5
    pipe.scheduler.register_to_config(eta=1.0)


def in_ddim_pipeline(pipe: Any) -> DDIMPipeline:
    """Its constructor replaces the scheduler by DDIM, whatever it was; ours is put in afterwards."""
    made = DDIMPipeline(pipe.unet, pipe.scheduler)
    assert type(made.scheduler) is DDIMScheduler
    made.scheduler = pipe.scheduler
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("rule", RULES)
def test_the_nodes_are_those_of_the_plan(known, rule):
    """The front door's own, with the last step priced by images of 256 levels; and each step goes to the next."""
    pipe, _ = known[rule]
    scheduler = pipe.scheduler
    model = adpm.Model.from_diffusers(pipe.unet, scheduler, data_range=(-1.0, 1.0), clip=False)
    for steps in (STEPS, 3):
        plan = model.plan(scheduler.known.moments, steps, images=images(), levels=256, draws=FEW.draws, batch_size=64)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == (plan.times[:0:-1] - 1.0).astype(int).tolist()
        assert scheduler.num_inference_steps == steps
    t, s = scheduler.timesteps[:2]
    x0 = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    x = scheduler.add_noise(x0, torch.zeros_like(x0), t[None])
    scheduler.known.paths.clear()
    scheduler.register_to_config(rule="small", eta=0.0)
    scheduler.set_timesteps(timesteps=scheduler.timesteps.tolist())
    found = scheduler.step(torch.zeros_like(x0), t, x).prev_sample
    assert torch.allclose(found, scheduler.add_noise(x0, torch.zeros_like(x0), s[None]), atol=1e-6)
    scheduler.register_to_config(rule=rule, eta=1.0)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_small_on_the_same_nodes_is_theirs(kind):
    """DDIM, and DDPM with its smaller variance; a generator that both draw from."""
    pipe, eta = pipeline(), float(kind is DDPMScheduler)
    pipe.scheduler = kind(clip_sample=False)
    theirs = pipe(batch_size=2, generator=generators(2), num_inference_steps=10, output_type="pt").images
    config = {**pipe.scheduler.config, "rule": "small", "eta": eta, "trajectory": "stride"}
    pipe.scheduler = AnalyticScheduler.from_config(config)
    made = pipe(batch_size=2, generator=generators(2), num_inference_steps=10, output_type="pt").images
    assert pipe.scheduler.timesteps.tolist() == list(range(900, -1, -100))
    assert (made - theirs).abs().max() < 1e-4  # their tables are float32


@pytest.mark.parametrize("clip", [False, True])
def test_whatever_a_network_predicts_is_the_same_sample(clip):
    made = []
    for predicts in PREDICTS:
        pipe = pipeline(prediction_type=predicts, clip_sample=clip, clip_sample_range=0.4)
        pipe.scheduler = AnalyticScheduler.from_pipeline(pipe, images(), STEPS, effort=FEW, rule="analytic")
        made.append(pipe(batch_size=2, generator=generators(2), num_inference_steps=STEPS, output_type="pt").images)
    assert (made[0] - made[1]).abs().max() < 2e-5 and (made[0] - made[2]).abs().max() < 2e-5
    if clip:
        assert float(made[0].max()) <= 0.7 + 1e-6


def test_each_state_has_its_generator(known):
    """Alone or in a batch."""
    pipe, _ = known["spectral"]
    three = pipe(batch_size=3, generator=generators(3), num_inference_steps=3, output_type="pt").images
    one = pipe(batch_size=1, generator=generators(2)[1:], num_inference_steps=3, output_type="pt").images
    assert torch.allclose(three[1:2], one, atol=1e-6) and not torch.allclose(three[:1], one, atol=1e-2)


def test_fitted_times_are_found_with_the_moments(known):
    """Those of the front door, for the steps that were named; others are refused in words."""
    pipe = pipeline()
    model = adpm.Model.from_diffusers(pipe.unet, pipe.scheduler)
    made = AnalyticScheduler.from_pipeline(pipe, images(), [3, 5], effort=FEW, rule="analytic", trajectory="fitted")
    flow = model.measure_trajectories(images(), FEW.starts, FEW.nodes, batch_size=FEW.batch_size)
    for steps in (3, 5):
        made.set_timesteps(steps)
        plan = model.plan(made.known.moments, steps, "fitted", statistics=flow)
        assert made.timesteps.tolist() == (plan.times[:0:-1] - 1.0).astype(int).tolist()
    with pytest.raises(adpm.UserError, match=r"from_pipeline\(pipe, images, steps=K, trajectory='fitted'\)"):
        made.set_timesteps(4)


def test_noise_and_velocity_are_theirs():
    theirs, made = DDPMScheduler(beta_schedule="scaled_linear"), AnalyticScheduler(beta_schedule="scaled_linear")
    x, eps = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 400, 999])
    for name in ("add_noise", "get_velocity"):
        assert torch.allclose(getattr(made, name)(x, eps, t), getattr(theirs, name)(x, eps, t), atol=1e-5)
    assert torch.allclose(made.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6)
    assert len(made) == 1000 and made.init_noise_sigma == 1.0 and made.scale_model_input(x, 3) is x
    assert made.timesteps.tolist() == theirs.timesteps.tolist()


# -- configs ----------------------------------------------------------------------------------------------------------


def test_configs_go_forth_and_back():
    """Betas and what the other had by default are kept; so is what only the other one knows."""
    for theirs in (DDPMScheduler(beta_end=0.03), DDIMScheduler(beta_schedule="scaled_linear"), PNDMScheduler()):
        made = AnalyticScheduler.from_config(theirs.config, eta=0.3)
        assert torch.allclose(made.betas, theirs.betas, rtol=1e-5) and made.config.eta == 0.3
        assert made.config.clip_sample == theirs.config.get("clip_sample", False)
        assert made.config.steps_offset == theirs.config.get("steps_offset", 0)
        again = type(theirs).from_config(made.config)
        assert torch.equal(again.betas, theirs.betas)
        assert all(again.config[k] == theirs.config[k] for k in theirs.config if not k.startswith("_"))
    assert {DDIMScheduler, DDPMScheduler, PNDMScheduler} <= set(AnalyticScheduler().compatibles)


# -- latents ----------------------------------------------------------------------------------------------------------


def latent_pipe(encoder: Any) -> SimpleNamespace:
    """A tiny random pipeline of latents, as Stable Diffusion has it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    ).eval()
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, skip_prk_steps=True
    )
    return SimpleNamespace(unet=unet, vae=encoder.eval(), scheduler=scheduler)


BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


@pytest.mark.parametrize("kind", [AutoencoderKL, VQModel])
def test_the_loop_of_a_latent_pipeline(kind):
    """Measured on latents under a condition; from there to a decoded image, with guidance, as pipelines do it."""
    torch.manual_seed(1)
    pipe = latent_pipe(kind(**BLOCKS))
    words, empty = torch.randn(1, 3, 8), torch.zeros(1, 3, 8)
    pictures = images(30).repeat(1, 2, 2, 2)[:, :3].clamp(-1.0, 1.0)
    made = AnalyticScheduler.from_pipeline(
        pipe, pictures, 4, effort=FEW, conditions={"encoder_hidden_states": words}, prediction_type="v_prediction"
    )
    assert made.config.clip_sample is False and made.config.steps_offset == 1
    assert made.known.moments.table.shape == (4, 4, 4)

    def guided(x: torch.Tensor, t: Any) -> torch.Tensor:
        t = torch.as_tensor(t).flatten()[0]
        both = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([empty, words]).repeat_interleave(2, 0))
        free, told = both.sample.chunk(2)
        return free + 3.0 * (told - free)

    z = noises(2, 4, (4, 4, 4))
    with torch.no_grad():
        made.set_timesteps(4, device="cpu")
        x, drawn = z[0] * made.init_noise_sigma, generators(2)
        for g in drawn:
            torch.randn((4, 4, 4), generator=g)  # the start
        for t in made.timesteps:
            x = made.step(guided(made.scale_model_input(x, t), t), t, x, generator=drawn, return_dict=False)[0]
        model = adpm.Model(guided, made.process, predicts="v", label=lambda t: t - 1.0)
        assert (x - ours(made, model, z)).abs().max() < 1e-5
        decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    assert decoded.shape == (2, 3, 8, 8) and bool(decoded.isfinite().all())


def test_latents_are_what_networks_of_latents_are_trained_on():
    """(z - shift) scale, the same for any batches; their moments are those of z, by many draws of it."""
    from adpm.diffusers.measuring import latents_of

    torch.manual_seed(1)
    vae = AutoencoderKL(**BLOCKS, scaling_factor=0.5, shift_factor=0.25).eval()
    one = images(1).repeat(400, 2, 2, 2)[:, :3]
    found = latents_of(vae, one, 0, 64)
    assert torch.allclose(found, latents_of(vae, one, 0, 400), atol=1e-5)
    with torch.no_grad():
        z = vae.encode(one[:1]).latent_dist
    assert torch.allclose(found.mean(0), (z.mean[0] - 0.25) * 0.5, atol=0.15)
    assert torch.allclose(found.std(0), 0.5 * z.std[0], rtol=0.2)


def test_a_loop_may_begin_on_the_way(known):
    """Image to image: from the third node on, from an image with the noise that belongs there."""
    pipe, model = known["analytic"]
    scheduler = pipe.scheduler
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2
    z = noises(2, STEPS)
    left = scheduler.timesteps[2:]
    x = start = scheduler.add_noise(images(2), z[0], left[:1].repeat(2))
    for k, t in enumerate(left, start=1):
        x = scheduler.step(pipe.unet(x, t).sample, t, x, variance_noise=z[k % STEPS]).prev_sample
    times = np.concatenate([[0.0], left.numpy()[::-1] + 1.0])
    solver = ReverseGaussian(model.process, model.rule("analytic", scheduler.known.moments))
    for step in walk(model.denoise, solver, times, start, lambda k: z[k % STEPS]):
        expected = step.x
    assert (x - expected).abs().max() < 1e-5
    with pytest.raises(adpm.UserError, match="comes before the step 2 to begin at"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(adpm.UserError, match=r"`begin_index` = 6 must lie in 0..5"):
        scheduler.set_begin_index(6)


def test_half_precision_comes_back_as_it_went(known):
    """Stepped in float32: no further off than rounding its ends."""
    scheduler = known["analytic"][0].scheduler
    scheduler.set_timesteps(STEPS)
    x, eps, z = torch.randn(3, 2, *SHAPE, generator=torch.Generator().manual_seed(0)).half()
    t = scheduler.timesteps[2]
    half = scheduler.step(eps, t, x, variance_noise=z).prev_sample
    whole = scheduler.step(eps.float(), t, x.float(), variance_noise=z.float()).prev_sample
    assert half.dtype == torch.float16 and torch.equal(half, whole.half())


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_told_before_work_starts(known):
    pipe, scheduler = pipeline(), AnalyticScheduler()
    x = torch.zeros(1, *SHAPE)
    small = AnalyticScheduler(rule="small", trajectory="even")
    have = known["analytic"][0].scheduler
    have.set_timesteps(STEPS)
    make = AnalyticScheduler.from_pipeline
    for call, told in (
        (lambda: AnalyticScheduler(rule="analytc"), "`rule` = 'analytc' is unknown (did you mean 'analytic'?)"),
        (lambda: AnalyticScheduler(trajectory="evn"), "`trajectory` = 'evn' is unknown"),
        (lambda: AnalyticScheduler(eta=1.5), "`eta` = 1.5 must lie in [0, 1]"),
        (lambda: AnalyticScheduler(rule="large", eta=0.0), "'large' goes with `eta` = 1 only, got 0"),
        (lambda: AnalyticScheduler(prediction_type="eps"), "`prediction_type` = 'eps' is unknown"),
        (lambda: scheduler.set_timesteps(5), "make it with AnalyticScheduler.from_pipeline(pipe, images)"),
        (lambda: small.step(x, 5, x), "call `set_timesteps` before `step`"),
        (lambda: small.set_timesteps(5, timesteps=[3, 1]), "either `num_inference_steps` or `timesteps`"),
        (lambda: small.set_timesteps(), "either `num_inference_steps` or `timesteps`"),
        (lambda: small.set_timesteps(timesteps=[1, 3]), "`timesteps` = [1, 3] must be whole numbers that fall"),
        (lambda: small.set_timesteps(timesteps=[1000, 3]), "must be whole numbers that fall, from at most 999"),
        (lambda: small.set_timesteps(1001), "must lie in 1..1000"),
        (lambda: have.step(x, 998, x), "`timestep` = 998 is none of this path's"),
        (lambda: have.step(x[..., :2], have.timesteps[0], x[..., :2]), "states of shape (2, 4, 4), not (2, 4, 2)"),
        (lambda: have.step(x + torch.nan, have.timesteps[0], x), "the network returned numbers that are not finite"),
        (lambda: have.step(x, have.timesteps[0], x, eta=0.5), "`eta` = 0.5 is not that of the scheduler's config, 1"),
        (lambda: make(pipe, images().mul(127).byte()), "`images` are torch.uint8"),
        (lambda: make(pipe, images() * 255.0), "and those of diffusers in [-1, 1]"),
        (lambda: make(pipe, images(), steps=[10, 0]), "`steps` = 0 must lie in 1..1000"),
        (lambda: make(SimpleNamespace(scheduler=pipe.scheduler), images()), "a pipeline with a `unet` is wanted"),
        (lambda: make(pipe, images(), rule="spectrl"), "`rule` = 'spectrl' is unknown"),
        (
            lambda: make(pipe, images(), effort=FEW, basis="pca", trajectory_options={"cost": "measured"}),
            "plans on 'kl' or 'axes'",
        ),
        (
            lambda: make(pipe, images(), effort=FEW, rule="analytic", trajectory_options={"cost": "axes"}),
            "use `rule` = 'spectral'",
        ),
    ):
        with pytest.raises(adpm.UserError) as caught:
            call()
        assert told in str(caught.value)
    with pytest.raises(TypeError):
        have.step(x, have.timesteps[0], x, generater=None)


def test_a_network_that_is_not_what_the_config_says_is_told():
    """Predicts eps, and is read as x0."""
    pipe = pipeline()
    with pytest.raises(adpm.UserError, match="of no network that fits the scheduler's config: at t = "):
        AnalyticScheduler.from_pipeline(pipe, images(), effort=FEW, prediction_type="sample")


def test_moments_of_another_config_are_refused():
    """Pipelines change a config after the scheduler was made; what they change it to is looked at, too."""
    made = AnalyticScheduler.from_pipeline(pipeline(), images(), 3, effort=FEW, rule="analytic")
    made.register_to_config(clip_sample=True)
    with pytest.raises(adpm.UserError, match=r"measured under another config \(clip: None there, \[-1.0, 1.0\] now\)"):
        made.set_timesteps(3)
    made.register_to_config(clip_sample=False, rule="spectrl")
    with pytest.raises(adpm.UserError, match="`rule` = 'spectrl' is unknown"):
        made.set_timesteps(3)


def test_adpm_alone_wants_no_diffusers():
    code = (
        "import sys, adpm; adpm.Model, adpm.Moments; print([m for m in sys.modules if m.startswith('diffusers')]); "
        "sys.modules['diffusers'] = None; import adpm.diffusers"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert "ImportError: adpm.diffusers needs the extra `diffusers`: pip install 'adpm[diffusers]'." in done.stderr
