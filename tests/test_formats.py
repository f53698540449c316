"""Layouts on disk: each is recognised, gives the right weights under our names, and says which they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adpm.errors import UserError
from adpm.formats import read, read_weights
from adpm.formats.checkpoint import AS_STORED, EMA, RAW, Checkpoint
from adpm.formats.diffusers import current_names, from_ddpm, layer_names, to_ddpm
from adpm.formats.shapes import shape_of
from adpm.nn.checkpoint import save_weights
from adpm.process import linear
from tests.goldens import DATA, filled, golden_json

FORMATS = DATA / "formats"
HEAD = ("before_out.", "norm_out2.", "conv_out2.")


def ddpm(salt: str, head: bool = False) -> dict[str, Tensor]:
    """The small DDPM network of the published fixtures, filled by rule."""
    sizes: dict[str, list[int]] = golden_json("formats/ddpm_names")["small"]
    wanted = {name: size for name, size in sizes.items() if head or not name.startswith(HEAD)}
    return {name: filled(name, tuple(size), salt) for name, size in wanted.items()}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(state: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


OPTIMIZER = {"state": {0: {"step": 3}}, "param_groups": []}


@pytest.mark.parametrize(
    ("stored", "chosen"),
    [
        (lambda ema, raw: [prefixed(raw), OPTIMIZER, 4, 10, ema], EMA),
        (lambda ema, raw: [prefixed(raw), OPTIMIZER, 10, ema], EMA),
        (lambda ema, raw: [prefixed(ema), OPTIMIZER, 4, 10], RAW),
        (lambda ema, raw: {"model": prefixed(raw), "model_ema": ema, "optimizer": OPTIMIZER}, EMA),
        (lambda ema, raw: {"model": prefixed(ema), "optimizer": OPTIMIZER}, RAW),
        (lambda ema, raw: {"ema": prefixed(ema), "step": 3}, EMA),
        (lambda ema, raw: {"state_dict": ema}, AS_STORED),
        (lambda ema, raw: prefixed(ema, "ema_model.module.") | prefixed(raw, "online_model."), EMA),
        (
            lambda ema, raw: prefixed(ema, "ema_model.") | prefixed(raw, "online_model.") | {"step": torch.tensor(3)},
            EMA,
        ),
        (lambda ema, raw: prefixed(ema, "module.ema_model."), AS_STORED),
    ],
    ids=["list", "short list", "no average", "two dicts", "raw", "average", "wrapped", "ema_model", "step", "prefixes"],
)
def test_the_average_is_chosen_and_said(tmp_path: Path, stored: Callable[..., Any], chosen: str) -> None:
    ema, raw, path = ddpm("ema/"), ddpm("raw/"), tmp_path / "ckpt.pth"
    torch.save(stored(ema, raw), path)
    _, checkpoint = read(path)
    assert same(checkpoint.state, ema) and checkpoint.chosen == chosen


@pytest.mark.parametrize("change", [lambda ema: ema.pop("conv_in.bias"), lambda ema: ema.update(more=torch.zeros(1))])
def test_an_average_of_something_else_ends_no_list(tmp_path: Path, change: Callable[..., Any]) -> None:
    ema, path = ddpm("ema/"), tmp_path / "ckpt.pth"
    change(ema)
    torch.save([ddpm("raw/"), OPTIMIZER, 4, 10, ema], path)
    with pytest.raises(UserError, match=r"ckpt\.pth' ends in an average whose names or shapes are not those of its"):
        read(path)


@pytest.mark.parametrize("stored", [[{"a": torch.zeros(1)}, 3], [3, OPTIMIZER], [], [OPTIMIZER, OPTIMIZER]])
def test_other_lists_are_no_checkpoints(tmp_path: Path, stored: list[Any]) -> None:
    torch.save(stored, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"ckpt\.pth' is not in a layout this project reads"):
        read(tmp_path / "ckpt.pth")


def test_torch_save_of_before_archives(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(ddpm("ema/"), path, _use_new_zipfile_serialization=False)
    assert same(read_weights(path), ddpm("ema/"))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"model\.ckpt' is not a whole checkpoint"):
        read(path)


def test_a_schedule_among_the_weights_is_taken_off(tmp_path: Path) -> None:
    """A class that holds network and schedule, as many training codes save it."""
    state, process, path = ddpm("ema/"), linear(1000), tmp_path / "model.pt"
    squared = torch.as_tensor(process.alpha(process.times[1:]) ** 2)
    betas = torch.as_tensor(1.0 - np.asarray(squared / torch.cat([torch.ones(1), squared[:-1]])))
    for buffers in ({"alphas_cumprod": squared, "betas": betas}, {"betas": betas}):
        torch.save(prefixed({**prefixed(state, "model."), **buffers}, "ema_model."), path)
        _, checkpoint = read(path)
        assert same(checkpoint.state, state) and checkpoint.schedule is not None
        torch.testing.assert_close(checkpoint.schedule, squared, rtol=1e-9, atol=0)
    torch.save(state, path)
    assert read(path)[1].schedule is None


def test_noise_levels_are_told_for_ncsnpp_alone() -> None:
    """DDPM++ files have the buffer, too, which says nothing about them."""
    noise = read(FORMATS / "score_sde_ve.pth")[1].noise
    assert noise == pytest.approx((50.0, 0.01)) and read(FORMATS / "score_sde_vp.pth")[1].noise is None


@pytest.mark.parametrize(("name", "steps"), [("ms_eps_numpy1", 1000), ("ms_eps_numpy2", 1000)])
def test_an_ms_eps_file_is_told_apart(name: str, steps: int) -> None:
    with pytest.raises(UserError, match=rf"it holds mean squares for {steps} steps; name such a file in `ms_eps`"):
        read_weights(FORMATS / f"{name}.pth")


# Folders


def folder(path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(dict(state), path / name) if name.endswith(".safetensors") else torch.save(dict(state), path / name)
    return path


def hf() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state dict in current names, config) of the small network."""
    return from_ddpm(ddpm("ema/"), 1), dict(golden_json("formats/ddpm_names")["config"])


