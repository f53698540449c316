"""A file knows its shape: it is named, inspected and converted, and `configs/any.py` builds what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.formats.checkpoint import Checkpoint
from adpm.formats.diffusers import config_of, deviations, from_ddpm
from adpm.formats.shapes import shape_of
from adpm.nn.checkpoint import save_weights
from adpm.process import cosine
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.layouts import LAYOUTS
from adpm.run.recognised import Recognised, fitting, require_usable
from adpm.run.shipped import shipped
from tests.edm_networks import EDMPrecond, VPPrecond, iDDPMPrecond, write
from tests.goldens import DATA, golden, golden_json
from tests.pictures import folder
from tests.test_edm_pickles import song
from tests.test_formats import ddpm, prefixed

FORMATS = DATA / "formats"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty RGB images of 8x8."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8))
    return path


def session(workdir: Path, file: Path, images: Path, **fields: Any) -> Session:
    """Of configs/any.py."""
    config, made = load_config("configs/any.py")
    flat = {"network.pretrained": str(file), "data.name": "arrays", "data.file": str(images)} | {
        k.replace("__", "."): v for k, v in fields.items()
    }
    made.table.set(config, flat)
    return Session.make(config, workdir, made)


def arrays(images: Path) -> list[str]:
    """An npz of images as the data."""
    return ["--config.data.name=arrays", f"--config.data.file={images}"]


def go(workdir: Path, config: str, mode: str, file: object, *flags: str) -> int:
    named = [f"--config.network.pretrained={file}"] if file else []
    return run(
        ["main.py", f"--config=configs/{config}", f"--mode={mode}", f"--workdir={workdir}", *named, *flags], MODES
    )


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    return told


# Reading off


def test_every_shipped_network_is_recognised_as_its_own() -> None:
    """Built from its config, read off its names and shapes, found among the configs."""
    names = [name for name, _, _ in shipped()]
    assert {"configs/cifar10.py", "configs/cifar10.py:openai", "configs/cifar10_sde.py:vp"} <= set(names)
    for name, config, table in shipped():
        section, options = config["network"], table.options(config, "network.name")
        side, channels = (8, 1) if "digits" in name else (32, 3)
        with torch.device("meta"):
            network = table.families["network"][section["name"]].build((channels, side, side), **options)
        shape = shape_of(network.state_dict())
        assert shape is not None and shape.channels == channels
        found = Recognised(Path("x"), "", Checkpoint(network.state_dict()), shape)
        told = {name: value for name, value in found.network(side).items() if name != "network.name"}
        assert all(options[name.removeprefix("network.")] == value for name, value in told.items())
        assert name in fitting(found)
        again = found.built(table.families["network"], side).state_dict()
        assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in network.state_dict().items()}


@pytest.mark.parametrize(
    "file", ["score_sde_vp.pth", "score_sde_ve.pth", "plain_iddpm_head.pth", "ema_0.9999_000010.pt"]
)
def test_any_builds_what_the_file_is(tmp_path: Path, images: Path, file: str) -> None:
    """The published outputs, for the file's average, without a word about the network."""
    made = session(tmp_path, FORMATS / file, images, network__num_heads=2)  # which no file says
    network = made.trunk.network
    origin = {"ema_0.9999_000010.pt": "improved_diffusion_ema"}.get(file, file.removesuffix(".pth"))
    stored = golden("formats/formats_golden")
    x, t, y = (torch.as_tensor(stored[f"{origin}/{key}"]) for key in "xty")
    assert network is not None
    with torch.no_grad():
        found = made.model.network(x, t) if network.has_head is False else network(x, t)[:, :3]  # type: ignore[misc]
    expected = y if found.shape == y.shape else y[:, : found.shape[1]]
    worst = (found - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1)
    assert worst.max() < 1e-5


def test_what_no_file_says_is_as_published_files_have_it(tmp_path: Path, images: Path) -> None:
    ve = session(tmp_path / "ve", FORMATS / "score_sde_ve.pth", images).config
    assert (ve.process.name, ve.denoiser.label, ve.denoiser.predicts, ve.data.low) == ("ve", "sigma", "score", 0.0)
    assert ve.process.sigma_max == pytest.approx(50.0) and ve.network.attention_resolutions == (8,)
    openai = session(tmp_path / "oa", FORMATS / "ema_0.9999_000010.pt", images)
    assert openai.config.network.learned_variance and openai.config.process.name == "cosine"
    assert openai.denoiser(torch.nn.Identity(), clip=False).label(np.array([1.0, 4000.0])).tolist() == [0.0, 999.75]
    set_by_user = session(
        tmp_path / "x", FORMATS / "score_sde_vp.pth", images, process__name="linear", denoiser__label="index"
    )
    assert (set_by_user.config.process.name, set_by_user.config.denoiser.label) == ("linear", "index")


