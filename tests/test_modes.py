"""The modes end to end, in the exact world of the toy mixture: right figures, whole files, work that survives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import adpm.drawing
from adpm.data_term import statistics_of
from adpm.moments import MomentTable
from adpm.ms_eps import read_ms_eps
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.measure import data_row_for, moments_for, variance_for

ROOT = Path(__file__).parent.parent
FEW = ("--config.moments.draws=60", "--config.moments.times=30")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def command(workdir: Path, mode: str, *overrides: str, config: str = "configs/toy.py") -> list[str]:
    """What is kept is kept in the workdir, moments included: tests share nothing."""
    places = [f"--workdir={workdir}", f"--config.cache={workdir / 'cache'}"]
    return ["main.py", f"--config={config}", f"--mode={mode}", *places, *FEW, *overrides]


def go(workdir: Path, mode: str, *overrides: str, config: str = "configs/toy.py") -> None:
    assert run(command(workdir, mode, *overrides, config=config), MODES) == 0


def samples_in(workdir: Path) -> np.ndarray:
    (folder,) = (workdir / "samples").iterdir()
    return np.load(folder / "samples.npy")


def events(workdir: Path, mode: str) -> EventAccumulator:
    (folder,) = (workdir / "tensorboard" / mode).iterdir()
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def toy_session(workdir: Path, **likelihood) -> Session:
    config = load_config("configs/toy.py")[0]
    config.moments.draws, config.moments.times, config.cache = 60, 30, str(workdir / "cache")
    config.likelihood.update(likelihood)
    return Session.make(config, workdir, house())


def test_samples_follow_the_data(tmp_path):
    """2000 samples of the exact denoiser at K = 50: mean and total variance of the mixture within 4 standard errors."""
    go(
        tmp_path,
        "sample",
        "--config.sampling.samples=2000",
        "--config.sampling.batch_size=1000",
        "--config.trajectory.steps=50",
    )
    x = samples_in(tmp_path).reshape(2000, -1).astype(np.float64)
    truth = load_truth()
    error = x.std(0) / math.sqrt(len(x))
    assert np.all(np.abs(x.mean(0) - truth.mean().numpy()) < 4 * error)
    spread = ((x - truth.mean().numpy()) ** 2).mean(1)
    assert abs(spread.mean() - truth.variance()) < 4 * spread.std() / math.sqrt(len(x)) + 0.01 * truth.variance()


def load_truth():
    from adpm.run.data import toy

    truth = toy().truth
    assert truth is not None
    return truth


def test_sample_reports_what_it_did(tmp_path, capsys):
    go(tmp_path, "sample", "--config.trajectory.steps=7", "--config.sampling.samples=9")
    told = capsys.readouterr().out
    assert "measuring them" in told and "planned 7 steps" in told and "7 network calls each" in told
    (folder,) = (tmp_path / "samples").iterdir()
    assert (folder / "grid.png").stat().st_size > 0 and str(folder / "grid.png") in told
    protocol = json.loads((folder / "protocol.json").read_text())
    path = protocol["path"]
    assert len(path) == 8 and path == sorted(set(path)) and (path[0], path[-1]) == (0, 1000)
    seen = events(tmp_path, "sample")
    assert [e.step for e in seen.Scalars("reverse/variance")] == path[1:]
    assert {"sample/grid", "sample/strip"} <= set(seen.Tags()["images"])
    assert not list(tmp_path.rglob("*.part"))
    go(tmp_path, "sample", "--config.trajectory.steps=7", "--config.sampling.samples=9")
    assert "measuring" not in capsys.readouterr().out


def test_samples_do_not_depend_on_the_batch_size(tmp_path):
    steps = "--config.trajectory.steps=10"
    go(tmp_path / "a", "sample", steps, "--config.sampling.samples=20", "--config.sampling.batch_size=20")
    go(tmp_path / "b", "sample", steps, "--config.sampling.samples=20", "--config.sampling.batch_size=7")
    assert np.abs(samples_in(tmp_path / "a") - samples_in(tmp_path / "b")).max() < 1e-4


def test_interrupted_sampling_continues(tmp_path, monkeypatch, capsys):
    options = ("--config.trajectory.steps=5", "--config.sampling.samples=12", "--config.sampling.batch_size=4")
    go(tmp_path / "whole", "sample", *options)
    draw_batch, calls = adpm.drawing.draw_batch, []

    def dies_in_the_second_batch(denoise, solver, process, times, numbers, *rest):
        calls.append(numbers.tolist())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw_batch(denoise, solver, process, times, numbers, *rest)

    monkeypatch.setattr(adpm.drawing, "draw_batch", dies_in_the_second_batch)
    argv = command(tmp_path / "killed", "sample", *options)
    assert run(argv, MODES) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert run(argv, MODES) == 0
    first, second, third = [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]
    assert calls == [first, second, second, third], "the finished batch is not done again"
    assert np.array_equal(samples_in(tmp_path / "whole"), samples_in(tmp_path / "killed"))
    assert not list(tmp_path.rglob("*.parts")), "batches go when the whole is there"


def test_more_samples_go_on_where_fewer_ended(tmp_path, monkeypatch):
    steps, size = "--config.trajectory.steps=5", "--config.sampling.batch_size=4"
    go(tmp_path / "whole", "sample", steps, size, "--config.sampling.samples=12")
    go(tmp_path / "grown", "sample", steps, size, "--config.sampling.samples=8")
    draw_batch, calls = adpm.drawing.draw_batch, []

    def counted(denoise, solver, process, times, numbers, *rest):
        calls.append(numbers.tolist())
        return draw_batch(denoise, solver, process, times, numbers, *rest)

    monkeypatch.setattr(adpm.drawing, "draw_batch", counted)
    go(tmp_path / "grown", "sample", steps, size, "--config.sampling.samples=12")
    assert calls == [[8, 9, 10, 11]], "the first eight are there"
    assert np.array_equal(samples_in(tmp_path / "whole"), samples_in(tmp_path / "grown"))


def test_interrupted_estimation_continues(tmp_path, monkeypatch):
    whole = moments_for(toy_session(tmp_path / "whole"))
    session = toy_session(tmp_path / "killed")
    denoise, calls = session.model.denoise, []

    def dies(x, t):
        calls.append(float(t))
        if len(calls) == 11:
            raise KeyboardInterrupt
        return denoise(x, t)

    object.__setattr__(session.model, "denoise", dies)
    with pytest.raises(KeyboardInterrupt):
        moments_for(session)
    resumed = toy_session(tmp_path / "killed")
    object.__setattr__(resumed.model, "denoise", dies)
    table = moments_for(resumed)
    assert calls[11:] == whole.times[10:].tolist(), "measured times are not measured again"
    assert all(np.array_equal(a.scatter, b.scatter) for a, b in zip(table.draws, whole.draws, strict=True))
    assert not list(tmp_path.rglob("*.parts"))


def test_moments_of_another_model_are_refused(tmp_path, capsys):
    go(tmp_path / "a", "estimate")
    (file,) = (tmp_path / "a" / "cache").glob("moments-*.npz")
    named = f"--config.moments.file={file}"
    assert run(command(tmp_path / "b", "sample", named, config="configs/toy.py:cosine"), MODES) == 2
    told = capsys.readouterr().err
    assert "belongs to something else" in told and "process" in told
    go(tmp_path / "c", "sample", named)
    assert not list((tmp_path / "c").rglob("moments-*.npz")), "a named file is not measured again"


def test_published_files_serve_as_moments(tmp_path, capsys):
    go(tmp_path, "estimate", "--config.moments.write_ms_eps=True", "--config.moments.times=0")
    assert "ms_eps:" in capsys.readouterr().out
    (file,) = tmp_path.glob("*.ms_eps.pth")
    session = toy_session(tmp_path / "other")
    ours = MomentTable.load(next((tmp_path / "cache").glob("moments-*.npz"))).column(1).values
    assert np.allclose(read_ms_eps(file, session.process).column(1).values, ours, rtol=1e-6)
    fixed = ["--config.trajectory.name=even", f"--config.moments.ms_eps={file}"]
    go(tmp_path, "sample", *fixed, "--config.rule.estimator=gamma")
    capsys.readouterr()
    assert run(command(tmp_path, "sample", *fixed), MODES) == 2
    assert "hold no 'residual' statistics" in capsys.readouterr().err
    assert run(command(tmp_path, "sample", fixed[1], "--config.rule.estimator=gamma"), MODES) == 2
    assert "planning needs the residual" in capsys.readouterr().err


def exact_bits(session: Session) -> float:
    """-log2 p(x0)/d of the test split under the truth, by the mixture's own density."""
    truth = session.data.truth
    assert truth is not None
    x = session.data.split("test").double().flatten(1)
    log_p = torch.logsumexp(
        truth.weights.log()
        - 0.5 * (((x[:, None] - truth.means) ** 2 / truth.spectrum) + (2 * math.pi * truth.spectrum).log()).sum(2),
        dim=1,
    )
    return float(-log_p.mean() / (truth.dim * math.log(2)))


