"""What a file says beside its network: kept where it is converted, read into the config, and held against it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.formats.diffusers import config_of, from_ddpm
from adpm.formats.shapes import shape_of
from adpm.nn.checkpoint import read_header, save_weights
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.weights import weights_header
from tests.edm_networks import EDMPrecond, write
from tests.goldens import golden_json
from tests.test_edm_pickles import song
from tests.test_formats import FORMATS, ddpm, prefixed
from tests.test_of_file import go, images, session

__all__ = ["images"]  # a fixture


def pipeline(path: Path, **scheduler: Any) -> Path:
    """A pipeline of diffusers with a DDPM network and, where anything is said, a scheduler."""
    inside = path / "unet"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text(json.dumps(golden_json("formats/ddpm_names")["config"]))
    save_file(from_ddpm(ddpm("ema/"), 1), inside / "diffusion_pytorch_model.safetensors")
    if scheduler:
        betas = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        (path / "scheduler").mkdir()
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({**betas, **scheduler}))
    return path


V_COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 400}


def same_model(one: Session, other: Session) -> bool:
    """The same process, and the same x0 at several times, to the last bit."""
    x, times = torch.rand(2, 3, 8, 8), one.process.times
    if one.process.times.tolist() != other.process.times.tolist() or one.data.low != other.data.low:
        return False
    some = times[[1, len(times) // 2, -1]]
    return all(torch.equal(one.trunk.denoise(x, t).x0, other.trunk.denoise(x, t).x0) for t in some)


def edm_pickle(path: Path) -> Path:
    return write(path / "edm.pkl", {"ema": EDMPrecond(song(False), 8)})


@pytest.mark.parametrize("make", [lambda p: pipeline(p / "pipe", **V_COSINE), edm_pickle])
def test_a_converted_file_gives_the_session_of_the_original(tmp_path: Path, images: Path, make: Any) -> None:
    """Schedule, prediction, label and range are in the header, and in that of a file converted once more."""
    file = make(tmp_path)
    original = session(tmp_path / "o", file, images)
    for place, source in ((tmp_path / "a", file), (tmp_path / "b", tmp_path / "a" / "weights.safetensors")):
        assert go(place, "any.py", "convert", source) == 0
        assert same_model(session(place / "run", place / "weights.safetensors", images), original)
    with pytest.raises(UserError, match=r"weights '.*' predict '(v|edm)', but config\.denoiser\.predicts = 'eps'"):
        session(tmp_path / "x", tmp_path / "a" / "weights.safetensors", images, denoiser__predicts="eps")


def test_a_pipeline_s_networks_count_from_0(tmp_path: Path, images: Path) -> None:
    """The label of step n of 400 is n - 1, and the published cosine schedule of that length."""
    made = session(tmp_path / "a", pipeline(tmp_path / "pipe", **V_COSINE), images)
    assert (made.config.denoiser.predicts, made.config.process.name, made.process.steps) == ("v", "cosine", 400)
    label = made.denoiser(torch.nn.Identity(), clip=False).label
    assert label(np.array([1.0, 2.0, 400.0])).tolist() == [0.0, 1.0, 399.0]
    with pytest.raises(
        UserError, match=r"with config\.denoiser\.time_shift = 1, config\.denoiser\.time_scale = 1, but"
    ):
        session(tmp_path / "b", tmp_path / "pipe", images, denoiser__time_scale=2.5)


def test_a_converted_file_of_ours_goes_on_saying_all(tmp_path: Path) -> None:
    assert go(tmp_path, "any.py", "convert", "pretrained/digits_vp.safetensors") == 0
    here, there = (read_header(Path(p)) for p in (tmp_path / "weights.safetensors", "pretrained/digits_vp.safetensors"))
    assert here == there and here["iterations"] == 8000


def test_what_a_state_dict_cannot_hold_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pipeline(tmp_path / "pipe", **V_COSINE)
    assert go(tmp_path / "a", "any.py", "convert", file, "--config.network.save_as=state_dict") == 0
    told = capsys.readouterr().out
    assert "has names and tensors alone; 'pipe' says besides: a schedule of 400 steps" in told and "predicts v" in told


def test_a_scheduler_goes_to_diffusers_and_back(tmp_path: Path, images: Path, capsys: Any) -> None:
    """diffusers' own scheduler then has the pipeline's alphas; without a scheduler there, none is written, and said."""
    diffusers = pytest.importorskip("diffusers")
    file = pipeline(tmp_path / "pipe", **V_COSINE)
    assert go(tmp_path / "a", "any.py", "convert", file, "--config.network.save_as=diffusers") == 0
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "a" / "scheduler")
    due = diffusers.DDPMScheduler.from_pretrained(file / "scheduler")
    torch.testing.assert_close(scheduler.alphas_cumprod, due.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert scheduler.config.prediction_type == "v_prediction"
    one, other = (session(tmp_path / p.name / "run", p, images) for p in (file, tmp_path / "a"))
    np.testing.assert_allclose(one.process.log_snr(one.process.times), other.process.log_snr(one.process.times))
    assert one.config.denoiser == other.config.denoiser
    assert go(tmp_path / "b", "any.py", "convert", pipeline(tmp_path / "n"), "--config.network.save_as=diffusers") == 0
    assert "no scheduler is written: 'n' does not say both" in capsys.readouterr().out
    assert not (tmp_path / "b" / "scheduler").exists()


def test_narrow_networks_are_no_unet2dmodels() -> None:
    """Of 24 channels ours has 8 groups, UNet2DModel none."""
    shape = shape_of(ddpm("ema/"))
    assert shape is not None and config_of(shape) is not None and config_of(replace(shape, width=48)) is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"denoiser__label": "time_999"}, r"receives 'edm' as time, but config\.denoiser\.label = 'time_999'"),
        ({"data__low": -1.0, "data__high": 1.0}, r"are of data in \[-2, 2\], but data set 'arrays' is in \[-1, 1\]"),
        (
            {"process__name": "ve"},
            r"go with a process of alpha\^2 \+ sigma\^2 = 1, such as 'vp', but config\.process\.name",
        ),
    ],
)
def test_what_edm_settles_is_checked(tmp_path: Path, images: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        session(tmp_path / "run", edm_pickle(tmp_path), images, **fields)
    config, made = load_config("configs/digits_sde.py", "vp")
    network = {f"network.{k}": v for k, v in shape_options(tmp_path).items()}
    named = {"network.pretrained": str(tmp_path / "edm.pkl"), "data.name": "arrays", "data.file": str(images)}
    made.table.update(config, {**named, **network, "denoiser.predicts": "edm"})
    with pytest.raises(UserError, match="receives 'edm' as time, but .*'time_999'"):
        Session.make(config, tmp_path / "x", made)


def shape_options(folder: Path) -> dict[str, Any]:
    """Of the network in EDM's pickle there."""
    shape = shape_of(read_weights(folder / "edm.pkl"))
    assert shape is not None
    return shape.build_options(8)


