"""The front door: ten lines of a notebook on vectors, on images and on a shipped model, against known answers."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import adpm
from adpm.draws import Source
from adpm.families import Kind
from adpm.ideal import IdealDenoiser, gaussian
from adpm.members import MEMBERS
from adpm.run.cli import run
from adpm.run.commands import MODES
from adpm.variance import RULES

ROOT = Path(__file__).parent.parent
V = 0.25


class Gauss(torch.nn.Module):
    """The exact eps of N(0, V I): sigma x / (alpha^2 V + sigma^2), for a label that is the index of a step."""

    def __init__(self, process: adpm.DiscreteProcess) -> None:
        super().__init__()
        self.process = process
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = t.double().round().numpy()
        shape = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (torch.as_tensor(c(time)).reshape(shape) for c in (self.process.alpha, self.process.sigma))
        return (sigma * x / (alpha**2 * V + sigma**2)).to(x.dtype)


@pytest.mark.parametrize("shape", [(2,), (3, 16, 16)], ids=["vectors", "images"])
def test_the_notebook_on_a_gaussian(shape):
    """Analytic-DPM is exact there: posterior variance, cost, samples and likelihood are known in closed form."""
    data = torch.randn(2000, *shape, generator=torch.Generator().manual_seed(0))
    data = V**0.5 * (data - data.mean(0)) / (data - data.mean(0)).std(correction=0)  # at low SNR it is the data's own
    process = adpm.linear(100)
    model = adpm.Model(Gauss(process), process=process, predicts="eps", label=lambda t: t)
    moments = model.measure(data, draws=300, times=20)
    exact = 1.0 / (1.0 / V + np.exp(process.log_snr(moments.times)))
    assert np.allclose(moments.estimate().values, exact, rtol=1e-5)  # the control variates leave no noise here
    plan = model.plan(moments, steps=10)
    assert plan.times[0] == 0.0 and plan.times[-1] == 100.0 and len(plan.times) == 11
    samples = model.sample(plan, rule="analytic", n=400, seed=1)
    assert samples.shape == (400, *shape)
    assert abs(float(samples.var()) / V - 1.0) < (0.15 if shape == (2,) else 0.02)
    exact_bits = 0.5 * np.log2(2 * np.pi * np.e * V)
    bits = model.bits_per_dim(data[:400], model.plan(moments, steps=100, trajectory="even"), rule="analytic")
    assert abs(bits.total.mean - exact_bits) < 4.0 * bits.total.error + 0.01


def test_samples_are_those_of_their_number_and_seed():
    process = adpm.linear(50)
    model = adpm.Model(Gauss(process), process=process, label=lambda t: t)
    plan = model.plan(steps=5, trajectory="even")
    whole = model.sample(plan, rule="small", n=8, shape=(3,), seed=3, batch_size=8)
    parts = model.sample(plan, rule="small", n=8, shape=(3,), seed=3, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert not torch.allclose(whole, model.sample(plan, rule="small", n=8, shape=(3,), seed=4))


def test_plans_on_the_data_term_and_on_measured_costs():
    """On a Gaussian with its exact scalar, `kl` and `measured` price the same steps; the data term frees the first."""
    mixture, process = gaussian(0.0, V, (1, 2, 2)), adpm.linear(30)
    model = adpm.Model.of(IdealDenoiser(mixture, process), process)
    data = mixture.sample(400, 0).float()
    moments = model.measure(data, draws=400, times=0)
    kl = model.plan(moments, 4, images=data, data_term=True, draws=400)
    measured = model.plan(moments, 4, images=data, cost="measured", data_term=True, draws=400)
    assert measured.cost == pytest.approx(kl.cost, abs=0.05)  # 400 draws each
    through_one = model.plan(moments, 4)
    assert through_one.times[1] == 1.0 and kl.times[1] > 1.0
    with pytest.raises(adpm.UserError, match="no training|no train images"):
        model.plan(moments, 4, data_term=True)


def test_what_is_wrong_is_told_by_parameter():
    process = adpm.linear(40)
    model = adpm.Model(Gauss(process), process=process, label=lambda t: t, data_range=(-1, 1))
    bytes_ = torch.zeros(4, 2, dtype=torch.uint8)
    for call, told in (
        (lambda: model.measure(bytes_), "`images` are torch.uint8; give floats in the network's range"),
        (lambda: model.plan(steps=4), "planning needs moments"),
        (lambda: model.plan(steps=4, trajectory="evn"), "`trajectory` = 'evn' is unknown"),
        (lambda: model.plan(steps=41, trajectory="even"), "`trajectory.steps` = 41 must lie in 1..40"),
        (lambda: model.plan(steps=4, trajectory="even", budget="at_most"), "has no option `budget`"),
        (lambda: model.sample(model.plan(steps=4, trajectory="even"), n=1), "rule 'analytic' needs moments"),
        (lambda: model.sample(model.plan(steps=4, trajectory="even"), "small", 1), "give `shape`"),
        (lambda: model.sample(model.plan(steps=4, trajectory="even"), "small", 1, solver="ddim"), "`solver` = 'ddim'"),
    ):
        with pytest.raises(adpm.UserError) as caught:
            call()
        assert told in str(caught.value)


def test_a_module_is_used_as_it_was_trained_for_use():
    """Dropout would be noise of its own: the same state gives the same prediction."""
    network = torch.nn.ModuleDict({"drop": torch.nn.Dropout(0.5)})
    network.forward = lambda x, t: network["drop"](x)
    model = adpm.Model(network, adpm.linear(40), predicts="x0")
    assert torch.equal(model.denoise(torch.ones(1, 64), 3.0).x0, torch.ones(1, 64))


def test_nothing_global_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), torch.get_num_threads()
    model = adpm.load(str(ROOT / "configs" / "digits.py"), workdir=tmp_path / "run")
    moments = model.measure(draws=8, times=6)
    model.sample(model.plan(moments, steps=4), n=2)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1], torch.get_num_threads()
    assert torch.equal(before[0], after[0]) and before[1] == after[1] and before[3] == after[3]
    assert (before[2] == after[2]).all()
    assert Path.cwd() == tmp_path


def test_a_config_gives_the_model_that_the_modes_use(tmp_path, monkeypatch):
    """Same moments, path and samples as --mode=sample, and the same bits/dim as --mode=likelihood."""
    monkeypatch.chdir(ROOT)
    model = adpm.load("configs/digits.py", workdir=tmp_path / "run")
    moments = model.measure(draws=20, times=12)
    plan = model.plan(moments, steps=5, draws=20)
    few = ["--config.moments.draws=20", "--config.moments.times=12", "--config.trajectory.steps=5"]
    argv = ["main.py", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", *few]
    options = ["--config.sampling.samples=4", "--config.likelihood.images=6"]
    assert run([*argv, *options, "--mode=sample"], MODES) == 0
    (file,) = (tmp_path / "run" / "samples").rglob("samples.npy")
    kept = np.load(file)
    samples = model.sample(plan, n=4)
    assert np.abs(kept - ((samples.numpy() + 1.0) * 127.5)).max() <= 0.51
    assert run([*argv, *options, "--mode=likelihood"], MODES) == 0
    (kept_bits,) = (tmp_path / "run" / "likelihood").rglob("6-images.npz")
    bits = model.bits_per_dim(model.images["test"][:6], plan)
    assert np.allclose(bits.bits, np.load(kept_bits)["bits"], rtol=1e-6)


def test_moments_are_drawn_and_kept(tmp_path):
    process = adpm.linear(40)
    model = adpm.Model(Gauss(process), process=process, label=lambda t: t)
    moments = model.measure(torch.randn(50, 2), draws=10, times=6)
    assert [axis.get_xlabel() for axis in moments.plot().axes] == ["log-SNR", "log-SNR"]
    moments.save(tmp_path / "m.npz")
    again = adpm.Moments.load(tmp_path / "m.npz", process)
    assert np.array_equal(again.estimate().values, moments.estimate().values) and again.table.shape == (2,)


def test_the_import_is_light():
    """No board, no pictures, no data sets, no metrics; the heavy parts come when they are asked for."""
    code = (
        "import sys, adpm; adpm.Model; print([m for m in ('tensorboard', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def splits() -> dict[str, torch.Tensor]:
    """Two sets that are easily told apart, with means of their own in every place."""
    train = 0.1 * torch.randn(60, 1, 2, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(6).reshape(
        1, 2, 3
    )
    return {"train": train / 6.0, "test": 0.5 * train / 6.0 - 0.2}


def exact(**options) -> adpm.Model:
    process = adpm.linear(50)
    return adpm.Model.of(IdealDenoiser(gaussian(0.2, V, (1, 2, 3)), process), process, images=splits(), **options)


def test_a_source_has_the_mean_and_the_variance_of_its_images():
    """tr Cov / d: the spread over images, without that between places."""
    images = splits()["train"]
    source = Source.of(lambda index: images[index], len(images))
    assert source.size == 60 and torch.equal(source.images(torch.tensor([3, 50])), images[[3, 50]])
    assert torch.allclose(source.mean, images.mean(0), atol=1e-6)
    assert source.variance == pytest.approx(float(images.var(0, correction=0).mean()), rel=1e-4)


def test_each_call_takes_its_own_split_unless_images_are_given():
    model, images = exact(), splits()
    own, given = model.measure(draws=10, times=5), model.measure(images["train"], draws=10, times=5)
    assert np.array_equal(own.estimate().values, given.estimate().values) and len(own.times) < 10
    plan = model.plan(own, steps=4, trajectory="even")
    whole = model.bits_per_dim(None, plan, "unit", batch_size=7)
    assert np.allclose(whole.bits, model.bits_per_dim(images["test"], plan, "unit").bits, rtol=1e-10)
    assert (
        whole.bits.shape == (5, 60) and (model.bits_per_dim(None, plan, "unit", seed=1).bits[1] != whole.bits[1]).all()
    )
    row = model.plan(own, steps=4, data_term=True, draws=20, seed=0)
    assert row.cost == model.plan(own, steps=4, images=images["train"], data_term=True, draws=20).cost
    assert row.cost != model.plan(own, steps=4, data_term=True, draws=20, seed=1).cost


def test_planning_measures_on_images_that_the_seed_chooses(monkeypatch):
    """The numbers themselves, not only the noise."""
    chosen = []
    real = adpm.paths.planning_images
    monkeypatch.setattr(adpm.paths, "planning_images", lambda *args: chosen.append(args) or real(*args))
    model = exact()
    model.plan(model.measure(draws=10, times=5), steps=4, data_term=True, draws=20, seed=7)
    assert chosen == [(60, 20, 7)]


def test_x0_is_limited_to_the_range_unless_told_otherwise():
    process, x = adpm.linear(50), torch.full((1, 2), 3.0)
    for clip, limited in ((True, True), (False, False)):
        network = lambda x, t: torch.zeros_like(x)  # noqa: E731  x0 = x / alpha, far outside
        model = adpm.Model(network, process, data_range=(-1, 1), clip=clip)
        assert (float(model.denoise(x, 20.0).x0.max()) == 1.0) == limited


def test_rules_are_told_what_no_state_and_no_average_exceeds():
    """((b - a)/2)^2 for data in [a, b], and the variance of the data that moments were measured on."""
    told = []

    def spy(needs):
        told.append((needs.state_bound, needs.data_variance()))
        return RULES["small"].build(needs)

    families = {**MEMBERS, "rule": {"spy": Kind(spy, "a spy")}}
    model = exact(data_range=(-1.0, 2.0), families=families)
    moments = model.measure(draws=10, times=5)
    model.rule("spy", moments)
    assert told == [(2.25, moments.table.data_variance)]


def test_levels_are_the_models_unless_given():
    """Levels of a call hold for that call: 9 here and there are the same, and none is a density."""
    plain, nine = exact(data_range=(-1.0, 1.0)), exact(data_range=(-1.0, 1.0), levels=9)
    plan = plain.plan(steps=4, trajectory="even")
    call = {"images": None, "plan": plan, "rule": "unit", "decoder": "published"}
    found = [model.bits_per_dim(**call, levels=k).bits[0] for model in (plain, nine) for k in (None, 9, 0)]
    for a, b in ((1, 3), (1, 4), (0, 2), (2, 5)):
        assert np.array_equal(found[a], found[b])
    assert (found[0] != found[1]).all()
