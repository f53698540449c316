"""Vectors from a file to samples: the perceptron, its head, and `configs/dalle2_prior.py` in a Gaussian world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adpm.errors import UserError
from adpm.nn import NETWORKS
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.data import DATA_SETS
from adpm.run.metrics import frechet
from adpm.run.vectors import read_vectors

DIM = 6
MEAN = np.linspace(-0.5, 0.5, DIM)
DEVIATION = np.geomspace(0.6, 0.35, DIM)
SMALL = ("--config.network.width=64", "--config.network.depth=2", "--config.data.low=-4", "--config.data.high=4")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.npz"
    draws = MEAN + DEVIATION * np.random.default_rng(0).standard_normal((6000, DIM))
    np.savez(path, vectors=draws.astype(np.float32))
    return path


def go(workdir: Path, file: Path, mode: str, *fields: str) -> int:
    places = [f"--workdir={workdir}", f"--config.cache={workdir / 'cache'}", f"--config.data.file={file}"]
    return run(["main.py", "--config=configs/dalle2_prior.py", f"--mode={mode}", *places, *SMALL, *fields], MODES)


def test_the_prior_learns_a_gaussian(tmp_path: Path, file: Path) -> None:
    """Trained for seconds, sampled in 64 analytic steps: mean and deviation of each coordinate are the data's."""
    few = ("--config.train.iterations=700", "--config.train.batch_size=128", "--config.train.sample_every=0")
    train = (*few, "--config.train.learning_rate=3e-3", "--config.train.warmup=20", "--config.train.ema_decay=0.98")
    assert go(tmp_path / "run", file, "train", *train) == 0
    few = ("--config.moments.times=30", "--config.moments.draws=300", "--config.sampling.samples=2000")
    assert go(tmp_path / "run", file, "sample", *few, "--config.sampling.batch_size=2000") == 0
    (found,) = (tmp_path / "run").glob("samples/*/samples.npy")
    samples = np.load(found).astype(np.float64).reshape(2000, DIM)
    assert np.abs(samples.mean(0) - MEAN).max() < 0.06
    assert np.abs(samples.std(0) / DEVIATION - 1.0).max() < 0.2
    assert go(tmp_path / "run", file, "evaluate", *few, "--config.sampling.batch_size=2000") == 0
    (told,) = (tmp_path / "run").glob("evaluate/*/result.json")
    train = np.load(file)["vectors"].astype(np.float64)[:4800]
    ours, real = ((x.mean(0) / 4.0, np.cov(x.T) / 16.0) for x in (samples, train))  # in units of their range, 4
    assert json.loads(told.read_text())["figures"]["frechet"] == pytest.approx(frechet(*ours, *real), rel=1e-4)


def test_what_is_read_is_what_was_written(file: Path, tmp_path: Path) -> None:
    wanted = np.load(file)["vectors"]
    np.save(tmp_path / "same.npy", wanted.astype(np.float64))
    for path in (file, tmp_path / "same.npy"):
        assert np.array_equal(read_vectors(path).numpy().reshape(-1, DIM), wanted)
    data = DATA_SETS["vectors"].build(file=str(file), held_out=1000, low=-4.0, high=4.0)
    assert data.shape == (1, 1, DIM) and data.levels == 0
    assert [len(data.split(name)) for name in ("train", "test")] == [5000, 1000]


def test_the_network_begins_as_nothing_and_sees_all_of_a_vector() -> None:
    """Every output depends on every entry, and on the time; the head is a readout of its own."""
    network = NETWORKS["mlp"].build((1, 1, DIM), width=32, depth=2, head="simple")
    x, t = torch.randn(3, 1, 1, DIM, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 30.0, 900.0])
    assert network(x, t).shape == (3, 2, 1, DIM) and not network(x, t).any()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.2)
    slope = torch.autograd.functional.jacobian(lambda x: network(x, t[:1]).flatten(), x[:1]).flatten(1)
    assert slope.shape == (2 * DIM, DIM) and slope.abs().min() > 0.0
    assert not torch.allclose(network(x[:1], t[:1]), network(x[:1], t[2:]))
    assert set(network.head().state_dict()) == {f"out2.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": np.zeros((9, 2))}, r"holds no vectors that can be read: it holds no array 'vectors'"),
        ({"vectors": np.zeros((9, 2), dtype=np.int64)}, r"floating-point numbers \[n, d\], not int64 \(9, 2\)"),
        ({"vectors": np.zeros(9)}, r"not float64 \(9,\)"),
        ({"vectors": np.full((9, 2), np.nan)}, r"some of its numbers are not finite"),
        ({"vectors": np.full((9, 2), 3.0)}, r"`low` = -1 and `high` = 1 must hold all vectors, .* are 3 to 3"),
        ({"vectors": np.zeros((1, 2))}, r"`held_out` = 0 leaves 1 of 1 vectors"),
    ],
)
def test_files_of_something_else_are_refused_in_words(tmp_path: Path, arrays: dict, told: str) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(UserError, match=told):
        DATA_SETS["vectors"].build(file=str(tmp_path / "wrong.npz"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 7}, "`width` = 7 must be an even number"),
        ({"depth": 0}, "`depth` = 0 must be at least 1"),
        ({"head": "complex"}, "`head` = 'complex' is unknown"),
    ],
)
def test_networks_that_are_none_are_refused(options: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        NETWORKS["mlp"].build((1, 1, 4), **options)
