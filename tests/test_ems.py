"""The statistics of DPM-Solver-v3 against closed forms and stored draws; how they are measured, kept and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import adpm
from adpm.denoiser import Denoiser
from adpm.derivative import derivative, usable
from adpm.dpm_solver_v3 import DPMSolverV3
from adpm.draws import Source
from adpm.ems import EMS, data_prediction, half_log_snr
from adpm.ems_measure import Node, _Sums, keyed_draws, measure_ems
from adpm.ideal import IdealDenoiser, diagonal_mixture, full_mixture, gaussian
from adpm.run.assembly import Session
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.run.config import load_config
from adpm.run.families import house
from adpm.run.statistics import KEPT, ems_for
from adpm.run.store import Parts
from adpm.sampler import walk
from sde.process import VE, VP, SubVP
from tests.commands import go, refused, the_file
from tests.goldens import golden
from tests.mixture_flows import flow, no_noise


def rms(a, b) -> float:
    return float(np.sqrt(np.square(a - b).mean()))


def source_of(mixture, count, seed) -> Source:
    images = mixture.sample(count, seed)
    return Source(count, lambda index: images[index], images.mean(0), mixture.variance())


def stored_draws(stored):
    """The 32 draws of a golden file."""
    kept = [torch.as_tensor(stored[f"ems32_{name}"]) for name in ("x0", "noise", "probe")]
    return lambda number: tuple(values[number] for values in kept)


@pytest.mark.parametrize(("how", "most"), [("jvp", 1e-6), ("difference", 1e-4)])
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_stored_draws_give_the_stored_statistics(name, how, most):
    """Acceptance A2, in batches of 20, so that sums are merged."""
    world = flow(name)
    ems = measure_ems(world.denoise, world.process, stored_draws(world.stored), 32, 121, derivative=how, batch_size=20)
    assert np.allclose(ems.grid, world.stored["lam_grid"], atol=1e-12) and ems.derivative == how
    exact = how == "jvp"
    assert np.abs(ems.linear - world.stored["ems32_l"]).max() < (1e-12 if exact else 1e-8)
    assert np.abs(ems.scale - world.stored["ems32_s"]).max() < most
    assert np.abs(ems.bias - world.stored["ems32_b"]).max() < most
    assert not ems.clamped.any() and not ems.constant.any() and len(ems.clamped) == 121


def test_a_correlated_gaussian():
    """Acceptance A2: 4096 draws, the same at every node; with fresh draws at each node s is ten times worse."""
    stored, process = golden("ems_gaussian"), VP(10, 1e-3)
    mixture = full_mixture([1.0], stored["mu"][None], stored["Sigma"][None], (4,))
    denoise, count = IdealDenoiser(mixture, process), 4096
    source = source_of(mixture, count, 1)
    reused = measure_ems(denoise, process, keyed_draws(source, 0), count, 121, batch_size=count)
    assert rms(reused.linear, stored["l"]) < 2.5e-3
    assert rms(reused.scale, stored["s"]) < 1e-2
    assert rms(reused.bias, stored["b"]) < 3e-3
    calls = []

    def fresh(number):
        calls.append(number)
        return keyed_draws(source, len(calls))(number)

    assert rms(measure_ems(denoise, process, fresh, count, 121, batch_size=count).scale, stored["s"]) > 3e-2


def few(mixture, seed=0):
    """Draws from 200 images."""
    return keyed_draws(source_of(mixture, 200, 0), seed)


def test_a_diagonal_gaussian_on_a_discrete_process_is_exact_in_one_step():
    """f does not vary: s = 0, b = E[f'] = -l' mean, and one step of order 1 goes all the way (A5, measured)."""
    process, mean, variance = adpm.linear(200), np.array([0.3, -1.1, 0.5]), np.array([0.2, 1.5, 0.0])
    mixture = gaussian(mean, variance, (3,))
    denoise = IdealDenoiser(mixture, process)
    ems = measure_ems(denoise, process, few(mixture), 50, 241)
    exact = 1.0 / (1.0 + np.exp(2.0 * ems.grid[:, None]) * variance)
    assert np.abs(ems.linear - exact).max() < 1e-12 and not ems.scale.any() and (ems.constant == 3).all()
    assert np.abs(ems.bias - 2.0 * exact * (1.0 - exact) * mean)[1:-1].max() < 1e-3
    assert np.abs(ems.bias[:, 2]).max() < 1e-12  # a pixel without variance: (1, 0, 0)
    times = process.times[[1, -1]]
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (step,) = walk(denoise, DPMSolverV3(process, times, lambda: ems, order=1), times, x, no_noise)
    (a, b), (u, v) = (
        process.alpha(times),
        np.sqrt(process.alpha(times)[:, None] ** 2 * variance + process.sigma(times)[:, None] ** 2),
    )
    assert np.abs(step.x.numpy() - a * mean - u / v * (x.numpy() - b * mean)).max() < 1e-3


def bimodal():
    return diagonal_mixture([0.4, 0.6], [[-0.6, 0.2], [0.7, -0.4]], [[0.1, 0.3], [0.2, 0.1]], (2,))


def as_network(process, truth, predicts, scales):
    """A network that knows alpha and sigma from its label alone, `scales(label)`."""
    ideal = IdealDenoiser(truth, process)

    def network(x, label):
        alpha, sigma = scales(label[0])
        eps = ideal.raw(x, alpha, sigma, label)
        return {"eps": eps, "x0": (x - sigma * eps) / alpha, "score": -eps / sigma}[predicts]

    return network


def vp_scales(label):
    """Of label 1000 t, with beta from 0.1 to 20."""
    integral = 0.1 * (label / 1000.0) + 9.95 * (label / 1000.0) ** 2
    return torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))


@pytest.mark.parametrize("how", ["jvp", "difference"])
@pytest.mark.parametrize(
    ("process", "predicts", "label", "scales", "most"),
    [
        (adpm.vp_integral(1000), "eps", lambda n: n, vp_scales, 1e-2),
        (adpm.vp_integral(1000), "x0", lambda n: n, vp_scales, 1e-2),
        (VP(20, 1e-3), "eps", lambda t: 1000.0 * t, vp_scales, 1e-5),
        (VE(20, 1e-2), "score", None, lambda sigma: (torch.ones_like(sigma), sigma), 1e-5),
        (SubVP(20, 1e-2), "score", lambda t: 1000.0 * t, lambda n: (vp_scales(n)[0], vp_scales(n)[1] ** 2), 1e-5),
    ],
    ids=["discrete-eps", "discrete-x0", "vp", "ve-score", "subvp-score"],
)  # fmt: skip
def test_time_runs_through_the_label(process, predicts, label, scales, most, how):
    """A network with a label has the statistics of the exact denoiser, which is given its scales.

    The real numbers between a discrete process's steps are interpolated.
    """
    truth = bimodal()
    network = as_network(process, truth, predicts, scales)
    denoise = Denoiser(network, process, predicts=predicts, time_label=label or process.sigma, clip=(-0.1, 0.1))
    found, exact = (
        measure_ems(d, process, few(truth), 40, 25, derivative=way)
        for d, way in ((denoise, how), (IdealDenoiser(truth, process), "jvp"))
    )
    most = max(most, 1e-4) if how == "difference" else most
    for name in ("linear", "scale", "bias"):
        assert np.abs(getattr(found, name) - getattr(exact, name)).max() < most, name


@pytest.mark.parametrize("process", [VP(20, 1e-3), SubVP(20, 1e-3), VE(20, 1e-3), adpm.linear(1000)])
def test_rates_of_a_node_at_and_between_the_ends(process):
    """Against plain differences, which leave the range at neither end."""
    low, high = half_log_snr(process, process.times[[-1, 1]])
    for lam in (low, 0.5 * (low + high), high):
        node = Node.at(process, lambda t: t**2, lam)
        assert node.sigma == pytest.approx(node.alpha * np.exp(-lam), rel=1e-12)
        assert float(half_log_snr(process, process.times[np.abs(process.times - node.t).argmin()])) == pytest.approx(
            lam, abs=0.3
        )
        assert node.label == pytest.approx(node.t**2)
        side = 1e-4 if lam < high else -1e-4
        near = Node.at(process, lambda t: t**2, lam + side)
        assert node.k == pytest.approx(np.log(near.alpha / node.alpha) / side, abs=1e-3)
        assert node.label_rate == pytest.approx((near.label - node.label) / side, rel=0.02)


def test_statistics_do_not_depend_on_batches_and_do_on_the_seed():
    process, truth = VP(20, 1e-2), bimodal()
    denoise = IdealDenoiser(truth, process)
    whole, parts = (measure_ems(denoise, process, few(truth), 30, 5, batch_size=size) for size in (30, 7))
    other = measure_ems(denoise, process, few(truth, seed=5), 30, 5)
    for name in ("linear", "scale", "bias"):
        assert np.allclose(getattr(whole, name), getattr(parts, name), rtol=1e-9, atol=1e-12)
        assert not np.allclose(getattr(whole, name), getattr(other, name), rtol=1e-3)


def test_what_a_rough_network_makes_of_s_is_cut():
    """Without limits s would be 2 / 0.1 there: f' varies twenty times as much as f."""
    process = VP(20, 1e-2)

    class Rough:
        def label(self, t):
            return t

        def raw(self, x, alpha, sigma, label):
            return x / torch.sqrt(torch.as_tensor(alpha) ** 2 + torch.as_tensor(sigma) ** 2) + 0.05 * torch.sin(
                300.0 * x
            )

    ems = measure_ems(Rough(), process, few(bimodal()), 100, 9)
    assert (ems.clamped > 0).any() and np.abs(ems.scale).max() == 3.0
    assert ems.clamped.sum() == (np.abs(ems.scale) == 3.0).sum()
    f = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    cut = _Sums.of(f, 10.0 * f, f).fitted(Node.at(process, lambda t: t, 0.0))
    assert cut["scale"] == 3.0 and cut["bias"] == 10.0 * 2.0 - 3.0 * 2.0, "the mean of f' is kept by the s that is used"


class Detached:
    """A network that hides its derivative from torch, in one of two ways."""

    def __init__(self, process, way):
        self.inner, self.way = IdealDenoiser(bimodal(), process), way

    def label(self, t):
        return t

    def raw(self, x, alpha, sigma, label):
        alpha, sigma, hidden = (torch.as_tensor(v).detach() for v in (alpha, sigma, x))
        return self.inner.raw(torch.as_tensor(hidden.numpy()) if self.way == "numpy" else hidden, alpha, sigma, label)


@pytest.mark.parametrize("way", ["numpy", "detach"])
def test_networks_without_a_forward_derivative_are_differenced(way):
    """Refused by torch, or silently nothing: both are noticed, and l comes out right."""
    process = VE(20, 1e-2)
    hidden, exact = Detached(process, way), IdealDenoiser(bimodal(), process)
    found = measure_ems(hidden, process, few(bimodal()), 40, 5)
    wanted = measure_ems(exact, process, few(bimodal()), 40, 5)
    assert (found.derivative, wanted.derivative) == ("difference", "jvp")
    assert np.abs(found.linear - wanted.linear).max() < 1e-6
    if way == "numpy":
        with pytest.raises(adpm.UserError, match="`derivative` = 'jvp' needs a forward derivative"):
            measure_ems(hidden, process, few(bimodal()), 40, 5, derivative="jvp")


def test_slopes_in_one_direction():
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)
    for name, most in (("jvp", 1e-15), ("difference", 1e-9)):
        value, slope = derivative(name)(lambda d: torch.sin(x + 2.0 * d), x)
        assert torch.allclose(value, torch.sin(x), atol=1e-15) and torch.allclose(slope, 2.0 * torch.cos(x), atol=most)
    assert usable("auto", lambda d: x * d, x) == "jvp" and usable("difference", lambda d: x * d, x) == "difference"
    with pytest.raises(adpm.UserError, match="`derivative` = 'jvq' is unknown"):
        usable("jvq", lambda d: x * d, x)


