"""A member of every family from a file outside the packages: its options are checked, keyed, documented and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config

FILE = '''
import numpy as np
import torch
from torch import nn

from adpm.families import Field, Kind
from adpm.gaussian import Diagonal
from adpm.nn.heads import Headed
from adpm.process import DiscreteProcess
from adpm.run.data import DataFacts, DataSet
from adpm.solver import ReverseGaussian, SolverFacts
from adpm.trajectory import TrajectoryFacts
from adpm.variance import PosteriorRule, RuleFacts
from configs import base, compare_base


class Scaled(PosteriorRule):
    """A share of what the data's variance allows."""

    def __init__(self, share, variance):
        self.share, self.own = share, variance

    def posterior(self, kernel, prediction):
        return Diagonal(self.share * self.own)


class Halved:
    """The reverse Gaussian with its noise times a factor."""

    def __init__(self, process, rule, eta, factor=1.0):
        self.inner, self.factor = ReverseGaussian(process, rule, eta), factor

    def step(self, denoise, x, t, s, noise, carry=None):
        return self.inner.step(denoise, x, t, s, lambda draw=0: self.factor * noise(draw), carry)


class Linear(Headed):
    """eps = a x + b: what a Gaussian wants at one time."""

    HEAD = ()

    def __init__(self, shape, bias=True):
        super().__init__()
        self.in_channels = shape[0]
        self.gain = nn.Conv2d(shape[0], shape[0], 1, bias=bias)

    def features(self, x, t):
        return x, t

    def mean_output(self, h, t):
        return self.gain(h)

    def head_output(self, h, emb, modules):
        raise AssertionError("there is no head")