def test_likelihood_bounds_the_truth(tmp_path):
    """The bound lies above the exact -log p of the same images, and within 0.1 bits/dim of it at K = 400."""
    go(tmp_path, "likelihood", "--config.trajectory.steps=400", "--config.trajectory.name=log_snr")
    (folder,) = (tmp_path / "likelihood").iterdir()
    result = json.loads((folder / "result.json").read_text())
    exact = exact_bits(toy_session(tmp_path))
    bits = np.load(folder / "1024-images.npz")["bits"]
    assert bits.shape == (401, 1024) and np.isclose(bits.sum(0).mean(), result["bits_per_dim"], rtol=1e-12)
    assert np.isclose(bits.sum(0).std(ddof=1) / 32, result["standard_error"], rtol=1e-12)
    assert result["images"] == 1024 and result["steps"] == 400
    assert -0.02 < result["bits_per_dim"] - exact < 0.1, (result["bits_per_dim"], exact)
    curve = events(tmp_path, "likelihood").Scalars("bound/term_bits_per_dim")
    assert len(curve) == 400
    assert np.isclose(sum(e.value for e in curve) + result["prior"], result["bits_per_dim"], atol=1e-4)


def test_likelihood_agrees_with_the_statistics_of_the_tables(tmp_path):
    """The tables' shortcut (one pass for all paths and rules) gives the mode's figure on the mode's noise."""
    go(
        tmp_path,
        "likelihood",
        "--config.trajectory.name=even",
        "--config.trajectory.steps=12",
        "--config.rule.name=small",
    )
    (folder,) = (tmp_path / "likelihood").iterdir()
    told = json.loads((folder / "result.json").read_text())["bits_per_dim"]
    session = toy_session(tmp_path)
    from adpm.trajectory import Request, trajectory
    from adpm.variance import Small

    times = session.process.times[trajectory("even", Request(session.process, 12))]
    statistics = statistics_of(
        session.model.denoise,
        session.process,
        session.decoder(variance_for(session)),
        session.levels,
        session.images("test"),
        torch.arange(1024),
        times[1:],
        seed=session.config.seed,
        batch_size=100,
    )
    bits = statistics.terms(session.process, Small(), times).sum(0).mean() / (16 * math.log(2))
    assert np.isclose(bits, told, rtol=1e-9)


