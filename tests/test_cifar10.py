"""CIFAR-10 in discrete time: the published networks, schedules and time labels, and what is said of missing files."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.nn.checkpoint import read_header
from adpm.run import cifar10
from adpm.run.assembly import Session
from adpm.run.cifar10 import ARCHIVE
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.data import DATA_SETS
from adpm.run.families import house
from tests.cifar_archive import archive
from tests.goldens import DATA, check_names, golden_json

ROOT = Path(__file__).parent.parent
CHECKPOINT = DATA / "formats" / "plain_iddpm_head.pth"
PARAMETERS = {
    "": ("iddpm_cifar10_eps", 52_542_979),
    "cs": ("iddpm_cifar10_eps", 52_542_979),
    "sn": ("iddpm_cifar10_head_simple", 52_546_694),
    "cs+npr": ("iddpm_cifar10_head_simple", 52_546_694),
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cifar") / "data"
    archive(folder)
    return folder


def session(workdir: Path, data: Path, variant: str) -> Session:
    config = load_config("configs/cifar10.py", variant)[0]
    config.data.folder = str(data)
    return Session.make(config, workdir, house(), trains=True)


def go(workdir: Path, data: Path, variant: str, mode: str, **overrides: object) -> int:
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    config = f"--config=configs/cifar10.py{':' * bool(variant)}{variant}"
    places = [f"--workdir={workdir}", f"--config.cache={workdir / 'cache'}", f"--config.data.folder={data}"]
    return run(["main.py", config, f"--mode={mode}", *places, *flags], MODES)


def small() -> dict[str, Any]:
    """What makes the config fit the small published checkpoint, and little work."""
    network = golden_json("formats/formats_manifest")["plain_iddpm_head"]["network"]
    return {
        "network__pretrained": CHECKPOINT,
        "network__model_channels": network["model_channels"],
        "network__channel_mult": f"({','.join(map(str, network['channel_mult']))},)",
        "network__num_res_blocks": network["num_res_blocks"],
        "network__attention_downsample": f"({','.join(map(str, network['attention_downsample_factors']))},)",
        "network__num_heads": network["num_heads"],
        "moments__draws": 6,
        "moments__times": 6,
        "sampling__samples": 2,
        "trajectory__steps": 3,
        "trajectory__name": "even",
    }


@pytest.mark.parametrize("variant", PARAMETERS)
def test_the_network_is_the_published_one(tmp_path, data, variant):
    """Names, shapes and number of parameters, key for key."""
    name, count = PARAMETERS[variant]
    table = golden_json("networks/tables")[name]
    with torch.device("meta"):
        network = session(tmp_path, data, variant).network()
    check_names(network.state_dict().items(), table)
    assert sum(p.numel() for p in network.parameters()) == count == table["parameters"]
    dropouts = {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {table["network"]["dropout"]} == {0.3}


@pytest.mark.parametrize(
    ("variant", "schedule"), [("", "linear_1000"), ("cs", "cosine_1000"), ("npr+cs", "cosine_1000")]
)
def test_the_schedule_is_the_published_one(tmp_path, data, schedules, variant, schedule):
    process = session(tmp_path, data, variant).process
    np.testing.assert_allclose(process.alpha(process.times) ** 2, schedules[f"{schedule}__cum_alphas"], rtol=1e-9)


class Recorder(nn.Module):
    """A network that remembers its time labels."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[float] = []

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.labels += label.tolist()
        return torch.zeros_like(x)


def test_the_network_counts_steps_from_one(tmp_path, data):
    s, network = session(tmp_path, data, ""), Recorder()
    denoise = s.denoiser(network, clip=True)
    for n in (1, 2, 1000):
        denoise(torch.zeros(1, 3, 32, 32), n)
    assert network.labels == [1.0, 2.0, 1000.0] and s.process.times[-1] == 1000


@pytest.mark.parametrize("variant", ["npr", "cs+sn"])
def test_a_published_file_brings_its_head(tmp_path, data, variant, capsys):
    """Extended-Analytic-DPM's layout (random weights, small): trunk and head, which the variant says the rule of."""
    assert go(tmp_path, data, variant, "sample", **small()) == 0
    told = capsys.readouterr().out
    assert "3 network calls each, " in told and f"({CHECKPOINT})" in told
    (folder,) = (tmp_path / "samples").glob(f"{variant.split('+')[-1]}-*")
    assert np.load(folder / "samples.npy").shape == (2, 3, 32, 32)


def test_a_head_is_trained_on_the_published_trunk(tmp_path, data):
    few = {"train__iterations": 2, "train__batch_size": 4}
    assert go(tmp_path, data, "npr", "train", **small(), **few) == 0
    header = read_header(tmp_path / "head.safetensors")
    assert header["objective"] == "npr" and header["config"]["train"]["trunk_dropout"]
    published = read_weights(CHECKPOINT)
    assert set(read_weights(tmp_path / "head.safetensors")) == {name for name in published if name.startswith("out2.")}


def one_sentence(capsys) -> str:
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_a_missing_archive_and_missing_weights_say_what_to_do(tmp_path, data, capsys):
    assert go(tmp_path / "run", tmp_path / "nowhere", "cs+npr", "sample") == 2
    told = one_sentence(capsys)
    assert ARCHIVE in told and str(tmp_path / "nowhere") in told and "--config.data.download=True" in told
    assert go(tmp_path / "run", data, "", "sample") == 2
    told = one_sentence(capsys)
    assert str(tmp_path / "run" / "weights.safetensors") in told and "--mode=train" in told


def test_a_checkpoint_without_a_head_is_told(tmp_path, data, capsys):
    backbone = {name: value for name, value in read_weights(CHECKPOINT).items() if not name.startswith("out2.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    fields = {**small(), "network__pretrained": tmp_path / "backbone.pth"}
    assert go(tmp_path / "run", data, "npr", "sample", **fields) == 2
    told = one_sentence(capsys)
    assert "no trained head was found" in told and f"'{tmp_path / 'backbone.pth'}' holds none" in told


def test_cifar10_may_be_unpacked(tmp_path):
    archive(tmp_path / "packed")
    with tarfile.open(tmp_path / "packed" / cifar10.ARCHIVE) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    expected, labels = cifar10.read(tmp_path / "packed", False)
    for place in (tmp_path / "unpacked", tmp_path / "unpacked" / cifar10.UNPACKED):
        assert cifar10.missing(place, False) == ""
        found, of_found = cifar10.read(place, False)
        assert all(torch.equal(found[s], expected[s]) and torch.equal(of_found[s], labels[s]) for s in expected)
    (tmp_path / "unpacked" / cifar10.UNPACKED / "data_batch_3").unlink()
    assert "lacks data_batch_3 of CIFAR-10" in cifar10.missing(tmp_path / "unpacked", False)


def test_another_archive_than_the_published_is_told_where_asked(tmp_path, data, capsys):
    assert cifar10.missing(data, False) == ""
    assert go(tmp_path / "run", data, "", "train", data__verify=True) == 2
    told = one_sentence(capsys)
    assert "is not the published archive: its SHA-256 is" in told and cifar10.SHA256 in told


def test_cifar10_is_not_read_for_its_shape(tmp_path):
    archive(tmp_path / "data")
    (tmp_path / "data" / cifar10.ARCHIVE).write_bytes(b"no archive")
    data = DATA_SETS["cifar10"].build(folder=str(tmp_path / "data"))
    assert data.shape == (3, 32, 32) and list(data.splits) == ["train", "test"] and "train" in data.labels
    with pytest.raises(UserError, match="is not the published CIFAR-10 archive"):
        data.split("train")