def test_what_is_assumed_is_told(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--config.moments.draws=6", "--config.moments.times=6", "--config.moments.implausible=True"]
    more = [
        "--config.sampling.samples=2",
        "--config.trajectory.steps=3",
        "--config.data.name=arrays",
        f"--config.data.file={images}",
    ]
    assert go(tmp_path, "any.py", "sample", FORMATS / "ema_0.9999_000010.pt", *few, *more) == 0
    told = capsys.readouterr().out
    assert (
        "does not say what it is; taken as process.name = cosine, denoiser.predicts = eps, denoiser.label = index"
        in told
    )
    assert "denoiser.time_shift = 1" in told and "network.num_heads = 4" in told


def test_a_file_of_ours_says_the_rest(tmp_path: Path) -> None:
    """By its header: the same denoiser as its own config has, without any word."""
    config, made = load_config("configs/any.py")
    made.table.set(config, {"network.pretrained": "pretrained/digits_ve.safetensors", "data.name": "digits"})
    found = Session.make(config, tmp_path / "any", made)
    own = Session.make(load_config("configs/digits_sde.py", "ve")[0], tmp_path / "own", house())
    x = torch.rand(2, 1, 8, 8)
    assert found.config.process.sigma_max == 10.0
    assert torch.equal(found.trunk.denoise(x, 0.5).x0, own.trunk.denoise(x, 0.5).x0)


# What the file says is held against the config


def schedule_file(path: Path, steps: int = 1000) -> Path:
    """A network within a class that keeps a cosine schedule."""
    process = cosine(steps)
    state = read_weights(FORMATS / "plain_iddpm_head.pth")
    squared = torch.as_tensor(process.alpha(process.times[1:]) ** 2).float()
    torch.save({**prefixed(state, "model."), "alphas_cumprod": squared}, path)
    return path


def test_a_schedule_in_the_file_is_taken_and_checked(tmp_path: Path, images: Path) -> None:
    file = schedule_file(tmp_path / "a.pt")
    made = session(tmp_path / "a", file, images)
    assert (made.config.process.name, made.config.process.steps) == ("cosine", 1000)
    with pytest.raises(
        UserError, match=r"hold a schedule of 1000 steps that ends at alpha\^2 = .*, and config\.process is"
    ):
        session(tmp_path / "b", file, images, process__name="linear")
    torch.save({**torch.load(file), "alphas_cumprod": torch.linspace(0.9, 0.01, 7)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="a schedule of 7 steps that is none of this project's; save its betas"):
        session(tmp_path / "c", tmp_path / "c.pt", images)


def test_noise_levels_and_label_of_ncsnpp_are_checked(tmp_path: Path, images: Path) -> None:
    state = read_weights(FORMATS / "score_sde_ve.pth")
    save_weights(tmp_path / "a.safetensors", {**state, "sigmas": state["sigmas"] * 0.4}, {})
    made = session(tmp_path / "a", tmp_path / "a.safetensors", images)
    assert made.config.process.sigma_max == pytest.approx(20.0)
    with pytest.raises(
        UserError, match=r"noise up to sigma = 20, but config\.process ends at 50; set config\.process\.sig"
    ):
        session(tmp_path / "b", tmp_path / "a.safetensors", images, process__sigma_max=50.0)
    with pytest.raises(UserError, match=r"which receives 'sigma' as time, but config\.denoiser\.label = 'index'"):
        session(tmp_path / "c", tmp_path / "a.safetensors", images, denoiser__label="index")


def test_another_network_names_the_config_that_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, made = load_config("configs/cifar10_sde.py", "vp")
    options = made.table.options(config.to_dict(), "network.name")
    with torch.device("meta"):
        sizes = made.families["network"]["score_sde"].build((3, 32, 32), **options).state_dict()
    torch.save({name: torch.zeros(1).expand(t.shape) for name, t in sizes.items()}, tmp_path / "full.pth")
    assert go(tmp_path / "run", "patches.py", "sample", tmp_path / "full.pth") == 2
    told = one_sentence(capsys)
    assert "a score_sde VP network, 4 blocks, width 128 (1, 2, 2, 2), attention at level 1, 3 channels" in told
    assert "network.name: score_sde there, iddpm now" in told and "configs/cifar10_sde.py:vp" in told
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["--config.network.model_channels=64"], "network.model_channels: 32 there, 64 now"),
        (["--config.network.channel_mult=(1,2)"], "network.channel_mult: [1] there, [1, 2] now"),
        (["--config.network.num_res_blocks=2"], "network.num_res_blocks: 1 there, 2 now"),
        (["--config.network.scale_shift=False"], "network.scale_shift: True there, False now"),
        (["--config.network.learned_variance=True"], "network.learned_variance: False there, True now"),
        ([], "network.head: 'simple' there, 'none' now"),
        (["--config.data.name=digits"], "images of 3 channels there, 1 now"),
    ],
)
def test_every_difference_is_named(tmp_path: Path, capsys: Any, fields: list[str], told: str) -> None:
    right = {"channel_mult": "(1,)", "attention_downsample": "(1,)"}
    given = {f"--config.network.{name}": value for name, value in right.items()} | dict(f.split("=") for f in fields)
    flags = [f"{name}={value}" for name, value in given.items()]
    assert go(tmp_path, "patches.py", "sample", FORMATS / "plain_iddpm_head.pth", *flags) == 2
    said = one_sentence(capsys)
    assert told in said and "a simple head" in said and "--config=configs/any.py builds it" in said