def test_the_data_term_is_measured_once_and_planned_on(tmp_path, capsys):
    row = data_row_for(toy_session(tmp_path / "row"))
    assert np.isinf(row[0]) and np.isfinite(row[1:]).all()
    assert row[1000] > row[300] > row[50], "naming the data from pure noise costs most"
    again = data_row_for(toy_session(tmp_path / "row"))
    assert np.array_equal(row, again)
    go(tmp_path, "likelihood", "--config.trajectory.data_term=True", "--config.trajectory.budget=at_most")
    assert "data term with the 'optimal' decoder" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["even", "quadratic", "power2", "log_snr", "least_cost", "published_split"])
@pytest.mark.parametrize("rule", ["small", "unit", "large", "analytic"])
def test_every_rule_walks_every_trajectory(tmp_path, name, rule):
    """Each combination gives samples whose pixels spread like the data's, within the factor that K = 20 steps leave."""
    go(
        tmp_path,
        "sample",
        f"--config.trajectory.name={name}",
        f"--config.rule.name={rule}",
        "--config.trajectory.steps=20",
        "--config.sampling.samples=200",
        "--config.sampling.batch_size=200",
    )
    spread = samples_in(tmp_path).astype(np.float64).reshape(200, -1).var(0).mean()
    assert 0.4 < spread / (load_truth().variance()) < 1.7


@pytest.mark.parametrize("cost", ["kl", "bound", "measured"])
@pytest.mark.parametrize("method", ["auto", "dense"])
def test_planning_options_reach_the_planner(tmp_path, capsys, cost, method):
    go(
        tmp_path,
        "sample",
        f"--config.trajectory.cost={cost}",
        f"--config.trajectory.method={method}",
        "--config.process.steps=100",
        "--config.trajectory.steps=6",
        "--config.sampling.samples=2",
    )
    told = capsys.readouterr().out
    assert "planned 6 steps" in told and (method != "dense" or "dense search" in told)
    assert ("monotone projection" in told) == (cost == "kl"), "only kl is projected"
