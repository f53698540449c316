"""Jumps: stored landings and samples, what a jump costs, paths after one, keys, commands, refusals. T2, T4, T5."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import adpm
from adpm import ideal
from adpm.costs import CostNeeds
from adpm.denoiser import Counted, Prediction
from adpm.errors import UserError
from adpm.gaussian_score import fit_gaussian, gaussian_flow, largest_variance, mixture_flow
from adpm.ideal import IdealDenoiser
from adpm.jump import after
from adpm.members import MEMBERS
from adpm.mixture_fit import fit_mixture
from adpm.noise import KeyedNoise
from adpm.paths import Path as Steps
from adpm.paths import find_path
from adpm.process import linear
from adpm.run.assembly import Session
from adpm.run.config import load_config
from adpm.run.data import toy
from adpm.sampler import keyed, sample
from adpm.shortest_path import IntArray
from adpm.solver import ReverseGaussian, Step
from adpm.start import STARTS, WIDE, FromNoise, Start, StartNeeds, Teleport
from adpm.variance import Small
from sde.solver import ProbabilityFlowHeun
from tests.commands import SMALL, go, refused, the_file
from tests.goldens import golden
from tests.teleport_worlds import Edm, digit_classes, digit_gaussian, source_of, tensor

NODES = 18
EDM = Edm(NODES)
ALL: IntArray = np.arange(NODES + 1)


def log_snr_of(k: int) -> float:
    """Of the k-th node from above of the stored grid."""
    return float(EDM.log_snr(EDM.times[NODES - k]))


def jump(k: int, respend: bool = False) -> Teleport:
    return Teleport(EDM, digit_gaussian, gaussian_flow, log_snr_of(k), respend)


def sampled(start: Start | None, k: int) -> tuple[Tensor, Step, int]:
    """Heun's method from the stored noise: the state that the network begins with, the last step, and the calls."""
    seen: list[Tensor] = []

    class Seen:
        def __call__(self, x: Tensor, t: float) -> Prediction:
            seen.append(x)
            return denoise(x, t)

    denoise = IdealDenoiser(digit_classes(), EDM)
    counted = Counted(Seen())
    unit = tensor("teleport_digits", "xT") / 80.0
    *_, last = sample(counted, ProbabilityFlowHeun(EDM), EDM, EDM.times[: NODES - k + 1], lambda step: unit, start)
    return seen[0], last, counted.calls


def rms(x: Tensor) -> float:
    return float((x - tensor("teleport_digits", "x_exact")).square().mean().sqrt())


# -- T2, T4, T5: the stored world -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(11))
def test_t2_landings_samples_and_calls_are_the_published_ones(k: int) -> None:
    start = jump(k)
    assert start.landing(ALL) == NODES - k
    landed, last, calls = sampled(start, k)
    row = golden("teleport_digits")["table_skip_sigma_nfe_rms"][k]
    assert float(EDM.sigma(EDM.times[NODES - k])) == pytest.approx(row[1], rel=1e-9)
    assert calls == 2 * (NODES - k) - 1 == row[2]
    torch.testing.assert_close(landed, tensor("teleport_digits", f"skip{k}_xt"), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last.x, tensor("teleport_digits", f"skip{k}_x0"), rtol=1e-7, atol=1e-7)
    assert rms(last.x) == pytest.approx(row[3], rel=1e-6)


def test_t4_a_jump_within_its_reach_costs_nothing_and_beyond_it_does() -> None:
    whole, widest = rms(sampled(None, 0)[1].x), largest_variance(digit_gaussian()) ** 0.5
    reached = 0
    for k in range(1, 11):
        ratio = float(EDM.sigma(EDM.times[NODES - k])) / widest
        found = rms(sampled(jump(k), k)[1].x)
        reached = k if ratio >= WIDE else reached
        assert found < 1.05 * whole or ratio < WIDE, k
        assert found > 1.5 * whole or ratio > 1.2, k
    assert reached >= 5
    unsaid = Teleport(EDM, digit_gaussian, gaussian_flow)
    assert unsaid.landing(ALL) == NODES - reached, "the rule lands on the last of them"
    truth = Teleport(EDM, digit_classes, mixture_flow)
    assert truth.log_snr == pytest.approx(unsaid.log_snr, rel=1e-9), "the mixture has the same covariance"


def test_t5_fresh_noise_in_place_of_the_map_is_far_worse() -> None:
    for k, factor in ((8, 3.0), (6, 1.25)):
        found, control = (rms(sampled(start, k)[1].x) for start in (jump(k), FromNoise(EDM)))
        assert control > factor * found