def test_a_killed_measurement_continues(tmp_path):
    """Finished nodes of either pass are not measured again, and the numbers are those of a run that was not killed."""
    process, truth = VP(20, 1e-2), bimodal()
    ideal, settings = IdealDenoiser(truth, process), {"count": 20, "nodes": 6, "derivative": "jvp"}
    whole = measure_ems(ideal, process, few(truth), **settings)
    for killed_at, again in ((4, 18), (8, 14)):  # a call at the start, 6 of the first pass, 2 for each of the second
        calls = []

        class Dies:
            label = staticmethod(ideal.label)

            def raw(self, *args, calls=calls, killed_at=killed_at):
                calls.append(args)
                if len(calls) == killed_at + 1:
                    raise KeyboardInterrupt
                return ideal.raw(*args)

        keep = Parts(tmp_path / str(killed_at))
        with pytest.raises(KeyboardInterrupt):
            measure_ems(Dies(), process, few(truth), keep=keep, **settings)
        calls.clear()
        calls.extend([None] * 100)
        found = measure_ems(Dies(), process, few(truth), keep=keep, **settings)
        assert all(np.array_equal(getattr(found, k), getattr(whole, k)) for k in ("linear", "scale", "bias"))
        assert len(calls) - 100 <= again


def measured(**changes) -> EMS:
    grid = np.linspace(-2.0, 3.0, 4)
    made = {k: np.arange(8.0).reshape(4, 2) + i for i, k in enumerate(("linear", "scale", "bias"))}
    about = {"draws": 7, "derivative": "jvp", "provenance": {"weights": "a", "fields": {"x": 1}}}
    return replace(EMS(grid, **made, **about, clamped=np.arange(4), constant=np.zeros(4, dtype=int)), **changes)


