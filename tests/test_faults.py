"""Inputs that once gave wrong figures without a word, each with what is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adpm.nn.checkpoint import save_weights
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.data import toy
from adpm.run.families import house
from adpm.run.measure import cost_table_for, moments_for
from adpm.run.weights import weights_header
from tests.commands import ROOT, SMALL, go, refused, the_file

HOUSE = house()
FEW = ("moments.draws=12", "moments.times=8")
TINY = {"denoiser.name": "network", "network.model_channels": 8, "network.num_heads": 1}
NETWORK = tuple(f"{name}={value}" for name, value in TINY.items())


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def session(folder: Path, config: str, trains: bool = False, **fields: Any) -> Session:
    """Of a config with fields "section__field=value"."""
    name, _, variant = config.partition(":")
    made, _ = load_config(f"configs/{name}.py", variant)
    HOUSE.table.update(made, {key.replace("__", "."): value for key, value in fields.items()})
    return Session.make(made, folder / "run", HOUSE, trains)


def put_weights(folder: Path, config: str, bias: float = 0.0, **fields: Any) -> None:
    """A small network's weights as if they had been trained in folder/run, with a bias of its output."""
    tiny = {name.replace(".", "__"): value for name, value in TINY.items()}
    made = session(folder, config, trains=True, **tiny, **fields)
    state = made.network().state_dict()
    state["out.2.bias"] = torch.full_like(state["out.2.bias"], bias)
    save_weights(folder / "run" / "weights.safetensors", state, weights_header(made.place, 1))


# Paths and processes


@pytest.mark.parametrize(("end", "value"), [("max", 4.0), ("max", 0.0), ("min", 0.0)])
def test_an_unset_end_is_the_processes_own_and_a_zero_is_a_zero(tmp_path: Path, end: str, value: float) -> None:
    """Samples of VE along such a path spread like the data, to what 20 steps of the rule leave."""
    fields = ("trajectory.name=log_snr", f"trajectory.log_snr_{end}={value}", "trajectory.steps=20", *SMALL[3:])
    assert go(tmp_path / "run", "toy_sde:ve", "sample", SMALL[0], *fields, "sampling.samples=200") == 0
    path = json.loads(the_file(tmp_path, "run/samples/*/protocol.json").read_text())["path"]
    process = session(tmp_path, "toy_sde:ve").process
    ends = process.log_snr(process.times[[path[1], path[-1]]])
    own = process.log_snr(process.times[[1, -1]])
    wanted = [value, own[1]] if end == "max" else [own[0], value]
    np.testing.assert_allclose(ends, wanted, atol=0.02)
    x = np.load(the_file(tmp_path, "run/samples/*/samples.npy"))
    truth = toy().truth
    assert truth is not None
    if value:
        assert 0.7 < x.reshape(200, -1).var(0).mean() / truth.variance() < 1.4


@pytest.mark.parametrize(("label", "code"), [("index", 2), ("time_999", 0)])
def test_what_a_label_depends_on_belongs_to_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: str, code: int
) -> None:
    """`index` is in units of 1000/N, so another N is another function; the time itself is not."""
    put_weights(tmp_path, "toy_sde:vp", denoiser__label=label)
    command = ("toy_sde:vp", "sample", *SMALL, *NETWORK, f"denoiser.label={label}")
    assert go(tmp_path / "run", *command) == 0
    capsys.readouterr()
    assert go(tmp_path / "run", *command, "process.steps=100") == code
    assert ("process.steps: 1000 there, 100 now" in capsys.readouterr().err) == bool(code)


INFINITE = {
    "sample": ("toy:unet", "sample", *SMALL),
    "estimate": ("toy:unet", "estimate", *FEW),
    "bound": ("toy:unet", "likelihood", *SMALL[:3], "likelihood.decoder=published"),
    "flow": ("toy_sde:vp", "likelihood", "likelihood.method=flow", "likelihood.images=4"),
    "head": ("toy:unet", "train", "network.head=simple", "train.objective=relative", "rule.name=relative", *FEW),
}