def waves(count=64, low=-1.0, high=1.0):
    rng = np.random.default_rng(0)
    images = torch.as_tensor(rng.integers(0, 256, (count, 1, 4, 4)), dtype=torch.uint8)
    return DataSet("waves", {"train": images[: count // 2], "test": images[count // 2 :]}, 256, low, high, {})


def geometric(request, ratio=2.0):
    last, k = request.process.steps, request.steps
    inner = np.unique(np.round(np.geomspace(1, last, k)).astype(np.int64))
    return np.concatenate([[0], inner])


MEMBERS = {
    "rule": {
        "scaled": Kind(
            lambda needs, share=0.5: Scaled(share, needs.data_variance()),
            "a share of the data variance",
            RuleFacts(),
            {"share": Field(0.5, "of the data variance", low=0, high=1)},
        )
    },
    "solver": {
        "halved": Kind(
            Halved,
            "the reverse Gaussian with its noise times a factor",
            SolverFacts(uses_rule=True, uses_eta=True),
            {"factor": Field(1.0, "of the noise", above=0), "unused": Field(0, "a second option", given=False)},
            reads=("rule.name", "sampling.eta"),
        )
    },
    "trajectory": {
        "geometric": Kind(
            geometric, "even in log t", TrajectoryFacts(), {"ratio": Field(2.0, "of neighbours", above=1)}
        )
    },
    "process": {
        "constant": Kind(
            lambda steps=50, beta=0.2: DiscreteProcess(np.full(steps, beta)),
            "one beta for all steps",
            fields={"steps": Field(50, "N", low=2), "beta": Field(0.2, "of every step", above=0, below=1)},
        )
    },
    "network": {
        "pointwise": Kind(Linear, "a x + b", fields={"bias": Field(True, "whether there is a b")}),
    },
    "data": {
        "waves": Kind(
            waves,
            "64 random images",
            DataFacts(),
            {"count": Field(64, "images", low=4), "low": Field(-1.0, "low"), "high": Field(1.0, "high")},
        )
    },
}


def get_config(variant=""):
    if variant == "compare":
        config = compare_base.get_config()
        config.formulations.mine = compare_base.formulation(__file__)
        config.grid.rules = ("small", "scaled")
        config.grid.solvers = ("halved",)
        config.grid.trajectories = ("geometric",)
        config.grid.steps = (3,)
        config.grid.seeds = (0,)
        config.shown = 3
        config.distance.features = "pixels"
        config.distance.splits = ("test",)
        return config
    config = base.get_config()
    config.data.name = "waves"
    config.process.name = "constant"
    config.process.steps = 50
    config.network.name = "pointwise"
    config.rule.name = "scaled"
    config.trajectory.name = "geometric"
    config.trajectory.steps = 5
    config.sampling.solver = "halved"
    return config
'''
FEW = (
    "--config.train.iterations=2",
    "--config.train.batch_size=8",
    "--config.train.warmup=0",
    "--config.moments.draws=8",
    "--config.moments.times=6",
    "--config.sampling.samples=4",
    "--config.likelihood.images=4",
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def go(file: Path, mode: str, *options: str) -> int:
    return run(["main.py", f"--config={file}", f"--mode={mode}", f"--workdir={file.parent / 'run'}", *options], MODES)


def keys(file: Path) -> set[str]:
    return {path.name for path in (file.parent / "run" / "samples").glob("*")}


def test_one_of_each_through_every_mode(file, capsys):
    for mode in ("train", "estimate", "sample", "likelihood"):
        assert go(file, mode, *FEW) == 0, capsys.readouterr().err
    (folder,) = (file.parent / "run" / "samples").glob("scaled-geometric-K5-eta1-*")
    protocol = json.loads((folder / "protocol.json").read_text())
    assert protocol["own"]["rule.share"] == 0.5 and protocol["own"]["sampling.factor"] == 1.0
    assert protocol["fields"]["process.beta"] == 0.2 and protocol["path"] == [0, 1, 3, 7, 19, 50]
    variance = np.load(folder / "steps.npz")["variance"]
    images = np.load(folder / "samples.npy")
    assert images.dtype == np.uint8 and images.shape == (4, 1, 4, 4) and (variance > 0).all()


def test_a_comparison_with_them_in_two_processes(file, capsys):
    assert go(file, "train", *FEW[:3], f"--workdir={file.parent / 'cmp' / 'mine'}") == 0
    few = [option for option in FEW if "train" not in option]
    argv = ["main.py", f"--config={file}:compare", "--mode=compare", f"--workdir={file.parent / 'cmp'}"]
    assert run([*argv, "--config.processes=2", *few], MODES) == 0, capsys.readouterr().err
    cells = (file.parent / "cmp" / "tables" / "cells.csv").read_text()
    assert "mine,scaled,geometric,halved,1.0,3" in cells
    assert "a share of the data variance" in (file.parent / "cmp" / "tables" / "verdict.md").read_text()


def test_their_options_are_checked_keyed_documented_and_refused_elsewhere(file, capsys):
    assert go(file, "train", *FEW) == 0
    assert go(file, "sample", *FEW) == 0
    first = keys(file)
    assert go(file, "sample", *FEW, "--config.rule.share=0.25") == 0
    assert len(keys(file) - first) == 1
    for option, told in (
        ("--config.rule.share=2", "config.rule.share = 2.0 must be a number of at least 0 and of at most 1."),
        ("--config.sampling.factor=0", "config.sampling.factor = 0.0 must be a number above 0."),
        ("--config.rule.shar=1", "--config.rule.shar is unknown (did you mean"),
    ):
        capsys.readouterr()
        assert go(file, "sample", *FEW, option) == 2
        assert told in capsys.readouterr().err
    assert go(file, "sample", *FEW, "--config.sampling.solver=reverse_gaussian", "--config.sampling.factor=2") == 2
    told = capsys.readouterr().err
    assert "config.sampling.factor = 2.0 does not go with config.sampling.solver = 'reverse_gaussian'" in told
    assert "it is an option of halved" in told
    assert go(file, "describe") == 0
    told = capsys.readouterr().out
    assert "factor = 1.0 (above 0) [halved]: of the noise" in told
    assert "scaled: a share of the data variance" in told


def test_names_that_are_taken_and_families_that_are_not_there(file, capsys):
    for old, new, told in (
        ('"rule": {\n        "scaled"', '"rule": {\n        "small"', "registered twice"),
        ('"rule": {\n', '"ruler": {\n', "are no families"),
    ):
        file.write_text(FILE.replace(old, new))
        assert go(file, "sample") == 2
        assert told in capsys.readouterr().err
    file.write_text(FILE)
    config, house = load_config(str(file))
    assert config.rule.share == 0.5 and house.added.keys() == {
        "rule",
        "solver",
        "trajectory",
        "process",
        "network",
        "data",
    }