def test_files_keep_everything(tmp_path):
    made = measured()
    made.save(tmp_path / "ems.npz")
    again = EMS.load(tmp_path / "ems.npz")
    for name, value in made.__dict__.items():
        assert np.array_equal(getattr(again, name), value), name
    again.require({"weights": "a", "fields": {"x": 1}}, tmp_path / "ems.npz")
    with pytest.raises(
        adpm.UserError, match=r"belongs to something else \(fields.x: 1 there, 2 now; weights: 'a' there"
    ):
        again.require({"weights": "b", "fields": {"x": 2}}, tmp_path / "ems.npz")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("nothing"),
        lambda path: np.savez(path.open("wb"), grid=np.arange(3.0)),
        lambda path: path.unlink(),
    ],
    ids=["text", "another", "none"],
)
def test_other_files_are_refused(tmp_path, spoil):
    path = tmp_path / "ems.npz"
    measured().save(path)
    spoil(path)
    with pytest.raises(adpm.UserError, match="is not a statistics file|does not exist"):
        EMS.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"grid": np.array([0.0, 1.0, 2.0, 4.0])},
        {"grid": np.linspace(3.0, -2.0, 4)},
        {"scale": np.zeros((4, 3))},
        {"bias": np.where(np.eye(4, 2) > 0.0, np.nan, 1.0)},
        {"linear": np.zeros((3, 2))},
    ],
)
def test_what_is_no_statistics_is_refused(change):
    with pytest.raises(adpm.UserError):
        measured(**change)
    with pytest.raises(adpm.UserError, match="at least three nodes"):
        EMS(np.arange(2.0), *np.ones((3, 2)))


