"""Rules with a second output end to end: training options to rule, the measured plan, and what is refused in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adpm
from adpm.costs import measured_costs
from adpm.data_term import planning_images
from adpm.denoiser import Prediction
from adpm.errors import UserError
from adpm.formats import read_weights
from adpm.likelihood import keyed_noise, path_terms
from adpm.nn.checkpoint import read_header, save_weights
from adpm.planning import planner
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.measure import cost_table_for, variance_for
from adpm.run.modes.sample import in_pixels
from adpm.run.paths import path_for
from tests import commands

ROOT = Path(__file__).parent.parent
STEPS = 30
NETWORK = {
    "network.head": "simple",
    "network.model_channels": "8",
    "network.num_heads": "1",
    "process.steps": str(STEPS),
    "train.batch_size": "16",
    "train.iterations": "6",
    "train.sample_every": "0",
}
TRUNK = {"objective": "eps", "network__head": "none"}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def go(workdir: Path, mode: str, objective: str = "npr", **overrides: object) -> int:
    fields = NETWORK | {"train.objective": objective, "moments.draws": "12", "moments.times": "10"}
    fields |= {key.replace("__", "."): str(value) for key, value in overrides.items()}
    flags = [f"--config.{key}={value}" for key, value in fields.items()]
    places = [f"--workdir={workdir}", f"--config.cache={workdir / 'cache'}"]
    return run(["main.py", "--config=configs/toy.py:unet", f"--mode={mode}", *places, *flags], MODES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("npr")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert go(workdir, "train", **TRUNK) == 0
        assert go(workdir, "train", rule__name="npr") == 0
    return workdir


def copied(trained: Path, workdir: Path, head: bool = True) -> Path:
    for name in ("weights.safetensors", *(["head.safetensors"] if head else [])):
        (workdir / name).write_bytes((trained / name).read_bytes())
    return workdir


def session(workdir: Path, objective: str = "npr", **overrides: object) -> Session:
    config = load_config("configs/toy.py", "unet")[0]
    config.network.update(head="simple", model_channels=8, num_heads=1)
    config.process.steps, config.train.objective = STEPS, objective
    config.moments.update(draws=12, times=10)
    config.likelihood.batch_size = 8
    config.cache = str(workdir / "cache")
    for key, value in overrides.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    return Session.make(config, workdir, house())


@pytest.mark.parametrize("mode", ["sample", "likelihood"])
def test_modes_plan_on_the_rule_and_report(trained: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"sampling__samples": 3, "likelihood__images": 5, "trajectory__cost": "measured", "trajectory__steps": 4}
    assert go(trained, mode, rule__name="npr", rule__average=mode == "sample", **more) == 0
    told = capsys.readouterr().out
    assert "measuring the bound at all 30 times on 12 training images" in told and "planned 4 steps" in told
    folder = next((trained / {"sample": "samples", "likelihood": "likelihood"}[mode]).glob("npr-*"))
    protocol = json.loads((folder / "protocol.json").read_text())
    assert protocol["own"]["rule.name"] == protocol["head"]["objective"] == "npr" and len(protocol["path"]) == 5
    assert go(trained, mode, rule__name="npr", rule__average=mode == "sample", **more) == 0
    (again,) = (trained / {"sample": "samples", "likelihood": "likelihood"}[mode]).glob("npr-*")
    assert again == folder, "the plan of the kept table is the same"


def counted(s: Session, stop_after: int | None = None) -> list[float]:
    """The times at which the session's denoiser is called, which is interrupted after so many calls."""
    called: list[float] = []
    denoise = s.model.denoise

    def call(x: torch.Tensor, t: float) -> Prediction:
        if len(called) == stop_after:
            raise KeyboardInterrupt
        called.append(float(t))
        return denoise(x, t)

    s.__dict__["model"] = replace(s.model, denoise=call)
    return called


