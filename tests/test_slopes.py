"""One Jacobian-vector product a step: exact on Gaussian data along their axes, the stated sum elsewhere, counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adpm import ideal
from adpm.basis import Pixels
from adpm.denoiser import Counted
from adpm.errors import UserError
from adpm.guidance import Guided
from adpm.kernel import reverse_kernel
from adpm.model import Model
from adpm.process import DiscreteProcess
from adpm.scale import Scale
from covariance.slopes import OneProduct, Sloped
from tests.commands import go, the_file
from tests.test_spectral_head import AXES, FAMILIES, MIXED, SHAPE, WORLDS, D, at, covariances, scale_of, states

GAUSS_VARIANCE = np.geomspace(1.0, 1e-2, D)


def gauss() -> ideal.Mixture:
    columns = AXES.columns.numpy()
    return ideal.full_mixture([1.0], np.full((1, D), 0.2), (columns * GAUSS_VARIANCE @ columns.T)[None], SHAPE)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("world", WORLDS)
def test_gaussian_data_have_their_posterior_along_their_axes(world: str, fraction: float) -> None:
    """Whatever the signs, and whatever the units where nothing is averaged; in units of their own, if it is."""
    process, t = WORLDS[world], at(WORLDS[world], fraction)
    _, x = states(process, t)
    sloped = Sloped(ideal.IdealDenoiser(gauss(), process), process, AXES, seed=3)
    kernel = reverse_kernel(process, t, at(process, 0.02))
    rho2 = float(process.sigma(t) / process.alpha(t)) ** 2
    wanted = GAUSS_VARIANCE * rho2 / (GAUSS_VARIANCE + rho2)
    other = replace(scale_of(process), variance=np.stack([wanted * np.linspace(0.5, 2.0, D)] * 2))
    found = OneProduct(lambda: other, process, 0)(kernel, sloped(x, t))
    total = float(kernel.lambda2) + float(kernel.gain) ** 2 * wanted
    np.testing.assert_allclose(found.values.flatten(1), np.broadcast_to(total, (len(x), D)), rtol=5e-5)
    units = replace(scale_of(process), variance=np.stack([wanted, wanted]))
    averaged = OneProduct(lambda: units, process, 2)(kernel, sloped(x, t))
    np.testing.assert_allclose(averaged.values, found.values, rtol=5e-5)


def test_elsewhere_it_is_the_sum_over_pairs_of_axes() -> None:
    process, t = WORLDS["linear"], 80.0
    _, x = states(process, t)
    sloped = Sloped(ideal.IdealDenoiser(MIXED, process), process, AXES)
    signs = sloped.signs(t, x).flatten(1)
    c = AXES.columns.mT @ covariances(MIXED, x, float(process.alpha(t)), float(process.sigma(t))) @ AXES.columns
    wanted = signs * torch.einsum("bfg,bg->bf", c, signs.expand(len(x), -1))
    torch.testing.assert_close(sloped(x, t).head.flatten(1), wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(sloped.signs(t, x[:2]), sloped.signs(t, x)) and not torch.equal(
        sloped.signs(81.0, x), sloped.signs(t, x)
    )


def test_neighbours_are_those_of_the_datas_variance() -> None:
    """Coordinates 0 and 2 are next to each other there, and 1 is last; the least ratio is 1e-4."""
    process, shape = WORLDS["linear"], (1, 1, 3)
    ends, variances = process.log_snr(process.times[[1, -1]]), np.array([[1.0] * 3, [3.0, 1.0, 2.0]])
    scale = Scale(ends, variances, Pixels(), "identity", shape)
    x = torch.zeros(1, *shape, dtype=torch.float64)
    said = ideal.IdealDenoiser(ideal.gaussian(0.0, 1.0, shape), process)(x, 1.0)
    head = torch.tensor([2.0, -6.0, 4.0], dtype=torch.float64).reshape(1, *shape)
    kernel = reverse_kernel(process, 1.0, 0.0)
    found = OneProduct(lambda: scale, process, 1).posterior(kernel, replace(said, head=head)).values
    np.testing.assert_allclose(np.ravel(found), [3.0, 1e-4, 1e-4], rtol=1e-9)


def test_products_are_counted_and_a_guided_mean_is_refused() -> None:
    process, exact = WORLDS["linear"], ideal.IdealDenoiser(MIXED, WORLDS["linear"])
    counted = Counted(Sloped(exact, process, AXES))
    counted(states(process, 50.0)[1], 50.0)
    assert counted.calls == 3
    with pytest.raises(UserError, match="not a guided one"):
        Sloped(Guided(exact, exact, process, 2.0), process, AXES)


def test_a_name_is_enough_in_python() -> None:
    """The model differentiates its own denoiser for the rule: samples and bits of the two halves by hand."""
    process, images = DiscreteProcess(np.linspace(1e-3, 0.2, 40)), MIXED.sample(60, 4)
    plain = Model.of(ideal.IdealDenoiser(MIXED, process), process, families=FAMILIES)
    moments = plain.measure(images, 30, 8, basis="pca")
    plan = plain.plan(moments, steps=4, trajectory="even")
    assert moments.spectrum is not None
    halves = Model.of(Sloped(plain.denoise, process, moments.spectrum.basis), process)
    rule = OneProduct(lambda: moments.spectrum.scale(process), process)
    assert torch.equal(plain.sample(plan, "one_jvp", n=3), halves.sample(plan, rule, n=3))
    found = [m.bits_per_dim(images[:4], plan, r).bits for m, r in ((plain, "one_jvp"), (halves, rule))]
    np.testing.assert_array_equal(*found)


def test_samples_say_how_many_calls_they_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exact mean on toy data: three calls at each of four steps."""
    monkeypatch.chdir(Path(__file__).parent.parent)
    few = ["rule.name=one_jvp", "moments.basis=pca", "moments.draws=16", "moments.times=8", "trajectory.steps=4"]
    assert go(tmp_path, "toy", "sample", *few, "sampling.samples=6", "sampling.batch_size=4") == 0
    protocol = json.loads(the_file(tmp_path, "samples/*/protocol.json").read_text())
    assert protocol["own"]["rule.neighbours"] == 8
    assert "12 network calls" in capsys.readouterr().out
