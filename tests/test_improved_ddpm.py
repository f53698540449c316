"""The learned interpolation of Improved DDPM: its optimum for Gaussian data, respacing, and what a head costs that was
trained on all steps and is used on few.

Data N(0, diag(w)) have Var[x_0 | x_t] = P = w / (1 + gamma_t w), and the optimal variance of a step t -> s is
lambda2 + gain^2 P, which the interpolation meets at

    v* = 2 log(1 + gain^2 P/lambda2) / log(forward_variance/lambda2) - 1
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from adpm.denoiser import Denoiser, Prediction
from adpm.errors import UserError
from adpm.kernel import Kernel, reverse_kernel, step_nats
from adpm.likelihood import first_posterior_variance
from adpm.process import Array, DiscreteProcess, Process
from adpm.solver import reverse_mean
from adpm.variance import Rule
from covariance.rules import Learned
from tests.goldens import golden, process, rel

WIDTHS = np.logspace(0, -2, 16)  # of the reference data


def posterior(p: Process, t: float, w: Array) -> Array:
    return w / (1.0 + np.exp(p.log_snr(t)) * w)


def best_head(kernel: Kernel, variance: Array) -> Array:
    """v* of a step."""
    excess = np.log1p(kernel.gain**2 * variance / kernel.lambda2)
    return 2.0 * excess / np.log(kernel.forward_variance / kernel.lambda2) - 1.0


def with_output(v: Array) -> Prediction:
    """A prediction whose head is v, one image of len(v) pixels."""
    head = torch.as_tensor(v).reshape(1, 1, 1, -1)
    return Prediction(torch.zeros_like(head), torch.zeros_like(head), torch.zeros_like(head), head)


def variance(rule: Rule, kernel: Kernel, v: Array) -> Array:
    return rule(kernel, with_output(v)).values.flatten().numpy()


def evenly(count: int, size: int = 1000) -> Array:
    """`count` of the steps 1..size, evenly strided, the first and the last among them."""
    return np.rint(np.arange(count) * (size - 1) / (count - 1)).astype(int) + 1


@pytest.mark.parametrize(
    ("n", "stated"),
    [
        (3, (0.9999, 0.995, 0.945)),
        (11, (0.999, 0.964, 0.664)),
        (101, (0.949, 0.033, -0.823)),
        (501, (0.625, -0.785, -0.978)),
    ],
)
def test_the_optimum_for_gaussian_data(n: int, stated: tuple[float, ...]) -> None:
    """v* as stated for pixel variances 0.8, 0.1, 0.01 (to the digits stated), met by the rule, least in expected KL."""
    p, w = process("linear_1000"), np.array([0.8, 0.1, 0.01])
    kernel, exact = reverse_kernel(p, n, n - 1), posterior(p, n, w)
    best, rule = best_head(kernel, exact), Learned(first_posterior_variance(p))
    np.testing.assert_allclose(best, stated, atol=5.1e-4)
    wanted = kernel.lambda2 + kernel.gain**2 * exact
    assert rel(variance(rule, kernel, best), wanted) < 1e-12
    tried = best + np.linspace(-0.02, 0.02, 41)[:, None]  # steps of 1e-3
    nats = np.stack([step_nats(kernel, variance(rule, kernel, v), exact) for v in tried])
    assert np.abs(tried[nats.argmin(0), np.arange(3)] - best).max() < 1e-3
    assert (kernel.lambda2 <= wanted).all() and (wanted <= kernel.forward_variance).all()


@cache
def total_cost(name: str, count: int, head: str) -> float:
    """Expected bound minus entropy, nats, on `count` evenly strided steps with an exact mean and an exact decoder.

    head: "every step": v* of the step t -> t - 1, as trained on all steps; "this step": v* of the step taken;
    "one number": the optimal isotropic variance instead.
    """
    p = process(name)
    rule = Learned(first_posterior_variance(p))

    def width(t: int, s: int) -> Array:
        kernel, exact = reverse_kernel(p, t, s), posterior(p, t, WIDTHS)
        if head == "one number":
            return np.full_like(WIDTHS, kernel.lambda2 + kernel.gain**2 * exact.mean())
        known = {"every step": reverse_kernel(p, t, t - 1), "this step": kernel}[head]
        return variance(rule, kernel, best_head(known, exact))

    path = evenly(count)
    nats = 0.5 * np.log(posterior(p, 1, WIDTHS) / WIDTHS).sum()  # data term minus entropy
    for s, t in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        nats += step_nats(reverse_kernel(p, t, s), width(t, s), posterior(p, t, WIDTHS)).sum()
    alpha2, sigma2 = float(p.alpha(1000)) ** 2, float(p.sigma(1000)) ** 2
    return float(nats + 0.5 * (alpha2 * WIDTHS + sigma2 - 1.0 - np.log(sigma2)).sum())


@pytest.mark.parametrize("count", [5, 25, 250, 1000])
@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000"])
def test_the_optimum_of_every_step_loses_nothing(name: str, count: int) -> None:
    assert abs(total_cost(name, count, "this step")) < 1e-5


# K -> gap in nats of a head trained on all steps, and of the optimal isotropic variance, as stated for 16 dimensions
GAPS = {
    ("linear_1000", 5): (816.0, 5.08),
    ("linear_1000", 10): (200.0, 2.94),
    ("linear_1000", 25): (15.0, 1.27),
    ("linear_1000", 50): (1.14, 0.65),
    ("linear_1000", 100): (0.087, 0.33),
    ("linear_1000", 250): (0.0027, 0.132),
    ("linear_1000", 1000): (0.0, 0.033),
    ("cosine_1000", 25): (2.08, 0.67),
    ("cosine_1000", 50): (0.133, 0.338),
}


@pytest.mark.parametrize(("name", "count"), GAPS)
def test_a_head_of_all_steps_is_not_optimal_on_few(name: str, count: int) -> None:
    """The gaps as stated; below 0.5 nats to 1e-3, else to the digits stated."""
    learned, isotropic = (total_cost(name, count, head) for head in ("every step", "one number"))
    for found, stated in zip((learned, isotropic), GAPS[name, count], strict=True):
        assert found == pytest.approx(stated, abs=1e-3 if stated < 0.5 else 5.1e-3, rel=5e-3 if stated > 1.2 else 0)
    assert (learned < isotropic) == (count >= {"linear_1000": 100, "cosine_1000": 50}[name])


@pytest.mark.parametrize("name", ["linear_1000", "cosine_1000"])
@pytest.mark.parametrize("count", [2, 10, 57])
def test_respacing_is_the_kernel_of_a_longer_step(name: str, count: int) -> None:
    """New betas 1 - abar_t/abar_s make a process of `count` steps; between its bounds lies our longer step."""
    p, kept = process(name), np.concatenate([[0], evenly(count)])
    abar = p.alpha(kept) ** 2
    short = DiscreteProcess(1.0 - abar[1:] / abar[:-1])
    v = np.linspace(-1.3, 1.2, 7)
    # 1 - abar_t/abar_s keeps some 1e-16/beta of relative precision
    for k in range(2, count + 1):
        ours = variance(Learned(1.0), reverse_kernel(p, kept[k], kept[k - 1]), v)
        kernel = reverse_kernel(short, k, k - 1)
        assert rel(variance(Learned(1.0), kernel, v), ours) < 1e-11
        beta, least = 1.0 - abar[k] / abar[k - 1], (1.0 - abar[k - 1]) / (1.0 - abar[k])
        f = (v + 1.0) / 2.0
        assert rel(np.exp(f * np.log(beta) + (1.0 - f) * np.log(beta * least)), ours) < 1e-9


def test_the_step_to_the_data_has_its_stated_lower_end() -> None:
    """lambda2 is 0 at s = 0; the published codes put Var[x_1 | x_2, x_0] in its place."""
    p = process("linear_1000")
    first, kernel = first_posterior_variance(p), reverse_kernel(p, 1, 0)
    ends = variance(Learned(first), kernel, np.array([-1.0, 1.0]))
    assert rel(ends, [first, float(p.sigma(1)) ** 2]) < 1e-14


def test_only_ddpm_has_a_forward_variance() -> None:
    p = process("linear_1000")
    with pytest.raises(UserError, match=r"'learned' goes with `eta` = 1 only, got `eta` = 0\.5"):
        Learned(1.0)(reverse_kernel(p, 500, 400, 0.5), with_output(np.zeros(2)))


IDDPM = golden("iddpm")


def test_the_stored_optimum() -> None:
    """v* for five pixel variances at five steps, t counted from 0."""
    p = process("linear_1000")
    for t, stored in zip(IDDPM["gauss_t"], IDDPM["gauss_vstar"], strict=True):
        kernel = reverse_kernel(p, t + 1, t)
        assert np.abs(best_head(kernel, posterior(p, t + 1, IDDPM["gauss_var"])) - stored).max() < 1e-8


def test_respaced_steps_of_the_released_code() -> None:
    """Kept steps, their betas, the labels that the network sees, mean and variance of the longer steps (float32)."""
    p = DiscreteProcess(IDDPM["betas"])
    kept = np.concatenate([[0], IDDPM["respace_use"] + 1])
    kernel = reverse_kernel(p, kept[1:], kept[:-1])
    assert rel(kernel.forward_variance, IDDPM["respace_betas"]) < 1e-12
    assert np.array_equal(kept[1:][IDDPM["respace_t"]] - 1, IDDPM["respace_model_t"])
    rule = Learned(float(reverse_kernel(p, kept[2], kept[1]).lambda2))
    for i, row in enumerate(IDDPM["respace_t"]):
        t, s = kept[row + 1], kept[row]
        step = reverse_kernel(p, t, s)
        outputs = torch.as_tensor(IDDPM["model_out"][i])[None].double()
        denoise = Denoiser(lambda x, label, outputs=outputs: outputs, p, clip=(-1.0, 1.0))
        prediction = denoise(torch.as_tensor(IDDPM["respace_x"][i])[None].double(), float(t))
        assert np.abs(reverse_mean(step, prediction)[0].numpy() - IDDPM["respace_mean"][i]).max() < 1e-4
        log_variance = np.log(rule(step, prediction).values[0].numpy())
        assert np.abs(log_variance - IDDPM["respace_logvar"][i]).max() < 1e-4