def test_a_killed_table_goes_on_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    copied(trained, tmp_path)
    whole = cost_table_for(session(trained, rule__name="npr"), data_term=False)
    first = session(tmp_path, rule__name="npr")
    called = counted(first, stop_after=11)
    with pytest.raises(KeyboardInterrupt):
        cost_table_for(first, data_term=False)
    assert called == [float(t) for t in range(1, 6) for _ in range(2)] + [6.0], "two batches of 8 and 4 images a time"
    second = session(tmp_path, rule__name="npr")
    called = counted(second)
    np.testing.assert_array_equal(cost_table_for(second, data_term=False), whole)
    assert called == [float(t) for t in range(6, 31) for _ in range(2)]


def test_the_table_is_the_bound_of_the_same_draws(trained: Path) -> None:
    """192 elements in two batches are not grouped, so a plan costs what walking it costs."""
    s = session(trained, rule__name="npr", likelihood__decoder="published")
    costs = measured_costs(cost_table_for(s, data_term=True))
    plan = planner(costs, 6).plan(6)
    rule, decoder = s.rule(variance_for(s), s.process.times[:2]), s.decoder(variance_for(s))
    total = 0.0
    with torch.inference_mode():
        for numbers in planning_images(len(s.data.split("train")), 12, s.config.seed).split(8):
            x0, times = s.images("train")(numbers).double(), s.process.times[plan.path]
            noise = keyed_noise(s.config.seed, s.process, numbers, s.data.shape, x0.dtype, "table")
            terms = path_terms(s.model.denoise, s.process, rule, decoder, s.levels, times, x0, noise)
            total += sum(float(term.nats.sum()) for term in terms)
    assert plan.raw == pytest.approx(total / 12 / 16, rel=1e-6)  # the network works in float32


def measured(workdir: Path, rule: str = "relative", data_term: bool = False, **changes: object) -> set[str]:
    """The tables there are after one more has been measured with the workdir's head."""
    made = session(workdir, rule__name=rule, objective=rule, **changes)
    cost_table_for(made, data_term)
    return {path.name for path in (workdir / "cache").glob("costs-*.npz")}


def change_head(workdir: Path, shift: float = 0.0, estimator: str = "residual") -> None:
    """The head with its last bias shifted, and a header that says that it was trained with the estimator."""
    file = workdir / "head.safetensors"
    weights, header = read_weights(file), read_header(file)
    bias = [key for key in weights if key.endswith("bias")][-1]
    header["config"]["rule"]["estimator"] = estimator
    save_weights(file, weights | {bias: weights[bias] + shift}, header)