def test_edm_runs_on_any_process_that_preserves_variance(tmp_path: Path, images: Path) -> None:
    made = session(tmp_path / "run", edm_pickle(tmp_path), images, process__name="linear")
    assert made.config.process.name == "linear" and made.config.denoiser.label == "edm"


def test_a_schedule_of_nobody_s_is_taken_from_its_betas(tmp_path: Path, images: Path) -> None:
    """As the refusal says."""
    state, squared = read_weights(FORMATS / "plain_iddpm_head.pth"), torch.linspace(0.9, 0.01, 7, dtype=torch.float64)
    torch.save({**prefixed(state, "model."), "alphas_cumprod": squared}, tmp_path / "a.pt")
    betas = 1 - squared / torch.cat([torch.ones(1), squared[:-1]])
    np.save(tmp_path / "betas.npy", betas.numpy())
    custom = {"process__name": "custom", "process__betas_file": str(tmp_path / "betas.npy")}
    made = session(tmp_path / "run", tmp_path / "a.pt", images, **custom)
    np.testing.assert_allclose(made.process.alpha(made.process.times[1:]) ** 2, squared, rtol=1e-9)
    np.save(tmp_path / "betas.npy", betas.numpy() / 2)
    with pytest.raises(UserError, match=r"hold a schedule of 7 steps that ends at .* and config\.process is another"):
        session(tmp_path / "x", tmp_path / "a.pt", images, **custom)


