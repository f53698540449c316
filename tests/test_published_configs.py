"""The configs of the published settings: every one runs on its data's format with its checkpoints' layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from adpm.errors import UserError
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.families import house
from tests.cifar_archive import archive
from tests.goldens import check_names, golden_json
from tests.pictures import imagenet, save, smooth

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def faces(root: Path) -> None:
    for i in range(6):
        save(root / "img_align_celeba" / f"{i:06d}.jpg", smooth(i, 218, 178), quality=95)
    (root / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg {2 * (i % 2)}\n" for i in range(6)))


def scenes(root: Path) -> None:
    for i in range(5):
        save(root / f"{i}.webp", smooth(i, 256, 300))


DATA: dict[str, Callable[[Path], object]] = {
    "cifar10": archive,
    "cifar10_sde": archive,
    "celeba64": faces,
    "imagenet64": lambda root: imagenet(root, images=2),
    "lsun_bedroom": scenes,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Tiny data sets in their published formats, by config."""
    root = tmp_path_factory.mktemp("published")
    for name, write in DATA.items():
        write(root / name)
    return root


def bare(state: dict[str, torch.Tensor]) -> object:
    """The layout of Extended-Analytic-DPM, DDIM and the ports of DDPM."""
    return state


def analytic_dpm(state: dict[str, torch.Tensor]) -> object:
    """Analytic-DPM's training file of CIFAR10."""
    inner = {"eps_model": state}
    return {"it": 1, "models_states": {"eps_model": {k: v + 1 for k, v in state.items()}}, "ema_models_states": inner}


def improved(state: dict[str, torch.Tensor]) -> object:
    """Improved DDPM's EMA file."""
    return {name: nn.Parameter(value) for name, value in state.items()}


def score_sde(state: dict[str, torch.Tensor]) -> object:
    """score_sde's: an average without names, of the parameters alone."""
    shadow = [value for name, value in state.items() if name != "sigmas"]
    model = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
    ema = {"decay": 0.9999, "num_updates": 1, "shadow_params": shadow}
    return {"optimizer": {"state": {}, "param_groups": []}, "model": model, "ema": ema, "step": 1}


ROWS: dict[tuple[str, str], Callable[[dict[str, torch.Tensor]], object]] = {
    ("cifar10", ""): analytic_dpm,
    ("cifar10", "cs+npr"): bare,
    ("cifar10_sde", "vp+discrete"): score_sde,
    ("cifar10_sde", "vp_sn+discrete"): bare,
    ("celeba64", ""): bare,
    ("celeba64", "sn"): bare,
    ("imagenet64", ""): improved,
    ("imagenet64", "npr"): bare,
    ("lsun_bedroom", "sn"): bare,
}

WIDTH = 8


def random_checkpoint(place: Path, name: str, variant: str, root: Path) -> Path:
    """A file of the real layout: the config's own network, narrower, every parameter random."""
    config = load_config(f"configs/{name}.py", variant)[0]
    config.data.folder, config.network.model_channels = str(root / name), WIDTH
    network = Session.make(config, place / "build", house(), trains=True).network()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            wide = p[0].numel() if p.dim() > 1 else 100
            p.add_(torch.randn(p.shape, generator=generator) / wide**0.5)
    path = place / "checkpoint.pth"
    torch.save(ROWS[name, variant](network.state_dict()), path)
    return path


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_estimate_sample_and_likelihood(tmp_path, data, capsys, name, variant):
    """One command each, from the file to the published setting."""
    file = random_checkpoint(tmp_path, name, variant, data)
    few = {
        "data.folder": data / name,
        "network.pretrained": file,
        "network.model_channels": WIDTH,
        "moments.implausible": True,  # no noise is as good as what random weights predict
        "moments.draws": 6,
        "moments.times": 4,
        "moments.batch_size": 6,
        "trajectory.steps": 3,
        "sampling.samples": 2,
        "likelihood.images": 2,
    }
    if "sn" not in variant and "npr" not in variant:
        few["rule.estimator"] = "gamma"
    flags = [f"--config.{field}={value}" for field, value in few.items()]
    places = [f"--workdir={tmp_path / 'run'}", f"--config.cache={tmp_path / 'cache'}"]
    shape = (2, 3, *[{"cifar10": 32, "cifar10_sde": 32, "lsun_bedroom": 256}.get(name, 64)] * 2)
    for mode, preset in (("estimate", ""), ("sample", "published_ddim"), ("likelihood", "published_nll")):
        chosen = "+".join(filter(None, [variant, preset]))
        config = f"--config=configs/{name}.py{':' * bool(chosen)}{chosen}"
        assert run(["main.py", config, f"--mode={mode}", *places, *flags], MODES) == 0, capsys.readouterr().err
    (samples,) = (tmp_path / "run" / "samples").glob("*/samples.npy")
    assert np.load(samples).shape == shape
    assert "bits/dim" in capsys.readouterr().out