def test_a_mixture_that_is_the_truth_jumps_anywhere() -> None:
    """Its own flow from sigma 80 to where little is left to do: nearer to the exact samples than the whole walk is."""
    start = Teleport(EDM, digit_classes, mixture_flow, log_snr_of(16))
    assert rms(sampled(start, 16)[1].x) < 0.25 * rms(sampled(None, 0)[1].x)
    assert rms(sampled(jump(16), 16)[1].x) > 5.0 * rms(sampled(None, 0)[1].x), "which the Gaussian does not"


# -- paths ------------------------------------------------------------------------------------------------------------


def model_of(process: adpm.DiscreteProcess) -> tuple[adpm.Model, Tensor]:
    """An exact model of correlated data in six dimensions, with its data."""
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 3.0
    truth = ideal.full_mixture([1.0], np.full((1, 6), 0.2), (root @ root.mT)[None].numpy(), (6,))
    data = truth.sample(3000, 0).float()
    return adpm.Model.of(IdealDenoiser(truth, process), process, images={"train": data}), data


@pytest.mark.parametrize("options", [{}, {"cost": "bound"}, {"cost": "measured"}, {"data_term": True}])
def test_a_path_made_anew_is_the_best_of_those_that_begin_there(options: dict) -> None:
    """Planned on the process cut off at the landing: the row of the same table that ends there."""
    process = linear(40)
    model, data = model_of(process)
    moments = model.measure(data, draws=60, times=0)
    options = {"images": data[:60], "draws": 60, "data_term": False, **options}
    start = model.start("gaussian", start_log_snr=float(process.log_snr(25.0)), start_respend=True)
    plan = model.plan(moments, 5, **options)
    times = plan.after(start, process)
    assert times[-1] == 25.0 and len(times) == 6
    alone = adpm.Model.of(model.denoise, adpm.DiscreteProcess(process.betas[:25]), images=model.images)
    own = alone.plan(alone.measure(data, draws=60, times=0), 5, **options)
    if not options.get("data_term") and options.get("cost") != "measured":  # these have noise of their own there
        assert np.array_equal(own.times, times)
    assert plan.again is not None and plan.again(25).cost == pytest.approx(own.cost, rel=0.02)


@pytest.mark.parametrize("name", ["even", "power3", "log_snr"])
def test_fixed_paths_are_made_anew_too(name: str) -> None:
    process = linear(200)
    model, _ = model_of(process)
    start = model.start("gaussian", start_log_snr=-2.0, start_respend=True)
    times = model.plan(steps=6, trajectory=name).after(start, process)
    inside = process.times[1:][process.log_snr(process.times[1:]) <= -2.0]
    assert times[-1] == inside[0] and len(times) == 7 and (np.diff(times) > 0).all()


def test_the_published_split_is_made_anew_of_its_own_part_of_gamma() -> None:
    process, short = linear(200), adpm.DiscreteProcess(linear(200).betas[:120])

    def gamma_of(some: adpm.DiscreteProcess) -> np.ndarray:  # of N(0, I/2)
        return np.concatenate([[0.0], 1.0 / (1.0 + 0.5 * np.exp(some.log_snr(some.times[1:])))])

    whole = find_path(MEMBERS, "published_split", process, 12, no_needs, lambda: gamma_of(process), last=120)
    alone = find_path(MEMBERS, "published_split", short, 12, no_needs, lambda: gamma_of(short))
    assert np.array_equal(whole.indices, alone.indices)


def no_needs(priced: bool) -> CostNeeds:
    raise AssertionError("nothing is priced")


def test_a_jump_takes_the_latest_time_of_the_path_that_it_reaches() -> None:
    process = linear(100)
    model, _ = model_of(process)
    plan = model.plan(steps=5, trajectory="even")
    fourth = float(process.log_snr(plan.times[4]))
    for log_snr, left in ((fourth, 4), (fourth - 0.01, 5), (fourth + 0.01, 4)):
        assert len(plan.after(model.start("gaussian", start_log_snr=log_snr), process)) == left + 1
    assert np.array_equal(plan.after(model.start("noise"), process), plan.times)
    rule = model.start("gaussian")
    assert np.exp(-0.5 * rule.log_snr) == pytest.approx(5.0 * largest_variance(rule.mixture) ** 0.5)
    few = Steps(np.array([0, 1]), process.times[:2])
    assert after(FromNoise(process), process, few, lambda last: pytest.fail("nothing jumps")) is few