def test_what_any_cannot_build_is_said(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = arrays(images)
    assert go(tmp_path, "any.py", "sample", "", *data) == 2
    assert "config.network.pretrained holds; name a file" in one_sentence(capsys)
    assert go(tmp_path, "any.py", "sample", tmp_path / "no.pth", *data) == 2
    assert f"name a file ('{tmp_path / 'no.pth'}' does not exist)" in one_sentence(capsys)
    assert go(tmp_path, "any.py", "sample", FORMATS / "plain_sde.pth") == 2
    assert "data.folder" in one_sentence(capsys)
    assert go(tmp_path, "any.py", "sample", FORMATS / "plain_sde.pth", "--config.data.name=digits") == 2
    assert "are of images of 3 channels, but data set 'digits' has 1" in one_sentence(capsys)
    assert go(tmp_path, "any.py", "sample", "pretrained/digits_classifier.safetensors", *data) == 2
    assert "are of no network that is known here (their names: " in one_sentence(capsys)
    assert go(tmp_path, "any.py", "sample", FORMATS / "ms_eps_numpy1.pth", *data) == 2
    assert "it holds mean squares for 1000 steps" in one_sentence(capsys)
    assert not list(tmp_path.iterdir())


def test_a_family_that_is_not_here_is_said() -> None:
    state = read_weights(FORMATS / "plain_iddpm_head.pth")
    found = Recognised(Path("x"), "", Checkpoint(state), shape_of(state))
    with pytest.raises(UserError, match="are of an Improved DDPM network, .* which no family here runs"):
        require_usable(found, {})


@pytest.mark.parametrize("change", ["renamed", "missing", "half"])
def test_decoys_are_refused_in_a_sentence(tmp_path: Path, images: Path, capsys: Any, change: str) -> None:
    state, path = read_weights(FORMATS / "plain_sde.pth"), tmp_path / "a.pth"
    bias = state.pop("all_modules.4.NIN_0.b")
    state |= {"all_modules.4.NIN_0.bias": bias} if change == "renamed" else {}
    torch.save(state, path)
    if change == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert go(tmp_path / "run", "any.py", "sample", path, *arrays(images)) == 2
    wanted = {"renamed": "left over: all_modules.4.NIN_0.bias", "half": "is not a whole checkpoint"}
    assert wanted.get(change, "1 missing: all_modules.4.NIN_0.b)") in one_sentence(capsys)


# Modes


def test_inspect_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path, "toy.py", "inspect", FORMATS / "score_sde_ve.pth") == 0
    told = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    told = {what: text.strip() for what, text in told.items()}
    assert told["layout"] == "a training file of score_sde: optimizer, model, ema, step"
    assert told["weights"] == "an average over training (EMA), stored beside the raw weights"
    assert told["network"] == "a score_sde VE network, 1 block, width 8 (1, 2), attention at level 0, 3 channels"
    assert (told["head"], told["missing"], told["says"]) == (
        "none",
        "nothing",
        "sigma from 0.01 to 50, label = sigma",
    )
    assert told["unsaid"].endswith("have it: process = ve, t_min = 1e-05, predicts = score, low = 0.0")
    state = read_weights(FORMATS / "score_sde_ve.pth")
    assert (
        told["parameters"] == f"{sum(t.numel() for n, t in state.items() if n != 'sigmas'):,} in {len(state)} tensors"
    )
    assert not list(tmp_path.iterdir())