def test_names_of_diffusers_are_the_published_ones() -> None:
    """google/ddpm-cifar10-32, layer for layer: four levels, two blocks."""
    published: dict[str, str] = golden_json("formats/ddpm_names")["layers"]
    found = layer_names(4, 3)
    assert {name: found[name] for name in published} == published
    old: dict[str, str] = golden_json("formats/ddpm_names")["deprecated"]
    assert len(old) > 20
    for current, deprecated in old.items():
        assert list(current_names({f"{deprecated}.weight": torch.zeros(1)})) == [f"{current}.weight"]


def test_there_and_back() -> None:
    state, names = ddpm("ema/"), golden_json("formats/ddpm_names")["layers"]
    theirs = from_ddpm(state, 1)
    assert theirs["down_blocks.0.attentions.0.to_q.weight"].shape == (32, 32) and len(theirs) == len(state)
    assert same(to_ddpm(theirs, 1), state)
    deep = {f"{layer}.bias": torch.tensor([float(i)]) for i, layer in enumerate(names)}
    assert same(to_ddpm(from_ddpm(deep, 4), 4), deep)


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    """By itself, by the file in it, within a pipeline, in either spelling."""
    state, config = hf()
    back = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {n.replace(*next(((a, b) for a, b in back.items() if f".{a}." in n), ("", ""))): t for n, t in state.items()}
    assert "mid_block.attentions.0.proj_attn.bias" in old
    new = folder(tmp_path / "new", state, config, "diffusion_pytorch_model.safetensors")
    deprecated = folder(tmp_path / "old", old, config, "diffusion_pytorch_model.bin")
    pipe = folder(tmp_path / "pipe" / "unet", state, config, "diffusion_pytorch_model.safetensors").parent
    for place in (new, deprecated, new / "diffusion_pytorch_model.safetensors", pipe):
        _, checkpoint = read(place)
        assert same(checkpoint.state, ddpm("ema/")) and checkpoint.side == 8 and checkpoint.schedule is None
        assert same(read_weights(place, state.keys()), state), "for a network with diffusers' own names"