def test_between_nodes_statistics_are_linear():
    ems = measured()
    linear, scale, bias = ems.at(np.array([-2.0, -2.0 + 2.5 / 3.0, 3.0]))
    assert np.allclose(linear, [[0, 1], [1, 2], [6, 7]]) and np.allclose(scale, linear + 1.0)
    assert np.allclose(bias, linear + 2.0) and ems.nearest([-2.0, -1.2, -1.1, 3.0]).tolist() == [0, 0, 1, 3]
    assert (
        ems.covers(np.array([-2.0, 3.0 + 1e-9]))
        and not ems.covers(np.array([-2.1]))
        and not ems.covers(np.array([3.1]))
    )


def test_the_front_door(tmp_path):
    """Ten steps with measured statistics end nearer to the exact flow than with those of x0's prediction."""
    process, truth = adpm.linear(200), bimodal()
    model = adpm.Model.of(IdealDenoiser(truth, process), process, images={"train": truth.sample(400, 0)})
    ems = model.measure_statistics(nodes=61, draws=400, provenance={"weights": "mine"})
    assert ems.shape == (2,) and ems.provenance == {"weights": "mine"} and ems.draws == 400
    plan, fine = (model.plan(steps=k, trajectory="log_snr") for k in (8, 200))
    options = {"n": 64, "solver": "dpm_solver_v3"}
    exact = model.sample(fine, statistics=data_prediction(process), order=3, **options)
    ours, plain = (model.sample(plan, statistics=s, correct="true", **options) for s in (ems, data_prediction(process)))
    assert rms(ours.numpy(), exact.numpy()) < 0.5 * rms(plain.numpy(), exact.numpy())
    with pytest.raises(adpm.UserError, match="solver 'dpm_solver_v3' needs `statistics`: statistics = model.measure"):
        model.sample(plan, **options)
    with pytest.raises(adpm.UserError, match="`nodes` = 2 must be at least 3"):
        model.measure_statistics(nodes=2)
    with pytest.raises(adpm.UserError, match="function does not offer"):
        adpm.Model.of(lambda x, t: None, process, images=model.images).measure_statistics()