def test_inspect_names_config_and_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path, "any.py", "inspect", "pretrained/digits_vp.safetensors") == 0
    told = capsys.readouterr().out
    assert (
        "it is the network of configs/digits_sde.py:vp" in told
        and "by the config in its header, 8000 iterations" in told
    )


def test_inspect_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = read_weights(FORMATS / "plain_iddpm_head.pth")
    del state["out2.2.bias"]
    torch.save(state, tmp_path / "a.pth")
    assert go(tmp_path, "any.py", "inspect", tmp_path / "a.pth") == 0
    assert "missing:     1 missing: out2.2.bias\n" in capsys.readouterr().out
    assert go(tmp_path, "any.py", "convert", tmp_path / "a.pth") == 2
    assert "(1 missing: out2.2.bias); nothing was written" in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert go(tmp_path, "any.py", "inspect", FORMATS / "ms_eps_numpy1.pth") == 0
    assert "it holds mean squares for 1000 steps; name such a file in config.moments.ms_eps" in capsys.readouterr().out
    for config, file, said in (
        ("toy.py", "", "is empty"),
        ("toy.py", "no.pth", "does not exist"),
        ("compare_toy.py", "", "grid"),
    ):
        assert go(tmp_path, config, "inspect", file) == 2
        assert said in one_sentence(capsys)