def scheduler_of_pipeline(tmp_path: Path, config: object) -> Checkpoint:
    """What a pipeline with a scheduler's config is read as."""
    pipe = tmp_path / "pipe"
    if not pipe.exists():
        folder(pipe / "unet", *hf(), "diffusion_pytorch_model.safetensors")
        (pipe / "scheduler").mkdir()
    (pipe / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return read(pipe)[1]


BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def test_a_pipeline_says_its_schedule_and_prediction(tmp_path: Path) -> None:
    """As `adpm.conventions` reads them, the number of the step that its networks receive along with it."""
    checkpoint = scheduler_of_pipeline(tmp_path, {**BETAS, "prediction_type": "v_prediction"})
    process = linear(1000)
    assert checkpoint.predicts == "v" and checkpoint.schedule is not None and not checkpoint.unfollowed
    assert checkpoint.settled == {"label": "index", "time_shift": 1, "time_scale": 1.0}
    np.testing.assert_allclose(checkpoint.schedule, process.alpha(process.times[1:]) ** 2, rtol=1e-9)
    sigmoid = scheduler_of_pipeline(tmp_path, {**BETAS, "beta_schedule": "sigmoid"})
    betas = 1e-4 + 0.0199 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, 1000)))
    np.testing.assert_allclose(sigmoid.schedule, np.cumprod(1.0 - betas), rtol=1e-9)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"scheduler_config\.json' is no JSON object \(it holds a list\)"):
        scheduler_of_pipeline(tmp_path, [])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**BETAS, "rescale_betas_zero_snr": True}, "`rescale_betas_zero_snr` = True of the scheduler's config cannot"),
        ({**BETAS, "beta_schedule": "laplace"}, "`beta_schedule` = 'laplace' is unknown"),
        ({**BETAS, "prediction_type": "flow"}, "`prediction_type` = 'flow' is unknown"),
        ({"num_train_timesteps": 1000, "shift": 1.0}, "the scheduler's config has no `beta_start`"),
    ],
)
def test_a_scheduler_that_cannot_be_followed_says_nothing(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    """A flow is no linear schedule, and an unknown prediction is not eps."""
    checkpoint = scheduler_of_pipeline(tmp_path, config)
    assert told in checkpoint.unfollowed and checkpoint.schedule is None and checkpoint.predicts == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attention_head_dim": 8}, "with attention_head_dim = 8, which is not DDPM's"),
        ({"freq_shift": 0, "flip_sin_to_cos": True}, "with flip_sin_to_cos = True, freq_shift = 0, which"),
        ({"down_block_types": ["SkipDownBlock2D"]}, "with a SkipDownBlock2D, which"),
        ({"_class_name": "UNet2DConditionModel"}, "it is a UNet2DConditionModel of diffusers, and only UNet2DModel"),
        ({"norm_eps": None, "center_input_sample": True}, "with center_input_sample = True, norm_eps = None"),
    ],
)
def test_another_network_of_diffusers_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    state, config = hf()
    place = folder(tmp_path / "unet", state, config | change, "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=rf"fits no network of this project: .*{told}"):
        read_weights(place)


def test_what_diffusers_takes_where_nothing_is_said(tmp_path: Path) -> None:
    """An unset option is not DDPM's: heads of 8 channels, frequencies without shift, padding on both sides."""
    state, config = hf()
    for name in ("attention_head_dim", "freq_shift", "flip_sin_to_cos", "downsample_padding", "norm_eps"):
        kept = {key: value for key, value in config.items() if key != name}
        place = folder(tmp_path / name, state, kept, "diffusion_pytorch_model.bin")
        assert name in read(place)[1].unusable


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty' is a folder with neither ema_models_states/model\.pth nor config\.json"
    ):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"empty' holds no weights: diffusion_pytorch_model\.safetensors or"):
        read(tmp_path / "empty")


# Shapes


def test_a_ddpm_network_is_read_off() -> None:
    shape = shape_of(ddpm("", head=True))
    assert shape is not None and shape.family == "ddpm" and shape.usual["time_shift"] == 1
    assert shape.build_options(8) == {
        "model_channels": 32,
        "channel_mult": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
        "head": "complex",
    }
    assert str(shape) == "a DDPM network, 1 block, width 32 (1), attention at level 0, 3 channels, a complex head"
    assert shape_of({}) is None and shape_of({"conv_in.weight": torch.zeros(1)}) is None


def test_half_a_network_is_none(tmp_path: Path) -> None:
    state = {name: t for name, t in ddpm("").items() if not name.startswith("down.")}
    assert shape_of(state) is None
    save_weights(tmp_path / "a.safetensors", state, {})
    assert same(read_weights(tmp_path / "a.safetensors"), state)