def test_samples_after_a_jump_have_the_law_of_the_data() -> None:
    """On Gaussian data the map is exact: mean and covariance of the state where the network takes over."""
    process = linear(100)
    model, data = model_of(process)
    start = model.start("gaussian", start_log_snr=0.0)
    noise = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0))
    t = float(model.plan(steps=50, trajectory="even").after(start, process)[-1])
    x = start(t, noise).double()
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    covariance = alpha**2 * torch.cov(data.double().mT, correction=0) + sigma**2 * torch.eye(6)
    assert float((torch.cov(x.mT) - covariance).abs().max()) < 0.02
    assert float((x.mean(0) - alpha * data.double().mean(0)).abs().max()) < 0.01


def test_the_front_door_jumps_as_the_parts_do() -> None:
    process = linear(100)
    model, _ = model_of(process)
    start = model.start("gaussian", start_log_snr=-1.0)
    plan = model.plan(steps=10, trajectory="even")
    found = model.sample(plan, "small", n=4, shape=(6,), start=start, eta=0.0)
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(4), (6,))
    walked = sample(
        model.denoise, ReverseGaussian(process, Small(), 0.0), process, plan.after(start, process), noise, start
    )
    assert torch.equal(found, [*walked][-1].x)
    assert not torch.allclose(found, model.sample(plan, "small", n=4, shape=(6,), eta=0.0))
    named = model.sample(plan, "small", n=4, shape=(6,), start="gaussian", eta=0.0)
    assert torch.equal(named, model.sample(plan, "small", n=4, shape=(6,), start=model.start("gaussian"), eta=0.0))


def test_the_options_of_a_fit_reach_it() -> None:
    model, data = model_of(linear(100))
    options = {"rank": 2, "components": 3, "ridge": 1e-2, "clusters": "em"}
    found = model.start("gaussian_mixture", **{f"start_{name}": value for name, value in options.items()}).mixture
    expected = fit_mixture(source_of(data), **options)
    assert found is not None and found.spectrum.shape == (3, 2)
    torch.testing.assert_close((found.spectrum, found.rest), (expected.spectrum, expected.rest), rtol=0.0, atol=0.0)