def test_convert_there_and_back(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """score_sde's file -> ours -> Extended-Analytic-DPM's: the same weights, and ours is used by the workdir's runs."""
    file, back = FORMATS / "score_sde_vp.pth", tmp_path / "back"
    assert go(tmp_path, "any.py", "convert", file) == 0
    ours = tmp_path / "weights.safetensors"
    assert "1 block, width 8 (1, 2)" in capsys.readouterr().out
    told = json.loads(ours.with_suffix(".json").read_text())
    assert told["source"] == file.name and "EMA" in told["chosen"] and told["network"]["name"] == "score_sde"
    assert go(back, "any.py", "convert", ours, "--config.network.save_as=state_dict") == 0
    published, found = read_weights(file), torch.load(back / "model.pth", weights_only=True)
    assert found.keys() == published.keys() and all(torch.equal(found[n], published[n]) for n in published)
    assert session(tmp_path, file, images).trunk.source == str(ours)
    assert "process.name = vp" in session(tmp_path / "other", ours, images).trunk.assumed
    assert go(tmp_path, "any.py", "convert", file) == 2
    assert "weights.safetensors' is there already" in one_sentence(capsys)
    assert go(back, "any.py", "convert", file, "--config.network.save_as=diffusers") == 2
    assert "is for DDPM networks without a head" in one_sentence(capsys)
    assert go(back, "any.py", "convert", file, "--config.network.save_as=onnx") == 2
    assert "diffusers, ours, state_dict" in one_sentence(capsys)


def test_a_ddpm_network_goes_to_diffusers_and_back(tmp_path: Path) -> None:
    """UNet2DModel loads it without a missing or unexpected name, and computes with it."""
    diffusers = pytest.importorskip("diffusers")
    state = ddpm("ema/")
    shape = shape_of(state)
    assert shape is not None
    found = Recognised(tmp_path / "ddim.pth", "", Checkpoint(state, side=8), shape)
    folder = LAYOUTS["diffusers"].build(found, shape, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    published = golden_json("formats/ddpm_names")["config"]
    assert {k: v for k, v in config.items() if not k.startswith("_")} == {
        k: v for k, v in published.items() if k in config and not k.startswith("_")
    }
    assert deviations(config) == [] and config_of(shape) is not None
    stored, expected = load_file(folder / "diffusion_pytorch_model.safetensors"), from_ddpm(state, 1)
    assert stored.keys() == expected.keys() and all(torch.equal(stored[name], expected[name]) for name in expected)
    back = read_weights(folder)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    network, report = diffusers.UNet2DModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    golden_outputs = golden("formats/formats_golden")
    x, t, y = (torch.as_tensor(golden_outputs[f"ddim_list/{key}"]) for key in "xty")
    with torch.no_grad():
        found_y = network(x, t).sample
    assert (found_y - y).abs().max() < 1e-5 * y.abs().max()


def test_any_takes_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its first line says: a file and a folder, nothing else; larger images are brought to a size that is asked."""
    folder(tmp_path / "images", 12, 20, 24)
    few = ["--config.moments.draws=6", "--config.moments.times=6", "--config.moments.implausible=True"]
    more = ["--config.sampling.samples=2", "--config.trajectory.steps=3", f"--config.data.folder={tmp_path / 'images'}"]
    assert go(tmp_path / "run", "any.py", "sample", FORMATS / "plain_sde.pth", *few, *more) == 2
    assert "20x24" in one_sentence(capsys)
    assert go(tmp_path / "run", "any.py", "sample", FORMATS / "plain_sde.pth", *few, *more, "--config.data.size=8") == 0
    (samples,) = (tmp_path / "run" / "samples").glob("*/samples.npy")
    assert np.load(samples).shape == (2, 3, 8, 8)


def test_an_edm_pickle_from_file_to_samples(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspected, built by configs/any.py, converted; what computes otherwise is told and never run."""
    file = write(tmp_path / "vp.pkl", {"ema": VPPrecond(song(False), 8)})
    made = session(tmp_path / "any", file, images)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    whole = VPPrecond(song(False), 8)
    with torch.no_grad():
        y, found = whole.model(x, t), made.trunk.network(x, t)  # type: ignore[misc]
    assert (found - y).abs().max() < 1e-5 * y.abs().max()
    assert (made.config.process.name, made.config.denoiser.label) == ("vp", "time_999")
    assert go(tmp_path / "run", "any.py", "convert", file) == 0
    ours = read_weights(tmp_path / "run" / "weights.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in read_weights(file).items())
    other = write(tmp_path / "other.pkl", {"ema": iDDPMPrecond(song(False), 8)})
    assert go(tmp_path / "run", "any.py", "inspect", other) == 0
    assert "none of this project's: it is EDM's SongUNet within iDDPMPrecond" in capsys.readouterr().out
    assert go(tmp_path / "other", "any.py", "sample", other, *arrays(images)) == 2
    assert "fit no network of this project: it is EDM's SongUNet within iDDPMPrecond" in one_sentence(capsys)
    np.savez(tmp_path / "large.npz", images=np.zeros((60, 16, 16, 3), dtype=np.uint8))
    assert (
        go(
            tmp_path / "other",
            "any.py",
            "sample",
            file,
            "--config.data.name=arrays",
            f"--config.data.file={tmp_path / 'large.npz'}",
        )
        == 2
    )
    assert "are of images of 8x8, but data set 'arrays' has 16x16" in one_sentence(capsys)


def test_edm_s_own_networks_denoise_as_they_do(tmp_path: Path, images: Path) -> None:
    """D of EDMPrecond at any noise, from the file alone: on data divided by 0.5, F is -v of a VP process."""
    whole = EDMPrecond(song(False), 8)
    made = session(tmp_path / "any", write(tmp_path / "edm.pkl", {"ema": whole}), images, denoiser__clip=False)
    config, process = made.config, made.process
    assert (config.denoiser.predicts, config.denoiser.label) == ("edm", "edm")
    assert (config.data.low, config.data.high) == (-2.0, 2.0)
    for t in (1.6e-4, 0.01, 0.3, 1.0):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        y = 0.5 * torch.rand(2, 3, 8, 8) + 0.5 * sigma / alpha * torch.randn(2, 3, 8, 8)  # data + noise, in EDM's units
        with torch.no_grad():
            due, found = whole(y, 0.5 * sigma / alpha), made.trunk.denoise(2 * alpha * y, t)
        assert (0.5 * found.x0 - due).abs().max() < 1e-5 * max(1.0, float(due.abs().max()))
