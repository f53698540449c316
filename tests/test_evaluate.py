"""--mode=evaluate: a run's samples and folders of images against the data and published statistics, with a protocol."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adpm.formats import read_weights
from adpm.run import metrics
from adpm.run.data import toy
from adpm.run.distances import kernel_distance
from adpm.run.metrics import energy_distance, frechet
from tests.commands import ROOT, go, refused, the_file
from tests.pictures import folder, save, smooth
from tests.test_metrics import FakeInceptionV3, put_pytorch_fid

FEW = ("rule.name=small", "trajectory.name=even", "trajectory.steps=20", "sampling.samples=300")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def result(workdir: Path) -> dict:
    return json.loads(the_file(workdir / "evaluate", "*/result.json").read_text())


def flat(images: np.ndarray) -> np.ndarray:
    """Features of levels: the pixels in [-1, 1], channel by channel."""
    return (images.transpose(0, 3, 1, 2) / 127.5 - 1.0).reshape(len(images), -1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def test_samples_of_an_exact_denoiser_are_near_the_floor(tmp_path, capsys):
    assert go(tmp_path / "run", "toy", "evaluate", *FEW) == 0
    told, found = capsys.readouterr().out, result(tmp_path / "run")
    data = toy()
    file = the_file(tmp_path / "run" / "samples", "*/samples.npy")
    ours = data.to_unit(torch.from_numpy(np.load(file))) * 2 - 1
    real = data.to_unit(data.split("train")) * 2 - 1
    a, b = (x.flatten(1).double().numpy() for x in (ours, real))
    figures = found["figures"]
    assert figures["frechet"] == pytest.approx(distance(a, b), rel=1e-6)
    index = torch.randint(len(real), (300,), generator=torch.Generator().manual_seed(0)).numpy()
    assert figures["frechet_floor"] == pytest.approx(distance(b[index], b), rel=1e-6)
    assert figures["frechet"] < 10 * figures["frechet_floor"]
    assert figures["energy"] == pytest.approx(energy_distance(ours, real[_spread(8192, 5000)]), rel=1e-6)
    assert abs(figures["kernel"]) < 4 * figures["kernel_deviation"]
    assert found["protocol"]["features"].startswith("pixels (pixels, 16 numbers, weights ")
    for words in (
        "300 samples, 20 network calls each",
        "8,192 of 8,192 images of toy (train)",
        "resize: none",
        "seed: 0",
    ):
        assert words in told
    assert "Frechet distance: " in told and "(as many real images: " in told
    assert (tmp_path / "run" / "tensorboard" / "evaluate").is_dir()


FILE = "pretrained/digits.safetensors"


@pytest.mark.parametrize(
    ("config", "wrapper", "told"),
    [
        ("digits", "", f"{FILE} (ema)"),
        ("digits:npr", "", f"{FILE} (ema), head of pretrained/digits_npr.safetensors"),
        ("digits", "ema", "theirs.pt (an average over training (EMA), stored beside the raw weights)"),
        ("digits:npr", "model", "theirs.pt (one set of weights; nothing says whether they are an average), head of "),
    ],
)
def test_which_weights_the_samples_are_of_is_told(tmp_path, config, wrapper, told):
    """Of the trunk, with a head of its own or without, in files of ours and of others."""
    rule = () if ":" in config else ("rule.name=small",)
    fields = ["trajectory.name=even", "trajectory.steps=2", "sampling.samples=4", "evaluate.measures=frechet", *rule]
    if wrapper:
        torch.save({wrapper: read_weights(ROOT / FILE)}, tmp_path / "theirs.pt")
        fields.append(f"network.pretrained={tmp_path / 'theirs.pt'}")
    assert go(tmp_path / "run", config, "evaluate", *fields, "evaluate.images=50", "evaluate.floor=False") == 0
    assert told in result(tmp_path / "run")["protocol"]["weights"]


def _spread(total: int, count: int) -> np.ndarray:
    return ((np.arange(count) + 0.5) * total / count).astype(int)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A data set of 40 images with noise, and 30 others."""
    root, rng = tmp_path_factory.mktemp("worlds"), np.random.default_rng(0)
    out = {}
    for name, count, shift in (("data", 40, 0), ("others", 30, 20)):
        for i in range(count):
            noisy = smooth(i + shift, 4, 4) + rng.integers(-20, 20, (4, 4, 3))
            save(root / name / f"{i:03d}.png", noisy.clip(0, 255).astype(np.uint8))
        files = sorted((root / name).iterdir())
        out[name] = np.stack([np.asarray(Image.open(file)) for file in files])
    return root, out["data"], out["others"]


OF = ("data.name=folder", "data.held_out=8", "network.pretrained=")