@pytest.mark.parametrize("use", INFINITE)
def test_numbers_that_are_not_finite_are_told_in_every_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], use: str
) -> None:
    """Clipping would make an image of infinity."""
    config, mode, *fields = INFINITE[use]
    put_weights(tmp_path, config, bias=float("inf"))
    told = refused(capsys, tmp_path / "run", config, mode, *NETWORK, "denoiser.clip=True", *fields)
    assert "the network returned numbers that are not finite at t = " in told


def test_betas_that_are_no_betas_are_told_what_they_look_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savetxt(tmp_path / "products.txt", np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))
    np.savetxt(tmp_path / "betas.txt", np.linspace(1e-4, 2e-2, 1000))
    custom = ("toy", "sample", *SMALL, "process.name=custom", "process.steps=0")
    told = refused(capsys, tmp_path / "run", *custom, f"process.betas_file={tmp_path / 'products.txt'}")
    assert "alpha_1 = 0.01, " in told and "these betas look like cumulative products" in told
    assert not (tmp_path / "run").exists()
    assert go(tmp_path / "run", *custom, f"process.betas_file={tmp_path / 'betas.txt'}") == 0


@pytest.mark.parametrize(
    ("config", "field", "told"),
    [
        ("digits", "network.attention_downsample=(16,8)", "has 16, but the levels of this network are 1, 2"),
        ("digits_sde:vp", "network.attention_resolutions=(5,)", "has 5, but the levels of this network are 8, 4"),
        ("digits", "data.low=1.0", "config.data.low = 1.0 and config.data.high = 1.0 must be finite, and low below"),
        ("digits", "data.low=2.0", "config.data.low = 2.0 and config.data.high = 1.0 must be finite, and low below"),
        ("digits", "data.high=inf", "config.data.high = inf must be a number that is finite"),
    ],
)
def test_values_that_select_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, field: str, told: str
) -> None:
    assert told in refused(capsys, tmp_path / "run", config, "sample", *SMALL, field)
    assert not list(tmp_path.iterdir())


# What nobody reads, and what keys hold


UNREAD = (
    "trajectory.data_term=False",
    "trajectory.cost=bound",
    "trajectory.budget=at_most",
    "trajectory.log_snr_max=3.0",
    "sampling.corrector_snr=0.2",
    "rule.bounds=False",
)


@pytest.mark.parametrize("field", UNREAD)
def test_a_field_that_nobody_reads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str) -> None:
    told = refused(capsys, tmp_path / "run", "toy", "sample", *SMALL, field)
    name, _, value = field.partition("=")
    assert f"config.{name} = " in told and value in told and "does not go with config." in told
    assert not list(tmp_path.iterdir())


def test_samples_are_named_by_what_they_depend_on(tmp_path: Path) -> None:
    """The path counts, not what it was called; an estimator that a decoder reads is none of the samples' business."""
    own = ("toy", "sample", "process.steps=30", "rule.name=small", "sampling.samples=2")
    for name, steps in (("even", 30), ("log_snr", 30), ("quadratic", 5)):
        assert go(tmp_path / "run", *own, f"trajectory.name={name}", f"trajectory.steps={steps}") == 0
    keys = {f.name.partition("-")[2].partition("-")[0]: f.name[-12:] for f in (tmp_path / "run/samples").iterdir()}
    assert keys["even"] == keys["log_snr"] != keys["quadratic"] and len(keys) == 3
    protocol = json.loads(the_file(tmp_path, "run/samples/*-even-*/protocol.json").read_text())
    assert not [name for name in protocol["own"] if name.startswith(("trajectory.", "likelihood.", "moments."))]
    even = ("trajectory.name=even", "trajectory.steps=30")
    assert go(tmp_path / "run", *own, *even, "rule.estimator=gamma", "likelihood.images=3") == 0
    assert len(list((tmp_path / "run/samples").iterdir())) == 3