def test_a_scheduler_that_cannot_be_followed_is_refused(tmp_path: Path, images: Path, capsys: Any) -> None:
    pipe = pipeline(tmp_path / "pipe", prediction_type="flow")
    with pytest.raises(UserError, match="cannot be used as they are: `prediction_type` = 'flow' is unknown"):
        session(tmp_path / "run", pipe, images)
    assert go(tmp_path, "toy.py", "inspect", pipe) == 0
    assert "`prediction_type` = 'flow' is unknown" in capsys.readouterr().out


def test_inspect_asks_only_for_what_the_file_does_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path, "toy.py", "inspect", pipeline(tmp_path / "pipe", **V_COSINE)) == 0
    told = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert "predicts v, label = index, time_shift = 1, time_scale = 1.0" in told["says"]
    assert told["unsaid"].strip() == "taken as published files of its kind have it: low = -1.0"


def test_fields_of_what_the_file_turns_out_to_be_may_be_set(tmp_path: Path, images: Path) -> None:
    made = session(tmp_path / "a", FORMATS / "score_sde_vp.pth", images, process__beta_max=15.0)
    assert (made.config.process.name, made.config.process.beta_max) == ("vp", 15.0)
    with pytest.raises(
        UserError, match=r"config\.process\.sigma_max = 9\.0 does not go with config\.process\.name = 'vp'"
    ):
        session(tmp_path / "b", FORMATS / "score_sde_vp.pth", images, process__sigma_max=9.0)


def test_a_file_of_ours_says_its_network(tmp_path: Path) -> None:
    """A null class and heads leave no trace in a state dict; the header has them."""
    options = {"num_classes": 10, "null_class": True, "model_channels": 8, "num_heads": 2, "channel_mult": (1, 2)}
    config, made = load_config("configs/digits.py")
    made.table.update(config, {f"network.{k}": v for k, v in options.items()} | {"network.pretrained": ""})
    own = Session.make(config, tmp_path / "own", made, trains=True)
    file = tmp_path / "weights.safetensors"
    save_weights(file, own.network().state_dict(), weights_header(own.place, 1))
    config, made = load_config("configs/any.py")
    made.table.set(config, {"network.pretrained": str(file), "data.name": "digits"})
    found = Session.make(config, tmp_path / "any", made)
    assert {name: found.config.network[name] for name in options} == options
    assert found.trunk.network is not None and found.trunk.network.num_classes == own.network().num_classes


def test_other_networks_of_diffusers_are_run_by_their_family(tmp_path: Path, images: Path, capsys: Any) -> None:
    """A UNet2DModel that is not DDPM's, from its pipeline, its folder or its weights: diffusers' own output."""
    diffusers = pytest.importorskip("diffusers")
    config = golden_json("formats/ddpm_names")["config"] | {"flip_sin_to_cos": True, "freq_shift": 0}
    torch.manual_seed(0)
    network = diffusers.UNet2DModel.from_config(config).eval()
    network.save_pretrained(tmp_path / "pipe" / "unet")
    weights = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    x = torch.randn(2, 3, 8, 8)
    for n, place in enumerate((tmp_path / "pipe", weights.parent, weights)):
        made = session(tmp_path / f"run{n}", place, images)
        assert (made.config.network.name, made.config.denoiser.time_shift) == ("diffusers", 1)
        with torch.no_grad():
            assert torch.equal(made.trunk.network(x, torch.tensor([3.0])), network(x, 3).sample)  # type: ignore[misc]
    assert go(tmp_path, "any.py", "inspect", weights.parent) == 0
    told = capsys.readouterr().out
    assert "which is not DDPM's; config.network.name = diffusers runs it, as configs/any.py does" in told
    assert "time_shift = 1" in told