def test_a_network_that_is_not_finite_is_told():
    process = VP(20, 1e-2)
    denoise = Denoiser(
        lambda x, label: torch.where(label[0] > 998.9, torch.nan, x), process, time_label=lambda t: 999.0 * t
    )
    with pytest.raises(adpm.UserError, match="not finite at t = 1; check its weights"):
        measure_ems(denoise, process, few(bimodal()), 10, 5, derivative="difference")


# Through the command line

FEW = ("moments.nodes=7", "moments.ems_draws=16")
V3 = ("sampling.solver=dpm_solver_v3", "trajectory.name=log_snr", "trajectory.steps=5", "sampling.samples=4")


def test_estimate_and_sample(tmp_path, capsys):
    """Measured once, shown, used; other settings are other samples."""
    assert go(tmp_path / "a", "digits", "estimate", "moments.statistics=ems", *FEW) == 0
    told = capsys.readouterr().out
    assert "measuring them with 16 draws at 7 nodes" in told and "of the raw network" in told
    assert "s was cut to its limit in" in told and "of 448 values" in told
    file = the_file(tmp_path / "cache", "statistics-*.npz")
    ems = EMS.load(file)
    assert (
        ems.shape == (1, 8, 8)
        and ems.derivative == "jvp"
        and (ems.grid[0], ems.grid[-1]) == pytest.approx((-5.05, 4.6), abs=0.1)
    )
    assert ems.linear[0].min() > 0.95 and np.median(ems.linear[-1]) < 0.3
    for run_of in range(2):
        assert go(tmp_path / "a", "digits", "sample", *V3, *FEW) == 0
        told = capsys.readouterr().out
        assert "no statistics" not in told and "4 samples, 5 network calls each" in told, run_of
    folder = the_file(tmp_path / "a" / "samples", "dpm_solver_v3-log_snr-K5-*")
    images = np.load(folder / "samples.npy")
    assert images.shape == (4, 1, 8, 8) and images.std() > 40.0  # seven nodes are too few for good ones
    assert go(tmp_path / "a", "digits", "sample", *V3, *FEW, "sampling.order=2") == 0
    assert go(tmp_path / "a", "digits", "sample", *V3, "moments.nodes=8", FEW[1]) == 0
    assert "measuring them with 16 draws at 8 nodes" in capsys.readouterr().out
    assert len(list((tmp_path / "a" / "samples").iterdir())) == 3
    assert go(tmp_path / "b", "digits", "sample", *V3, f"moments.ems_file={file}") == 0
    assert "measuring" not in capsys.readouterr().out