@pytest.mark.parametrize("rule", ["small", "analytic"])
def test_a_table_is_named_alike_after_and_without_moments(tmp_path: Path, rule: str) -> None:
    fields = {"rule__name": rule, "process__steps": 25, "moments__draws": 6, "moments__times": 6}
    first, second = session(tmp_path, "toy", **fields), session(tmp_path / "run", "toy", **fields)
    moments_for(first)
    table = cost_table_for(first, data_term=False)
    second = second.again({"cache": str(tmp_path / "other")})
    np.testing.assert_array_equal(cost_table_for(second, data_term=False), table)
    assert the_file(tmp_path, "cache/costs-*").name == the_file(tmp_path, "other/costs-*").name


# Weights that do not say what they are


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits' weights without their header."""
    file = tmp_path_factory.mktemp("bare") / "bare.safetensors"
    save_file(load_file(ROOT / "pretrained" / "digits.safetensors"), file)
    return f"network.pretrained={file}"


@pytest.mark.parametrize("mode", ["sample", "estimate", "likelihood"])
def test_what_is_assumed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], bare: str, mode: str) -> None:
    more = SMALL[1:3] if mode != "estimate" else ()
    assert go(tmp_path / "run", "digits", mode, bare, *FEW, *more, "process.name=cosine", "likelihood.images=2") == 0
    told = capsys.readouterr().out
    assert told.count("does not say what it is; taken as process.name = cosine, denoiser.predicts = eps") == 1
    assert "denoiser.label = index" in told and "data.low = -1.0, data.high = 1.0" in told
    assert go(tmp_path / "own" / "run", "digits", mode, *FEW, *more, "likelihood.images=2") == 0
    assert "does not say" not in capsys.readouterr().out


def test_a_network_that_is_read_the_wrong_way_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bare: str
) -> None:
    """The residual of x_0 is above that of predicting no noise; what was said wrongly is among the fields named."""
    told = refused(capsys, tmp_path / "run", "digits", "estimate", *FEW, bare, "denoiser.predicts=x0")
    assert "above sigma^2/alpha^2" in told and "taken as process.name = linear, denoiser.predicts = x0" in told
    assert not list(tmp_path.glob("cache/*.npz")), "such moments are not kept"
    assert (
        go(tmp_path / "run", "digits", "estimate", *FEW, bare, "denoiser.predicts=x0", "moments.implausible=True") == 0
    )
    assert "mind that at t = " in capsys.readouterr().out


# One convention of bits/dim


def test_bits_per_dim_have_one_convention_and_the_other_figure_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("trajectory.name=even", "trajectory.steps=10", "likelihood.images=40", *FEW)
    results = {}
    for decoder in ("", "published"):
        more = (f"likelihood.decoder={decoder}",) if decoder else ()
        assert go(tmp_path / decoder / "run", "digits", "likelihood", *fields, *more) == 0
        results[decoder] = json.loads(the_file(tmp_path / decoder, "run/likelihood/*/result.json").read_text())
        beside = "the same path with decoder variance 'published': " in capsys.readouterr().out
        assert beside == (not decoder), "its own figure is not told twice"
    ours, published = results[""], results["published"]
    assert ours["decoder"] == "optimal" and ours["bits_per_dim"] < published["bits_per_dim"]
    assert ours["published_decoder"] == pytest.approx(published["bits_per_dim"], rel=1e-12)


def test_the_default_path_and_decoder_are_the_best_ones(tmp_path: Path) -> None:
    """Ten planned steps on digits: the README's 1.9 bits/dim of its first screen, not the 3.3 of another convention."""
    assert (
        go(tmp_path / "run", "digits", "likelihood", "trajectory.steps=10", "moments.draws=20", "likelihood.images=60")
        == 0
    )
    result = json.loads(the_file(tmp_path, "run/likelihood/*/result.json").read_text())
    assert 1.7 < result["bits_per_dim"] < 2.2
