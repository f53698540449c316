"""aDDIM and CNS: hand-computed steps, what they keep in exact worlds, refusals, and the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm import ideal
from adpm.basis import Matrix
from adpm.coordinates import Axes
from adpm.denoiser import Prediction
from adpm.draws import Source
from adpm.errors import UserError
from adpm.gaussian import InBasis
from adpm.kernel import reverse_kernel
from adpm.model import Model
from adpm.neighbours import ADDIM, ColouredNoise
from adpm.process import PROCESSES, Array
from adpm.solver import ReverseGaussian
from adpm.variance import Small
from tests.commands import go, refused

PROCESS = PROCESSES["linear"].build(200)
SHAPE = (1, 2, 2)
WORLD = ideal.diagonal_mixture([0.5, 0.5], [[-0.6] * 4, [0.6] * 4], [[0.2, 0.05, 0.01, 1e-3]] * 2, SHAPE)
STEPS = ((200.0, 120.0), (120.0, 40.0), (40.0, 3.0), (3.0, 0.0))


def silent(draw: int = 0) -> Tensor:
    raise AssertionError("a deterministic solver draws nothing")


def addim(variance: Any, inflation: float = 1.0) -> ADDIM:
    """aDDIM with Var_t given."""
    return ADDIM(PROCESS, lambda: SimpleNamespace(variance=lambda *_: variance), inflation)  # type: ignore[arg-type]


def coloured(residual: Any, variance: Any, basis: Any = None, **options: float) -> ColouredNoise:
    """CNS with r_f(t) and Var_f given."""
    known = SimpleNamespace(variance=np.array(variance), shape=SHAPE, basis=basis, curve=lambda _: residual)
    return ColouredNoise(Axes(lambda: known, PROCESS), **options)  # type: ignore[arg-type, return-value]


def constant(values: Any) -> Any:
    return lambda t: np.broadcast_to(np.array(values), (*np.shape(t), len(values))).copy()


def model_of(mixture: ideal.Mixture) -> Model:
    images = {"train": mixture.sample(2000, 0)}
    return Model.of(ideal.IdealDenoiser(mixture, PROCESS), PROCESS, images=images)


def mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


# aDDIM


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_without_the_residual_it_is_ddim(t: float, s: float) -> None:
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = ideal.IdealDenoiser(WORLD, PROCESS)
    ours = addim(lambda _: np.array(0.3), 0.0).step(denoise, x, t, s, silent)
    ddim = ReverseGaussian(PROCESS, Small(), 0.0).step(denoise, x, t, s, lambda draw=0: torch.zeros_like(x))
    torch.testing.assert_close(ours.x, ddim.x, rtol=1e-12, atol=1e-12)
    assert ours.covariance.values == 0.0 and ours.mean is ours.x


def test_a_step_by_hand() -> None:
    """Orthogonal x0_hat and eps_hat: |x_s|^2 is DDIM's and inflation d gain^2 Var_t more, along eps_hat."""
    x0, eps = torch.zeros(2, *SHAPE).double(), torch.zeros(2, *SHAPE).double()
    x0[:, 0, 0, 0], eps[0, 0, 1], eps[1, 0, 1, 1] = 2.0, 3.0, 0.5
    alpha, sigma = float(PROCESS.alpha(40)), float(PROCESS.sigma(40))
    gain = alpha - float(PROCESS.alpha(120) / PROCESS.sigma(120)) * sigma
    step = addim(lambda t: np.array(0.1 if t == 120.0 else np.nan), 0.75).step(
        lambda x, t: Prediction(x0, eps, eps), x0, 120.0, 40.0, silent
    )
    for got, square in zip(step.x, (18.0, 0.25), strict=True):
        wanted = 4.0 * alpha**2 + sigma**2 * square + 0.75 * 4 * gain**2 * 0.1
        assert float(got.square().sum()) == pytest.approx(wanted, rel=1e-12)
    assert float(step.x[1, 0, 0, 0]) == pytest.approx(2.0 * alpha) and float(step.x[1, 0, 1, 0]) == 0.0


def test_the_last_step_is_x0_and_no_noise_predicted_is_no_fault() -> None:
    x, zero = torch.ones(1, *SHAPE), torch.zeros(1, *SHAPE)
    at = lambda s: addim(lambda _: np.array(0.2)).step(lambda x, t: Prediction(x, zero, zero), x, 5.0, s, silent).x  # noqa: E731
    torch.testing.assert_close(at(0.0), x)
    torch.testing.assert_close(at(2.0), float(PROCESS.alpha(2)) * x)


