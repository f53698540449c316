"""The reverse kernel against the published DDPM and DDIM formulas, 50-digit arithmetic, and its own laws."""

from __future__ import annotations

from dataclasses import fields

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adpm.errors import UserError
from adpm.kernel import Kernel, reverse_kernel
from adpm.process import DiscreteProcess
from tests.goldens import RTOL, process, rel

ETAS = (0.0, 0.3, 0.5, 1.0)
COEFFICIENTS = [f.name for f in fields(Kernel) if f.name not in ("t", "s", "eta")]


def pairs(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(s, t) of every scale: neighbours, long jumps, the last step to the data."""
    grid = np.unique(np.concatenate([[0, 1, 2, 3, 5], np.geomspace(8, steps, 25).astype(int), [steps - 1]]))
    s, t = np.meshgrid(grid, grid, indexing="ij")
    neighbours = np.arange(1, steps + 1)
    keep = s < t
    return np.concatenate([neighbours - 1, s[keep]]), np.concatenate([neighbours, t[keep]])


@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000", "vpsde_1000", "linear_100"])
def test_published_ddpm(name: str) -> None:
    """mean = sqrt(A_s) b / B_t x0 + sqrt(a) B_s / B_t x, variance tilde-beta = b B_s / B_t; a = A_t/A_s, b = 1 - a.

    With eps re-derived from x0, the kernel's mean is gain x0 + eps_scale/sigma_t x.
    """
    p = process(name)
    s, t = pairs(p.steps)
    kernel = reverse_kernel(p, t, s, 1.0)
    a_s, a_t = p.alpha(s) ** 2, p.alpha(t) ** 2
    b_s, b_t = p.sigma(s) ** 2, p.sigma(t) ** 2
    skip_a, skip_b = a_t / a_s, 1 - a_t / a_s
    assert rel(kernel.gain, np.sqrt(a_s) * skip_b / b_t) < RTOL
    assert rel(kernel.eps_scale / kernel.sigma_t, np.sqrt(skip_a) * b_s / b_t) < RTOL
    assert rel(kernel.lambda2, skip_b * b_s / b_t) < RTOL
    assert rel(kernel.forward_variance, skip_b) < RTOL
    assert np.isposinf(kernel.snr_drop[s == 0]).all()


@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000", "vpsde_1000", "linear_100"])
@pytest.mark.parametrize("eta", ETAS)
def test_published_ddim(name: str, eta: float) -> None:
    """mean = sqrt(A_s) x0 + sqrt(B_s - lambda2) eps, lambda2 = eta^2 tilde-beta, and the factor of Cov[x_0]."""
    p = process(name)
    s, t = pairs(p.steps)
    kernel = reverse_kernel(p, t, s, eta)
    a_s, a_t = p.alpha(s) ** 2, p.alpha(t) ** 2
    b_s, b_t = p.sigma(s) ** 2, p.sigma(t) ** 2
    lambda2 = eta**2 * (1 - a_t / a_s) * b_s / b_t
    assert rel(kernel.alpha_s, np.sqrt(a_s)) < RTOL
    assert rel(kernel.lambda2, lambda2) < RTOL
    assert rel(kernel.eps_scale, np.sqrt(np.maximum(b_s - lambda2, 0))) < RTOL
    factor = (np.sqrt(a_s) - np.sqrt(np.maximum(b_s - lambda2, 0) * a_t / b_t)) ** 2
    assert rel(kernel.gain**2, factor) < RTOL


@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000", "vpsde_1000", "linear_4000", "cosine_4000"])
def test_only_snrs_matter_at_eta_1(name: str) -> None:
    """gain^2 / lambda2 = gamma_s - gamma_t at every step but the last."""
    p = process(name)
    s, t = pairs(p.steps)
    s, t = s[s > 0], t[s > 0]
    kernel = reverse_kernel(p, t, s, 1.0)
    np.testing.assert_allclose(kernel.gain**2 / kernel.lambda2, kernel.snr_drop, rtol=1e-13)
    gamma_s, gamma_t = np.exp(p.log_snr(s)), np.exp(p.log_snr(t))
    np.testing.assert_allclose(kernel.snr_drop, gamma_s - gamma_t, rtol=1e-10)


def exact(betas: np.ndarray, t: int, s: int, eta: mpmath.mpf) -> dict[str, mpmath.mpf]:
    """The kernel by its definition, in whatever precision mpmath works."""

    def squares(n: int) -> tuple[mpmath.mpf, mpmath.mpf]:
        a = mpmath.mpf(1)
        for beta in betas[:n]:
            a *= 1 - mpmath.mpf(float(beta))
        return a, 1 - a

    (a_s, b_s), (a_t, b_t) = squares(s), squares(t)
    forward = b_t - a_t / a_s * b_s
    lambda2 = eta**2 * forward * b_s / b_t
    eps_scale = mpmath.sqrt(b_s - lambda2)
    return {
        "alpha_s": mpmath.sqrt(a_s),
        "sigma_s": mpmath.sqrt(b_s),
        "alpha_t": mpmath.sqrt(a_t),
        "sigma_t": mpmath.sqrt(b_t),
        "forward_variance": forward,
        "lambda2": lambda2,
        "eps_scale": eps_scale,
        "gain": mpmath.sqrt(a_s) - mpmath.sqrt(a_t) * eps_scale / mpmath.sqrt(b_t),
        "snr_drop": a_s / b_s - a_t / b_t,
    }


@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000", "linear_4000"])
@pytest.mark.parametrize("eta", ETAS)
def test_full_precision(name: str, eta: float) -> None:
    """Every coefficient to 1e-12 where its textbook form is a difference of near-equal numbers.

    Neighbouring steps cancel in the gain and in the variances, the longest jumps in sigma_s^2 - lambda2.
    """
    p = process(name)
    assert isinstance(p, DiscreteProcess)
    neighbours = [(t - 1, t) for t in (2, 3, 10, 40, p.steps // 10, p.steps // 2, p.steps)]
    worst = dict.fromkeys(COEFFICIENTS, 0.0)
    with mpmath.workdps(50):
        for s, t in [*neighbours, (1, p.steps), (1, p.steps // 2), (5, p.steps - 1)]:
            kernel = reverse_kernel(p, t, s, eta)
            for field, value in exact(p.betas, t, s, mpmath.mpf(eta)).items():
                if value != 0:  # lambda2 at eta = 0
                    worst[field] = max(worst[field], float(abs(float(getattr(kernel, field)) / value - 1)))
                else:
                    assert getattr(kernel, field) == 0
    assert max(worst.values()) < 1e-12, worst


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-5, 0.99), min_size=2, max_size=30), st.just(0.0) | st.floats(1e-6, 1), st.data())
def test_marginals_are_kept(betas: list[float], eta: float, data: st.DataObject) -> None:
    """If x_t = alpha_t x0 + sigma_t eps, then x_s = mean(x0, eps) + sqrt(lambda2) z has q(x_s | x_0)'s moments.

    The mean's x0 coefficients add to alpha_s, and its two independent noises to sigma_s^2.
    """
    p = DiscreteProcess(betas)
    t = data.draw(st.integers(1, p.steps))
    s = data.draw(st.integers(0, t - 1))
    k = reverse_kernel(p, t, s, eta)
    np.testing.assert_allclose(k.gain + k.eps_scale * k.alpha_t / k.sigma_t, k.alpha_s, rtol=1e-11)
    np.testing.assert_allclose(k.eps_scale**2 + k.lambda2, k.sigma_s**2, rtol=1e-11)
    np.testing.assert_allclose(k.lambda2, eta**2 * k.forward_variance * k.sigma_s**2 / k.sigma_t**2, rtol=1e-11)
    assert k.forward_variance > 0 and k.gain > 0 and 0 <= k.lambda2 <= k.forward_variance


def test_last_step_lands_on_the_data() -> None:
    """At s = 0 the mean is x0_hat itself and the covariance Cov[x_0 | x_t], for every eta."""
    p = process("linear_100")
    for eta in ETAS:
        k = reverse_kernel(p, [1, 7, 100], 0, eta)
        np.testing.assert_array_equal(k.gain, 1.0)
        np.testing.assert_array_equal(k.alpha_s, 1.0)
        np.testing.assert_array_equal(k.lambda2, 0.0)
        np.testing.assert_array_equal(k.eps_scale, 0.0)
        np.testing.assert_allclose(k.forward_variance, p.sigma([1, 7, 100]) ** 2, rtol=1e-15)


@pytest.mark.parametrize("eta", ETAS)
def test_arrays_equal_scalars(eta: float) -> None:
    p = process("cosine_1000")
    s, t = pairs(p.steps)
    s, t = s[::17], t[::17]
    many = reverse_kernel(p, t, s, eta)
    for i in range(len(t)):
        one = reverse_kernel(p, int(t[i]), int(s[i]), eta)
        for field in COEFFICIENTS:
            assert getattr(one, field).shape == ()
            # numpy's vectorised exp and log may differ from the scalar ones in the last bit, expm1 of tiny numbers not
            np.testing.assert_allclose(getattr(many, field)[i], getattr(one, field), rtol=4e-16, atol=0)


def test_times_broadcast() -> None:
    """A column of t against a row of s gives the table of kernels that planning wants."""
    p = process("linear_100")
    table = reverse_kernel(p, np.array([[50], [80]]), np.array([[1, 20, 49]]), 0.5)
    for i, t in enumerate((50, 80)):
        for j, s in enumerate((1, 20, 49)):
            np.testing.assert_allclose(table.gain[i, j], reverse_kernel(p, t, s, 0.5).gain, rtol=4e-16)


@pytest.mark.parametrize(
    ("t", "s", "told"), [(5, 5, "t = 5 and s = 5"), (3, 5, "t = 3 and s = 5"), ([3, 4], [2, 4], "t = 4 and s = 4")]
)
def test_time_must_go_back(t: int | list[int], s: int | list[int], told: str) -> None:
    with pytest.raises(UserError, match="goes from t to an earlier s < t, got " + told):
        reverse_kernel(process("linear_100"), t, s)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), float("inf")])
def test_eta_outside_its_range_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match=rf"`eta` = {eta} must lie in \[0, 1\]"):
        reverse_kernel(process("linear_100"), 5, 4, eta)