@pytest.fixture(scope="module")
def relative(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = copied(trained, tmp_path_factory.mktemp("relative"), head=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert go(workdir, "train", "relative", rule__name="relative") == 0
    return workdir


@pytest.mark.parametrize(
    "change",
    [
        {"rule__bounds": False},
        {"sampling__eta": 0.5},
        {"data_term": True},
        {"likelihood__decoder": "published", "data_term": True},
        {"rule__estimator": "gamma"},
        {"head": 0.1},
    ],
    ids=str,
)
def test_tables_of_different_protocols_do_not_mix(relative: Path, tmp_path: Path, change: dict[str, object]) -> None:
    copied(relative, tmp_path)
    base = {"data_term": True} if "likelihood__decoder" in change else {}
    before = measured(tmp_path, **base)
    assert len(before) == 1 and measured(tmp_path, **base) == before
    change_head(tmp_path, change.get("head", 0.0), change.get("rule__estimator", "residual"))
    assert len(measured(tmp_path, **{key: value for key, value in change.items() if key != "head"}) - before) == 1


@pytest.mark.parametrize("change", [{"moments__draws": 11}, {"seed": 1}], ids=str)
def test_tables_on_other_images_do_not_mix(trained: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """A rule without moments, whose name would tell them apart."""
    copied(trained, tmp_path)
    before = measured(tmp_path, "npr")
    assert len(measured(tmp_path, "npr", **change) - before) == 1


def test_tables_without_the_data_term_have_no_decoder(relative: Path, tmp_path: Path) -> None:
    copied(relative, tmp_path)
    assert measured(tmp_path) == measured(tmp_path, likelihood__decoder="published")


MEASURED = {"rule__name": "npr", "trajectory__cost": "measured"}
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "no head": ({"rule__name": "npr", "network__head": "none"}, "there is no network with a second output"),
    "other head": ({"rule__name": "sn"}, "config.train.objective = 'sn', got 'npr' (head '"),
    "own variance, head": (
        {"rule__name": "learned", "objective": "hybrid", "network__learned_variance": True},
        "config.train.objective = 'hybrid' is about the network's own second output",
    ),
    "average": ({"rule__average": True}, "config.rule.average = True does not go with config.rule.name = 'analytic'"),
    "scalar cost": (
        {"rule__name": "npr", "trajectory__cost": "bound"},
        "config.trajectory.cost = 'bound' needs one variance per step, and config.rule.name = 'npr' depends",
    ),
    "no bound": ({**MEASURED, "sampling__eta": 0.0}, "no finite bound to plan on at config.sampling.eta = 0"),
    "eps kept": ({**MEASURED, "denoiser__clip": True, "denoiser__eps_after_clip": "keep"}, "eps re-derived from"),
    "learned eta": (
        {
            "rule__name": "learned",
            "objective": "hybrid",
            "sampling__eta": 0.5,
            "network__head": "none",
            "network__learned_variance": True,
        },
        "config.rule.name = 'learned' goes with config.sampling.eta = 1 only",
    ),
    "exact denoiser": ({"rule__name": "npr", "denoiser__name": "ideal"}, "there is no network with a second output"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_words(trained: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides, message = REFUSED[name]
    assert go(trained, "sample", trajectory__steps=4, **overrides) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("data_term", "steps", "refused"), [(True, 1, True), (False, 2, True), (False, 1, False)])
def test_a_cap_that_depends_on_the_path_is_not_priced(
    tmp_path: Path, data_term: bool, steps: int, refused: bool
) -> None:
    config = load_config("configs/digits.py")[0]
    config.rule.update(name="small", cap_levels=1.0, cap_steps=steps)
    config.trajectory.update(cost="bound", data_term=data_term, steps=4)
    config.moments.update(draws=6, times=4)
    config.cache = str(tmp_path / "cache")
    s = Session.make(config, tmp_path, house())
    if refused:
        with pytest.raises(UserError, match="caps the last steps of a whole path"):
            path_for(s)
        assert not list(tmp_path.glob("cache/*"))
    else:
        assert len(path_for(s).times) == 5


def test_sampling_says_when_variances_are_negative(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head at -1 makes negative variances, which bounds cut at 0 and which are told without bounds."""
    copied(trained, tmp_path)
    name, weights = "head.safetensors", read_weights(trained / "head.safetensors")
    bias = [key for key in weights if key.endswith("bias")][-1]
    save_weights(tmp_path / name, weights | {bias: weights[bias] - 1.0}, read_header(trained / name))
    more = {"rule__name": "npr", "trajectory__name": "even", "trajectory__steps": 4, "sampling__eta": 0.0}
    assert go(tmp_path, "sample", sampling__samples=3, rule__bounds=False, **more) == 2
    told = capsys.readouterr().err
    assert "the variance rule gives values down to -" in told and "set config.rule.bounds = True" in told
    assert go(tmp_path, "sample", sampling__samples=3, **more) == 0
    assert "bounds acted in" in capsys.readouterr().out


def test_samples_show_where_the_model_is_unsure(trained: Path) -> None:
    """The picture's standard deviations are those of the steps; a rule that is the same everywhere has none."""
    more = {"rule__name": "npr", "trajectory__name": "even", "trajectory__steps": 5, "sampling__samples": 4}
    assert go(trained, "sample", **more) == 0
    (folder,) = trained.glob("samples/npr-even-K5-*")
    assert (folder / "deviation.png").exists() and not (folder / "pixel_deviation.png").exists()
    with np.load(folder / "steps.npz") as batch:
        deviation, variance = batch["deviation"], batch["variance"]
    assert deviation.shape == (4, 5, 1, 4, 4)
    np.testing.assert_allclose((deviation.astype(np.float64) ** 2).mean((0, 2, 3, 4)), variance, rtol=1e-5)
    assert go(trained, "sample", **{**more, "rule__name": "analytic"}) == 0
    assert not list(trained.glob("samples/analytic-even-K5-*/deviation.png"))


def test_a_loaded_head_brings_its_own_units(tmp_path: Path) -> None:
    """In Python as by the mode: other moments, or none, change nothing of a spectral head's samples."""
    changes = ("trajectory.name=even", "trajectory.steps=3", "sampling.samples=4")
    assert commands.go(tmp_path, "digits:spectral", "sample", *changes) == 0
    model = adpm.load("configs/digits.py:spectral", workdir=tmp_path / "own")
    few = model.measure(draws=12, times=6, basis="dct")
    plans = [model.plan(moments, steps=3, trajectory="even") for moments in (few, None)]
    drawn = [model.sample(plan, "spectral_head", n=4) for plan in plans]
    assert torch.equal(*drawn)
    (file,) = tmp_path.glob("samples/spectral_head-even-K3-*/samples.npy")
    np.testing.assert_allclose(drawn[0], np.load(file) / 127.5 - 1.0, rtol=0, atol=0.51 / 127.5)


def test_deviations_in_a_basis_are_shown_in_pixels_too(tmp_path: Path) -> None:
    """Two pictures of one covariance: another diagonal, the same trace."""
    changes = ("trajectory.name=even", "trajectory.steps=3", "sampling.samples=4")
    assert commands.go(tmp_path, "digits:spectral", "sample", *changes) == 0
    (folder,) = (tmp_path / "samples").glob("spectral_head-even-K3-*")
    assert (folder / "deviation.png").exists() and (folder / "pixel_deviation.png").exists()
    with np.load(folder / "steps.npz") as batch:
        axes = torch.as_tensor(batch["deviation"])
    scale = adpm.load("configs/digits.py:spectral", workdir=tmp_path / "own").scale
    assert scale is not None
    pixels = in_pixels(axes, scale.basis)
    traces = (values.double().square().mean((2, 3, 4)) for values in (pixels, axes))
    torch.testing.assert_close(*traces, rtol=1e-5, atol=0)
    assert (pixels / axes - 1.0).abs().max() > 0.1


def test_a_head_is_trained_on_a_trunk_with_a_learned_variance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head takes the place of Improved DDPM's second output; without a head that one is there as before."""
    learned = {"network__learned_variance": True}
    assert go(tmp_path, "train", "hybrid", network__head="none", **learned) == 0
    assert go(tmp_path, "train", "sn", rule__name="sn", **learned) == 0
    more = {"trajectory__name": "even", "trajectory__steps": 4, "sampling__samples": 2, **learned}
    assert go(tmp_path, "sample", "sn", rule__name="sn", **more) == 0
    assert go(tmp_path, "sample", "hybrid", rule__name="learned", network__head="none", **more) == 0
    assert {path.name.partition("-")[0] for path in (tmp_path / "samples").iterdir()} == {"sn", "learned"}
    capsys.readouterr()
    assert go(tmp_path, "sample", "sn", rule__name="learned", **more) == 2
    assert "'learned' needs a head trained with config.train.objective = 'hybrid' or 'vlb', got 'sn'" in (
        capsys.readouterr().err
    )


def test_a_head_shows_no_sample_grids(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The default of config.train.sample_every goes with heads, too; one line says that there is nothing to see."""
    copied(trained, tmp_path, head=False)
    assert go(tmp_path, "train", train__sample_every=2) == 0
    assert capsys.readouterr().out.count("no sample grids (config.train.sample_every)") == 1
    assert (tmp_path / "head.safetensors").exists()
    seen = EventAccumulator(str(tmp_path / "tensorboard" / "train_head"))
    seen.Reload()
    assert seen.Tags()["images"] == []