@pytest.mark.parametrize(("variance", "t", "s"), [(0.3, 120.0, 60.0), (0.3, 30.0, 20.0), (1e-3, 150.0, 90.0)])
def test_the_norm_in_an_isotropic_gaussian(variance: float, t: float, s: float) -> None:
    """DDIM's state lacks gain^2 Var_t of E|x_s|^2/d; aDDIM adds it, and what x0_hat . eps_hat makes of that."""
    posterior = lambda at: 1.0 / (1.0 / variance + np.exp(PROCESS.log_snr(at)))  # noqa: E731
    denoise = ideal.IdealDenoiser(ideal.gaussian(0.0, variance, SHAPE), PROCESS)
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    x = torch.randn(50, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x *= np.sqrt((alpha**2 * variance + sigma**2) / mean_square(x))
    for state in x:  # every state of the typical length, so that the mean square is exact for each
        state *= np.sqrt((alpha**2 * variance + sigma**2) / mean_square(state))
    kernel = reverse_kernel(PROCESS, t, s, 0.0)
    lacks = float(kernel.gain**2 * posterior(np.array(t)))
    wanted = float(kernel.alpha_s**2) * variance + float(kernel.sigma_s**2)
    ddim, ours = (mean_square(addim(posterior, inflation).step(denoise, x, t, s, silent).x) for inflation in (0.0, 1.0))
    assert ddim == pytest.approx(wanted - lacks, rel=1e-9)
    square = mean_square(denoise(x, t).eps)
    longer = np.sqrt(float(kernel.sigma_s**2) + lacks / square) - float(kernel.sigma_s)
    cross = 2.0 * float(kernel.alpha_s) * longer * alpha / sigma * float(posterior(np.array(t)))
    assert ours == pytest.approx(wanted + cross, rel=1e-9)
    if variance < 0.01:  # x0_hat is as good as nothing: the norm is kept
        assert abs(ours - wanted) < 0.03 * lacks


def test_few_steps_have_more_spread_than_ddims() -> None:
    model = model_of(WORLD)
    moments = model.measure(draws=200, times=20)
    plan = model.plan(moments, steps=5, trajectory="log_snr")
    ours, ddim = (model.sample(plan, n=400, solver="addim", inflation=f) for f in (0.75, 0.0))
    torch.testing.assert_close(ddim, model.sample(plan, n=400, rule="small", eta=0.0), rtol=1e-5, atol=1e-5)
    assert mean_square(ddim) < mean_square(ours)


# CNS


def test_a_flat_table_is_the_plain_reverse_gaussian() -> None:
    """Errors that are one share of every variance leave beta-tilde; so does a large divider."""
    kernel = reverse_kernel(PROCESS, 120.0, 40.0, 0.6)
    spread = np.array([1.0, 0.5, 0.1, 0.02])
    for rule in (
        coloured(constant(0.3 * spread), spread),
        coloured(constant(spread / [1, 2, 3, 4]), spread, power=0.0),
    ):
        np.testing.assert_allclose(rule(kernel, None).values, np.full((1, *SHAPE), float(kernel.lambda2)), rtol=1e-12)
    far = coloured(constant([0.1, 0.01, 1e-3, 1e-3]), spread, divider=1e9)
    np.testing.assert_allclose(np.ravel(far(kernel, None).values), float(kernel.lambda2), rtol=1e-8)
    assert np.all(np.asarray(far(reverse_kernel(PROCESS, 120.0, 40.0, 0.0), None).values) == 0.0)


def test_shares_by_hand() -> None:
    """1 - P = 1/4, 1/2, and 1 where the error exceeds the variance or there is none."""
    rule = coloured(constant([0.25, 0.1, 0.3, 1e-4]), [1.0, 0.2, 0.2, 0.0])
    kernel = reverse_kernel(PROCESS, 120.0, 40.0)
    found = rule(kernel, None)
    assert isinstance(found, InBasis) and not rule.state_dependent
    wanted = np.array([0.25, 0.5, 1.0, 1.0]) / 0.6875
    np.testing.assert_allclose(np.ravel(found.values), float(kernel.lambda2) * wanted, rtol=1e-12)
    tuned = coloured(constant([0.25, 0.1, 0.3, 1e-4]), [1.0, 0.2, 0.2, 0.0], power=1.0, divider=2.0, energy=0.9)
    share = np.array([0.625, 0.75, 1.0, 1.0]) ** 2
    np.testing.assert_allclose(
        np.ravel(tuned(kernel, None).values), float(kernel.lambda2) * 0.81 * share / share.mean(), rtol=1e-12
    )


def test_energy_is_that_of_the_white_noise_at_every_time() -> None:
    curve = lambda t: 1.0 / (1.0 / np.array([1.0, 0.1, 0.01, 1e-3]) + np.exp(PROCESS.log_snr(t))[..., None])  # noqa: E731
    rule = coloured(curve, [1.0, 0.1, 0.01, 1e-3])
    for t, s in STEPS[:3]:
        kernel = reverse_kernel(PROCESS, t, s)
        values = np.ravel(rule(kernel, None).values)
        assert values.mean() == pytest.approx(float(kernel.lambda2), rel=1e-12)
        assert (np.diff(values) > 0).all(), "what varies least is resolved last"


def test_noise_is_coloured_along_the_basis() -> None:
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    residual, spread = np.array([0.5, 0.2, 0.1, 0.02]), np.array([1.0, 0.3, 0.11, 0.02])
    rule = coloured(constant(residual), spread, Matrix(torch.from_numpy(axes.copy())))
    units = torch.eye(4, dtype=torch.float64).reshape(4, *SHAPE)
    kernel = reverse_kernel(PROCESS, 120.0, 40.0)
    root = rule(kernel, None).draw(torch.zeros_like(units), units).flatten(1).numpy()
    share: Array = residual / spread
    np.testing.assert_allclose(
        root @ root.T, float(kernel.lambda2) * (axes * (share / share.mean())) @ axes.T, atol=1e-12
    )


def test_by_name_on_measured_moments() -> None:
    model = model_of(WORLD)
    moments = model.measure(draws=100, times=12, basis="pca")
    plan = model.plan(moments, steps=4)
    for options in ({"rule": "cns"}, {"rule": model.rule("cns", moments, power=0.75, divider=1.73, energy=0.98)}):
        assert bool(torch.isfinite(model.sample(plan, n=8, **options)).all())
    bits = {rule: model.bits_per_dim(WORLD.sample(200, 1), plan, rule=rule).total.mean for rule in ("cns", "spectral")}
    assert np.isfinite(bits["cns"]) and bits["spectral"] < bits["cns"], "nothing that is diagonal there is better"


# Refusals and the command line


def test_what_is_missing_is_told() -> None:
    model = model_of(WORLD)
    bare = model.plan(steps=3, trajectory="even")
    with pytest.raises(UserError, match="solver 'addim' needs moments: moments = model.measure"):
        model.sample(bare, n=2, solver="addim")
    scalar = model.plan(model.measure(Source.of(lambda i: model.images["train"][i], 2000), 20, 5), 3, "even")
    with pytest.raises(UserError, match="rule 'cns' needs moments per coordinate"):
        model.sample(scalar, n=2, rule="cns")
    with pytest.raises(UserError, match="`inflation` = -1"):
        model.sample(scalar, n=2, solver="addim", inflation=-1)
    with pytest.raises(UserError, match="has no option `tilt`; its options: power, divider, energy"):
        model.rule("cns", scalar.moments, tilt=0.15)


FEW = ("moments.times=12", "moments.draws=40", "trajectory.steps=3", "trajectory.name=even", "sampling.samples=4")


@pytest.mark.parametrize(
    ("chosen", "option"),
    [("sampling.solver=addim", "sampling.inflation=0.5"), ("rule.name=cns", "rule.power=0.75")],
)
def test_from_the_command_line(tmp_path: Path, chosen: str, option: str) -> None:
    name = chosen.split("=")[1]
    assert go(tmp_path / "run", "toy", "sample", *FEW, chosen) == 0
    assert go(tmp_path / "run", "toy", "sample", *FEW, chosen, option) == 0
    folders = list((tmp_path / "run" / "samples").glob(f"{name}-even-K3*"))
    assert len(folders) == 2 and len(list((tmp_path / "cache").glob("moments-*.npz"))) == 1
    one, other = (np.load(folder / "samples.npy") for folder in folders)
    assert one.shape == (4, *one.shape[1:]) and not np.array_equal(one, other)


def test_refused_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, tmp_path / "run", "toy", "sample", *FEW, "sampling.inflation=0.5")
    assert "config.sampling.inflation = 0.5 does not go with config.sampling.solver = 'reverse_gaussian'" in told
    told = refused(capsys, tmp_path / "run", "toy", "sample", *FEW, "rule.name=cns", "rule.divider=0.5")
    assert "config.rule.divider = 0.5 must be a number of at least 1" in told
    told = refused(capsys, tmp_path / "run", "toy", "sample", *FEW, "sampling.solver=addim", "moments.draws=1")
    assert "config.moments.draws" in told