def test_what_cannot_be_jumped_is_told() -> None:
    process = linear(100)
    model, data = model_of(process)
    plan, top = model.plan(steps=5, trajectory="even"), float(process.log_snr(100.0))
    later = model.plan(steps=5, trajectory="log_snr", log_snr_max=2.0)
    early = model.plan(steps=6, trajectory="quadratic")
    same = torch.zeros(5, 6)
    respent = model.start("gaussian", start_log_snr=-2.0, start_respend=True)
    for call, told in (
        (lambda: model.start("gaussian", start_log_snr=99.0), "`start_log_snr` = 99 must lie in ["),
        (lambda: later.after(model.start("gaussian", start_log_snr=3.0), process), "goes past the path's last time"),
        (lambda: early.after(model.start("gaussian", start_log_snr=top), process), "ends before the path begins"),
        (lambda: early.after(respent, process), "begins at t ="),
        (lambda: adpm.Plan(plan.path).after(respent, process), "does not say how it was made"),
        (lambda: model.plan(steps=90, trajectory="even").after(respent, process), "that a jump leaves"),
        (lambda: model.start("gaussian", start_rank=7), "`rank` = 7 must lie in 1..6"),
        (lambda: model.start("gaussian", rank=7), "has no option `rank`"),
        (lambda: model.start("gausian"), "`start` = 'gausian' is unknown (did you mean 'gaussian'?)"),
        (lambda: model.sample(plan, "small", 2, shape=(6,), start=model.start("gaussian", same)), "singular"),
        (lambda: model.sample(plan, "small", 2, shape=(2, 3), start="gaussian"), "about data of shape (6,)"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert told in str(caught.value)


@pytest.mark.parametrize("name", STARTS)
def test_every_start_makes_states_of_its_noise_alone(name: str) -> None:
    """Finite, in the noise's dtype, each from its own noise, with the options that its fields give it."""
    process = linear(100)
    images = toy().splits["train"][:300]
    needs = StartNeeds(process, lambda: tuple(images.shape[1:]), lambda: source_of(images))
    start: Start = STARTS[name].build(needs, **{f.arg or n: f.default for n, f in STARTS[name].fields.items()})
    noise = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, alone = start(60.0, noise), start(60.0, noise[2:3])
    assert whole.dtype == noise.dtype and whole.isfinite().all()
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(start(100.0, noise), noise, rtol=1e-5, atol=1e-6)


# -- commands ---------------------------------------------------------------------------------------------------------

JUMP = (*SMALL[:2], "trajectory.steps=6", "sampling.samples=4", "sampling.eta=0")


def test_the_start_is_part_of_what_samples_depend_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each start, and each of its options, has a folder of its own in one workdir, and a path of its own."""
    paths, images, calls = [], [], []
    for options in (
        (),
        ("start=gaussian",),
        ("start=gaussian", "start_log_snr=-1"),
        ("start=gaussian", "start_rank=3"),
        ("start=gaussian", "start_log_snr=-2", "start_respend=True"),
        ("start=gaussian_mixture", "start_components=3"),
    ):
        before = set((tmp_path / "w" / "samples").glob("*"))
        assert go(tmp_path / "w", "toy", "sample", *JUMP, *(f"sampling.{o}" for o in options)) == 0
        (folder,) = set((tmp_path / "w" / "samples").glob("*")) - before
        protocol = json.loads((folder / "protocol.json").read_text())
        assert protocol["own"]["sampling.start"] == (options or ("start=noise",))[0].partition("=")[2]
        paths.append(protocol["path"])
        images.append(np.load(folder / "samples.npy"))
        calls.append(int(np.load(folder / "steps.npz")["nfe"]))
    assert "small+gaussian_mixture-even-K6-eta0" in folder.name
    whole, process = paths[0], linear(1000)
    assert [path for path in paths if path != whole[: len(path)]] == [paths[4]]
    assert len(paths[4]) == 7 and process.log_snr(paths[4][-1]) <= -2.0 < process.log_snr(paths[4][-1] - 1.0)
    assert process.log_snr(paths[2][-1]) <= -1.0 < process.log_snr(paths[2][-2])
    assert calls == [len(path) - 1 for path in paths]
    for i, one in enumerate(images):
        assert not any(np.allclose(one, other) for other in images[:i])
    told = capsys.readouterr().out
    assert f"'gaussian' carries the noise from t = 1000 to {paths[2][-1]} (log-SNR -10.12 to" in told


def test_commands_refuse_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fields, told in (
        (("sampling.start_rank=3",), "config.sampling.start_rank = 3 does not go with config.sampling.start = 'noise'"),
        (("sampling.start=gaussian", "sampling.start_rank=17"), "config.sampling.start_rank = 17 must lie in 1..16"),
        (("sampling.start=gaussian", "sampling.start_log_snr=40"), "config.sampling.start_log_snr = 40 must lie in"),
        (("sampling.start=gaussian", "sampling.start_log_snr=9"), "goes past the path's last time before the data"),
        (("sampling.start=gaussian", "sampling.start_clusters=em"), "it is an option of gaussian_mixture"),
        (("sampling.start=gaussian_mixture", "sampling.start_ridge=0"), "config.sampling.start_ridge = 0.0 must be"),
        (("sampling.start=gauss",), "config.sampling.start = 'gauss' is unknown (did you mean 'gaussian'?)"),
    ):
        path = ("trajectory.name=log_snr", "trajectory.log_snr_max=4", "rule.name=small")
        assert told in refused(capsys, tmp_path / "w", "toy", "sample", *path, *fields)


def test_the_bound_does_not_see_the_start(tmp_path: Path) -> None:
    fields = ("rule.name=small", "trajectory.name=even", "trajectory.steps=4", "likelihood.images=8")
    for start in ("noise", "gaussian"):
        decoder = "likelihood.decoder=published"
        assert go(tmp_path / "w", "toy", "likelihood", *fields, decoder, f"sampling.start={start}") == 0
    the_file(tmp_path / "w" / "likelihood", "*")


@pytest.mark.parametrize(
    ("name", "options"),
    [("gaussian", {"rank": 3}), ("gaussian_mixture", {"rank": 2, "components": 4, "clusters": "em"})],
)
def test_a_fitted_denoiser_is_the_one_that_the_config_names(name: str, options: dict, tmp_path: Path, capsys) -> None:
    """The exact denoiser of the fit to the training images, with the options that the config gives."""
    fields = [f"denoiser.{key}={value}" for key, value in {"name": name, **options}.items()]
    assert go(tmp_path / "w", "toy", "sample", *SMALL, *fields) == 0
    assert "training images" in capsys.readouterr().out
    assert "clips nothing" in refused(capsys, tmp_path / "w", "toy", "sample", *SMALL, *fields, "denoiser.clip=True")
    config, house = load_config("configs/toy.py")
    house.table.update(config, {f"denoiser.{key}": value for key, value in {"name": name, **options}.items()})
    made = Session.make(config, tmp_path / "other", house)
    fit = {"gaussian": fit_gaussian, "gaussian_mixture": fit_mixture}[name](source_of(toy().splits["train"]), **options)
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.trunk.denoise(x, 300.0).x0, IdealDenoiser(fit, made.process)(x, 300.0).x0)