FULL = {
    ("celeba64", ""): "ddpm_celeba64",
    ("celeba64", "npr"): "ddpm_celeba64_head_simple",
    ("imagenet64", ""): "iddpm_imagenet64_out6",
    ("imagenet64", "sn"): "iddpm_imagenet64_head_complex",
    ("imagenet64", "npr"): "iddpm_imagenet64_head_simple",
    ("lsun_bedroom", ""): "ddpm_lsun256",
    ("lsun_bedroom", "sn"): "ddpm_lsun256_head_complex",
    ("lsun_bedroom", "npr"): "ddpm_lsun256_head_simple",
}


@pytest.mark.parametrize(("name", "variant"), FULL)
def test_the_network_is_the_published_one(tmp_path, data, name, variant):
    """Names, shapes and number of parameters, key for key."""
    config = load_config(f"configs/{name}.py", variant)[0]
    config.data.folder = str(data / name)
    with torch.device("meta"):
        network = Session.make(config, tmp_path, house(), trains=True).network()
    table = golden_json("networks/tables")[FULL[name, variant]]
    check_names(network.state_dict().items(), table)
    assert sum(p.numel() for p in network.parameters()) == table["parameters"]


class Recorder(nn.Module):
    """A network that remembers its time labels."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[float] = []

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.labels += label.tolist()
        return torch.zeros_like(x)


@pytest.mark.parametrize(("name", "labels"), [("celeba64", [0.0, 999.0]), ("imagenet64", [0.0, 999.75])])
def test_time_labels_count_from_zero(tmp_path, data, name, labels):
    config = load_config(f"configs/{name}.py", "")[0]
    config.data.folder = str(data / name)
    s, network = Session.make(config, tmp_path, house(), trains=True), Recorder()
    denoise = s.denoiser(network, clip=True)
    for n in (1, s.process.steps):
        denoise(torch.zeros(1, 3, 64, 64), n)
    assert network.labels == labels


def test_presets_are_the_published_settings():
    """`clip_pixel` is 2 for DDPM and 1 for DDIM, 1 for both on the cosine schedule; DDIM keeps the network's eps."""

    def drawn(name: str, variant: str) -> tuple[float, ...]:
        config = load_config(f"configs/{name}.py", variant)[0]
        return config.sampling.eta, config.rule.cap_levels, config.denoiser.eps_after_clip

    assert drawn("cifar10", "published_ddpm") == (1.0, 2.0, "rederive")
    assert drawn("cifar10", "npr+published_ddim") == (0.0, 1.0, "keep")
    assert drawn("cifar10", "cs+sn+published_ddpm") == (1.0, 1.0, "rederive")
    assert drawn("cifar10_sde", "vp_sn+discrete+published_ddpm") == (1.0, 2.0, "rederive")
    assert drawn("imagenet64", "published_ddpm") == (1.0, 1.0, "rederive")
    with pytest.raises(UserError, match="schedule of the published samples"):
        load_config("configs/cifar10_sde.py", "vp+published_ddpm")


def test_trainings_are_the_published_ones():
    """score_sde warms up and limits gradients; heads, on its trunk too, and the others do neither."""

    def trained(name: str, variant: str) -> tuple[float, ...]:
        train = load_config(f"configs/{name}.py", variant)[0].train
        return train.iterations, train.learning_rate, train.batch_size, train.warmup, train.grad_clip, train.ema_decay

    assert trained("cifar10_sde", "vp") == (950_000, 2e-4, 128, 5000, 1.0, 0.9999)
    assert trained("cifar10", "cs") == (500_000, 1e-4, 128, 0, 0.0, 0.9999)
    heads = [
        ("cifar10", "npr"),
        ("cifar10_sde", "vp_sn"),
        ("celeba64", "sn"),
        ("imagenet64", "npr"),
        ("lsun_bedroom", "sn"),
    ]
    assert {trained(*head) for head in heads} == {(500_000, 1e-4, 128, 0, 0.0, 0.9999)}


def rows() -> Iterator[tuple[str, str, list[str]]]:
    """(config, variant, flags) of the rows of docs/published.md."""
    config = ""
    for line in (ROOT / "docs" / "published.md").read_text().splitlines():
        config = (re.findall(r"`configs/(\w+)\.py[:`]", line) or [config])[0]
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 8 and re.fullmatch(r"[\d.]+", cells[-2]):
            told = [code for cell in cells for code in re.findall(r"`(.*?)`", cell) if not code.startswith("configs/")]
            flags = next((code.split() for code in told if code.startswith("--")), [])
            yield config, next((code for code in told if not code.startswith("--")), ""), flags


def test_every_row_of_the_page_can_be_asked_for(tmp_path, data):
    """Variant and flags make a config whose parts can be built, with no field set that does nothing."""
    found = list(rows())
    assert len(found) == 4 * 5 + 1 + 4 * 5 + 12 + 6
    for config_name, variant, flags in found:
        config, made = load_config(f"configs/{config_name}.py", variant)
        for field, value in (flag.removeprefix("--config.").split("=") for flag in flags):
            section, name = field.split(".")
            assert isinstance(config[section][name], str)
            config[section][name] = value
        config.data.folder, config.trajectory.steps, config.network.num_res_blocks = str(data / config_name), 10, 1
        with torch.device("meta"):
            Session.make(config, tmp_path, made, trains=True)