def test_a_folder_against_the_data_needs_no_network(tmp_path, worlds):
    root, data, others = worlds
    base = (*OF, f"data.folder={root / 'data'}", "evaluate.features=pixels")
    assert go(tmp_path / "run", "digits", "evaluate", *base, f"evaluate.folder={root / 'others'}") == 0
    figures, protocol = result(tmp_path / "run").values()
    train = np.delete(data, _spread(40, 8), 0)
    assert figures["frechet"] == pytest.approx(distance(flat(others), flat(train)), rel=1e-5)
    ours, real = (torch.from_numpy(flat(x)) for x in (others, train))
    assert figures["energy"] == pytest.approx(energy_distance(ours, real), rel=1e-5)
    assert figures["kernel"] == pytest.approx(kernel_distance(flat(others), flat(train)), rel=0.2)
    assert protocol["count"] == 30 and protocol["reference"] == "32 of 32 images of folder (train)"
    both = (
        "evaluate.splits=('train','test')",
        "evaluate.images=10",
        "evaluate.measures=frechet",
        "evaluate.floor=False",
    )
    assert go(tmp_path / "few", "digits", "evaluate", *base, *both, f"evaluate.folder={root / 'others'}") == 0
    whole = np.concatenate([train, data[_spread(40, 8)]])[_spread(40, 10)]
    assert result(tmp_path / "few")["figures"] == {
        "frechet": pytest.approx(distance(flat(others), flat(whole)), rel=1e-5)
    }
    assert go(tmp_path / "same", "digits", "evaluate", *base, f"evaluate.folder={root / 'data'}") == 0
    assert result(tmp_path / "same")["figures"]["frechet"] < figures["frechet"] / 10


def test_a_folder_against_published_statistics_needs_no_data(tmp_path, worlds, capsys):
    root, data, others = worlds
    x = flat(data)
    np.savez(tmp_path / "stats.npz", mu=x.mean(0), sigma=np.cov(x.T))
    reference = (f"evaluate.reference={tmp_path / 'stats.npz'}", f"evaluate.folder={root / 'others'}")
    command = ("cifar10", "evaluate", "data.folder=nowhere", "evaluate.features=pixels", *reference)
    assert go(tmp_path / "run", *command, "evaluate.measures=frechet") == 0
    figures, protocol = result(tmp_path / "run").values()
    assert figures == {"frechet": pytest.approx(distance(flat(others), x), rel=1e-5)}
    assert protocol["reference"] == str(tmp_path / "stats.npz")
    told = refused(capsys, tmp_path / "run", *command)
    assert "kernel and energy need the reference's images" in told and "means and covariances only" in told


def test_fid_is_taken_as_pytorch_fid_takes_it(tmp_path, worlds, monkeypatch):
    """With a network in Inception's place: 2048 features of images in [0, 1], against a file of mu and sigma."""
    root, data, others = worlds
    put_pytorch_fid(monkeypatch, FakeInceptionV3)

    def features(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            unit = torch.from_numpy(images.transpose(0, 3, 1, 2)).float() / 255.0
            (found,) = FakeInceptionV3().eval()(unit)
        return found.flatten(1).double().numpy()

    mu, sigma = features(data).mean(0), np.cov(features(data).T)
    np.savez(tmp_path / "stats.npz", mu=mu, sigma=sigma)
    reference = (f"evaluate.reference={tmp_path / 'stats.npz'}", f"evaluate.folder={root / 'others'}")
    command = ("cifar10", "evaluate", "data.folder=nowhere", *reference, "evaluate.measures=frechet")
    assert go(tmp_path / "run", *command) == 0
    figures, protocol = result(tmp_path / "run").values()
    ours = features(others)
    assert figures["frechet"] == pytest.approx(frechet(ours.mean(0), np.cov(ours.T), mu, sigma), rel=1e-4)
    assert "pytorch-fid" in protocol["features"] and "299 x 299" in protocol["resize"]


def test_what_cannot_be_evaluated_is_told(tmp_path, worlds, capsys, monkeypatch):
    root, _, _ = worlds
    base = ("digits", "evaluate", *OF, f"data.folder={root / 'data'}")
    one = f"evaluate.folder={root / 'others'}"
    given = (one, "evaluate.measures=frechet", "evaluate.reference=stats.npz")
    folder(tmp_path / "large", 4)
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", None)
    for fields, told in (
        ((one, "evaluate.features=digits"), "config.evaluate.features = 'digits' is a classifier of images of shape"),
        ((one, "evaluate.features=inception"), "config.evaluate.features = 'inception' needs pytorch-fid"),
        ((one, "evaluate.features=pixel"), "config.evaluate.features = 'pixel' is unknown (did you mean 'pixels'?)"),
        ((one, "evaluate.measures=fid"), "config.evaluate.measures = 'fid' is unknown"),
        ((*given, "evaluate.splits=('test',)"), "config.evaluate.splits = ('test',) is about the data's images, and"),
        ((*given, "evaluate.images=9"), "config.evaluate.images = 9 is about the data's images, and"),
        ((*given, "evaluate.floor=False"), "config.evaluate.floor = False is about the data's images, and"),
        (("evaluate.workers=4",), "config.evaluate.workers = 4 does not go with config.evaluate.folder = ''."),
        ((one, "evaluate.splits=('valid',)"), "config.evaluate.splits = 'valid' is unknown; known: test, train"),
        ((f"evaluate.folder={tmp_path / 'gone'}",), "gone' does not exist"),
        ((f"evaluate.folder={tmp_path / 'large'}",), "has images of shape (3, 8, 8), and the data are (3, 4, 4)"),
        ((one, f"evaluate.reference={tmp_path / 'gone.npz'}", "evaluate.measures=frechet"), "gone.npz' does not exist"),
    ):
        assert told in refused(capsys, tmp_path / "run", *base, *fields)
    assert not (tmp_path / "run").exists()
    assert "needs config.data.folder" in refused(
        capsys, tmp_path / "run", "digits", "evaluate", one, "data.name=folder"
    )
    assert "grid of models to compare" in refused(capsys, tmp_path / "run", "compare_toy", "evaluate")


def test_every_kind_of_features_says_its_protocol():
    for kind in metrics.FEATURES.values():
        assert kind.facts.resize and kind.facts.of