def test_what_does_not_go_together_is_refused(tmp_path, capsys):
    for fields, told in (
        ((*V3, "sampling.order=4"), "config.sampling.order = 4 must be a number of at least 1 and of at most 3"),
        ((*V3, "sampling.order=1", "sampling.correct=true"), "config.sampling.correct = 'true' redoes no step"),
        ((*V3, "trajectory.steps=2"), "config.sampling.order = 3 needs as many steps before the one to the data"),
        ((*V3, "sampling.snap=True"), "config.sampling.snap = True asks the network between the steps"),
        ((*V3, "moments.derivative=no"), "config.moments.derivative = 'no' is unknown"),
        ((*V3, "moments.ems_file=nowhere.npz"), "config.moments.ems_file = 'nowhere.npz' is no file"),
        (("moments.nodes=9",), "config.moments.nodes = 9 does not go with config.moments.statistics = 'moments'"),
        (("sampling.order=2",), "it is an option of"),
    ):
        assert told in refused(capsys, tmp_path, "toy", "sample", *fields)


def test_statistics_of_another_model_are_refused(tmp_path, capsys):
    assert go(tmp_path / "a", "toy", "estimate", "moments.statistics=ems", *FEW) == 0
    file = the_file(tmp_path / "cache", "statistics-*.npz")
    told = refused(capsys, tmp_path / "b", "toy:cosine", "sample", *V3, f"moments.ems_file={file}")
    assert "belongs to something else" in told and "process.name" in told and "config.moments.ems_file" in told


def test_a_killed_estimation_continues(tmp_path, monkeypatch, capsys):
    """Through the command line: exit code 130, parts kept, and the file of a run that was not killed."""
    root, argv = Path(__file__).parent.parent, ["--mode=estimate", "--config.moments.statistics=ems"]
    monkeypatch.chdir(root)
    argv = ["main.py", "--config=configs/toy.py", *argv, *(f"--config.{field}" for field in FEW)]
    real, calls = IdealDenoiser.raw, []

    def dies(self, *args):
        calls.append(args)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(IdealDenoiser, "raw", dies)
    assert run([*argv, f"--workdir={tmp_path / 'killed' / 'run'}"], MODES) == 130
    parts = len(list((tmp_path / "killed" / "cache").rglob("*.npz")))
    assert parts == 8 and not list((tmp_path / "killed").rglob("statistics-*.npz"))
    calls[:] = [None] * 100
    assert run([*argv, f"--workdir={tmp_path / 'killed' / 'run'}"], MODES) == 0
    assert len(calls) - 100 == 1 + 2 * 6, "one call to try the derivative, two for each node that was left"
    assert not list(tmp_path.rglob("*.parts"))
    config = load_config("configs/toy.py")[0]
    config.moments.update(statistics="ems", nodes=7, ems_draws=16)
    whole = Session.make(config, tmp_path / "whole" / "run", house())
    ems, again = ems_for(whole), EMS.load(the_file(tmp_path / "killed" / "cache", "statistics-*.npz"))
    assert (
        np.array_equal(ems.bias, again.bias)
        and KEPT.path(whole).name == the_file(tmp_path / "killed" / "cache", "*.npz").name
    )
