"""Objectives of heads and learned variances: published values, exact minimisers, gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.basis import Pixels
from adpm.denoiser import Prediction, clipped, per_sample
from adpm.errors import UserError
from adpm.ideal import IdealDenoiser, diagonal_mixture
from adpm.kernel import reverse_kernel
from adpm.likelihood import Levels
from adpm.objective import Objective, ObjectiveNeeds, eps_matching, probed
from adpm.parametrisation import eps_from_x0, x0_from_eps
from adpm.process import PROCESSES, DiscreteProcess, Process
from adpm.scale import Scale
from covariance.objective import OBJECTIVES, relative, residual, squared_noise
from covariance.relative import FLOOR, relative_factor
from covariance.second_output import second_output
from covariance.variational import StepBound
from sde.process import PROCESSES as SDES
from tests.goldens import RTOL, golden, rel

LEVELS = Levels(256, -1.0, 1.0)


def tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float64)


def predict(process: Process, x0: Tensor, eps: Tensor, t: np.ndarray, eps_network: Tensor, head: Tensor) -> Prediction:
    """What a denoiser with these outputs says about x_t."""
    alpha, sigma = per_sample(process.alpha(t), x0), per_sample(process.sigma(t), x0)
    return Prediction(x0_from_eps(alpha * x0 + sigma * eps, eps_network, alpha, sigma), eps_network, eps_network, head)


def needs(process: Process, levels: Levels = LEVELS) -> ObjectiveNeeds:
    return ObjectiveNeeds(process, levels, lambda: lambda t: np.ones_like(t), lambda: flat_scale((1, 2, 2)))


def flat_scale(shape: tuple[int, ...], variance: float = 1.0) -> Scale:
    """One variance for all pixels and times."""
    return Scale(np.array([40.0, -40.0]), np.full((2, math.prod(shape)), variance), Pixels(), "identity", shape)


# ------------------------------------------------------------------------------------------ published values


def published_heads(time: str) -> tuple[Process, np.ndarray]:
    z = golden("losses")
    if time == "dt":
        return PROCESSES["linear"].build(1000), z["n"].astype(np.float64)
    low, high = z["sde_beta_min_max"]
    return SDES["vp"].build(steps=1000, t_min=float(z["t_init"]), beta_min=float(low), beta_max=float(high)), z["ct_t"]


@pytest.mark.parametrize("time", ["dt", "ct"])
@pytest.mark.parametrize(
    ("objective", "head", "key"),
    [
        (squared_noise, "eps2_pred", "dsdm__eps_eps2__ddm"),
        (residual, "epsc_pred", "dsdm_err__ddm"),
        (eps_matching, "epsc_pred", "dsm"),
    ],
)
def test_head_losses_are_the_published_ones(time: str, objective: Objective, head: str, key: str) -> None:
    """Ours are means over elements; theirs are sums, except the continuous noise-matching loss, which is a mean."""
    z = golden("losses")
    process, t = published_heads(time)
    x0, eps = tensor(z["x0"]), tensor(z["eps"])
    prediction = predict(process, x0, eps, t, tensor(z["eps_pred"]), tensor(z[head]))
    published = z[f"{time}_{key}"] / (1 if (time, key) == ("ct", "dsm") else math.prod(x0.shape[1:]))
    assert rel(objective(prediction, x0, eps, t), published) < RTOL


def test_published_states_are_ours() -> None:
    z = golden("losses")
    for time, key in (("dt", "dt_xn"), ("ct", "ct_xt")):
        process, t = published_heads(time)
        x0, eps = tensor(z["x0"]), tensor(z["eps"])
        x = per_sample(process.alpha(t), x0) * x0 + per_sample(process.sigma(t), x0) * eps
        assert rel(x, z[key]) < RTOL


@pytest.mark.parametrize(
    ("objective", "head", "key"),
    [(squared_noise, "eps2_pred", "dt_dsdm_eps_eps2"), (residual, "epsc_pred", "dt_dsdm_err")],
)
def test_head_gradients_are_the_published_ones(objective: Objective, head: str, key: str) -> None:
    """Of the batch mean of the summed loss; the first output hears of noise matching alone."""
    z = golden("losses")
    process, t = published_heads("dt")
    x0, eps = tensor(z["x0"]), tensor(z["eps"])
    first, second = tensor(z["eps_pred"]).requires_grad_(), tensor(z[head]).requires_grad_()
    prediction = predict(process, x0, eps, t, first, second)
    both = eps_matching(prediction, x0, eps, t) + objective(prediction, x0, eps, t)
    (both.mean() * math.prod(x0.shape[1:])).backward()
    assert rel(first.grad, z[f"grad__{key}__head1"]) < RTOL
    assert rel(second.grad, z[f"grad__{key}__head2"]) < RTOL


def improved_ddpm() -> tuple[Process, dict[str, Tensor], np.ndarray]:
    """I1's 40 steps; the published code counts steps from 0."""
    z = golden("iddpm")
    out = tensor(z["model_out"])
    arrays = {"x0": tensor(z["x0"]), "eps": tensor(z["eps"]), "eps_network": out[:, :3], "v": out[:, 3:]}
    return DiscreteProcess(z["betas"]), arrays, z["t"] + 1.0


def test_learned_variance_and_bound_are_improved_ddpms() -> None:
    z = golden("iddpm")
    process, a, t = improved_ddpm()
    bound = StepBound(process, LEVELS)
    assert rel(bound.log_variance(a["v"], t), z["log_var"]) < RTOL
    assert rel(bound(a["v"], a["eps_network"], a["x0"], a["eps"], t), z["vb"]) < RTOL
    prediction = predict(process, a["x0"], a["eps"], t, a["eps_network"], a["v"])
    assert rel(eps_matching(prediction, a["x0"], a["eps"], t), z["mse"]) < RTOL
    for name in ("hybrid", "vlb"):
        loss = OBJECTIVES[name].build(needs(process))(prediction, a["x0"], a["eps"], t)
        assert rel(loss, z[f"loss_{name}"]) < RTOL
    kernel = reverse_kernel(process, t, t - 1)

    def mean(x0: Tensor, eps: Tensor) -> Tensor:
        return per_sample(kernel.alpha_s, x0) * x0 + per_sample(kernel.eps_scale, x0) * eps

    assert rel(mean(a["x0"], a["eps"]), z["q_mean"]) < RTOL
    x = per_sample(process.alpha(t), a["x0"]) * a["x0"] + per_sample(process.sigma(t), a["x0"]) * a["eps"]
    assert rel(x, z["x_t"]) < RTOL


def test_hybrid_and_vlb_are_the_published_codes() -> None:
    """`patched64`: the published code without its cast of the coefficients to float32; linear schedule, N = 1000."""
    z = golden("lhybrid_iddpm")
    process, t = PROCESSES["linear"].build(1000), z["n"].astype(np.float64)
    x0, eps, v, first = (tensor(z[key]) for key in ("x0", "eps", "v", "eps_pred"))
    prediction = predict(process, x0, eps, t, first, v)
    vb = StepBound(process, LEVELS)(v, first, x0, eps, t)
    for name in ("RESCALED_MSE", "MSE"):
        assert rel(vb, z[f"{name}__patched64__vb"]) < RTOL
    assert rel(vb, z["KL__patched64__loss"]) < RTOL
    assert (
        rel(OBJECTIVES["hybrid"].build(needs(process))(prediction, x0, eps, t), z["RESCALED_MSE__patched64__loss"])
        < RTOL
    )
    assert (
        rel(OBJECTIVES["vlb"].build(needs(process))(prediction, x0, eps, t), z["RESCALED_KL__patched64__loss"]) < RTOL
    )
    assert rel(StepBound(process, LEVELS).log_variance(v, t).exp(), z["p_mean_variance__patched64__variance"]) < RTOL


def test_hybrid_gradients_are_the_published_ones() -> None:
    """I3: the bound reaches v alone; at the network's output the gradient of eps is that of L_simple."""
    z = golden("lhybrid_iddpm")
    process, t = PROCESSES["linear"].build(1000), z["n"].astype(np.float64)
    x0, eps = tensor(z["x0"]), tensor(z["eps"])
    first, v = tensor(z["eps_pred"]).requires_grad_(), tensor(z["v"]).requires_grad_()

    def gradients(loss: Callable[[Prediction], Tensor]) -> tuple[Tensor | None, ...]:
        total = loss(predict(process, x0, eps, t, first, v)).mean()
        return torch.autograd.grad(total, (first, v), allow_unused=True)

    hybrid = gradients(lambda p: OBJECTIVES["hybrid"].build(needs(process))(p, x0, eps, t))
    simple = gradients(lambda p: eps_matching(p, x0, eps, t))
    bound = gradients(lambda p: StepBound(process, LEVELS)(v, p.eps_network, x0, eps, t))
    assert torch.equal(hybrid[0], simple[0]) and simple[1] is None
    torch.testing.assert_close(hybrid[1], process.steps / 1000 * bound[1], rtol=1e-12, atol=0)
    assert rel(hybrid[0], z["grad_hybrid_eps"]) < 1e-7 and rel(hybrid[1], z["grad_hybrid_v"]) < 1e-7
    vlb = gradients(lambda p: OBJECTIVES["vlb"].build(needs(process))(p, x0, eps, t))
    assert vlb[0].abs().min() > 0, "L_vlb trains the mean, too"


def test_weight_of_the_bound_follows_the_number_of_steps() -> None:
    """hybrid - simple = N/1000 vb, and vlb = N vb, at N = 40 where the factors are not 1 and 1000."""
    process, a, t = improved_ddpm()
    prediction = predict(process, a["x0"], a["eps"], t, a["eps_network"], a["v"])
    losses = {n: OBJECTIVES[n].build(needs(process))(prediction, a["x0"], a["eps"], t) for n in ("hybrid", "vlb")}
    vb = losses["hybrid"] - eps_matching(prediction, a["x0"], a["eps"], t)
    torch.testing.assert_close(losses["vlb"], 1000.0 * vb, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------ exact minimisers


@pytest.mark.parametrize("t", [30.0, 300.0, 800.0])
def test_minimisers_are_conditional_expectations(t: float) -> None:
    """At one x_t of an exact world, with x_0 drawn from its posterior: the mean loss is least, among all constants, at
    the closed-form E[eps^2|x], Var[eps|x] and Var[x_0|x]; and it is a minimum, not a saddle."""
    process = PROCESSES["linear"].build(1000)
    mixture = diagonal_mixture([0.3, 0.7], [[-0.6, 0.2], [0.5, -0.1]], [[0.02, 0.1], [0.05, 0.01]], (1, 1, 2))
    ideal = IdealDenoiser(mixture, process)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x = alpha * torch.tensor([[[[0.2, 0.05]]]], dtype=torch.float64) + 0.3 * sigma
    # the posterior given x: responsibilities, and Gaussians of variance l sigma^2 / (alpha^2 l + sigma^2)
    spread = alpha**2 * mixture.spectrum + sigma**2
    delta = x.reshape(1, -1) - alpha * mixture.means
    log_weight = mixture.weights.log() - 0.5 * (delta.square() / spread + spread.log()).sum(1)
    generator = torch.Generator().manual_seed(0)
    n = 400_000
    k = torch.multinomial(torch.softmax(log_weight, 0), n, replacement=True, generator=generator)
    centre = mixture.means + alpha * mixture.spectrum / spread * delta
    z = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    x0 = (centre[k] + z * (mixture.spectrum * sigma**2 / spread)[k].sqrt()).reshape(n, 1, 1, 2)
    eps = eps_from_x0(x.expand(n, -1, -1, -1), x0, alpha, sigma)
    exact, times = ideal(x, t), np.full(n, t)
    variance = ideal.variance(x, t)
    vbar = 0.8 * float(variance.mean())  # any positive scale
    inverse = torch.log(torch.expm1((variance / vbar - FLOOR) / (1 - FLOOR))) - math.log(math.e - 1)
    torch.testing.assert_close(relative_factor(inverse), variance / vbar)
    cases = {
        "sn": (squared_noise, ideal.squared_noise(x, t)),
        "npr": (residual, (alpha / sigma) ** 2 * variance),
        "relative": (relative(lambda t: np.full(len(t), vbar)), inverse),
    }
    for name, (objective, minimiser) in cases.items():
        head = minimiser.clone().requires_grad_()

        def mean_loss(
            offset: float = 0.0, objective: Objective = objective, head: Tensor = head
        ) -> tuple[Tensor, Tensor]:
            shown = (head + offset).expand(n, -1, -1, -1)
            prediction = Prediction(*(p.expand(n, -1, -1, -1) for p in (exact.x0, exact.eps, exact.eps_network)), shown)
            losses = objective(prediction, x0, eps, times)
            return losses.mean(), losses.std() / math.sqrt(n)

        least, _ = mean_loss()
        (slope,) = torch.autograd.grad(least, head)
        scale = float(minimiser.abs().mean())
        error = slope_error(objective, exact, minimiser, x0, eps, times)
        assert torch.all(slope.abs() < 4.5 * error), (name, slope, error)
        for offset in (-0.3 * scale, 0.3 * scale):
            assert mean_loss(offset)[0] > least, (name, offset)


def slope_error(
    objective: Objective, exact: Prediction, minimiser: Tensor, x0: Tensor, eps: Tensor, times: np.ndarray
) -> Tensor:
    """Standard error of the mean over draws of the loss's gradient with respect to the head."""
    n = len(x0)
    head = minimiser.expand(n, -1, -1, -1).clone().requires_grad_()
    first = (p.expand(n, -1, -1, -1) for p in (exact.x0, exact.eps, exact.eps_network))
    objective(Prediction(*first, head), x0, eps, times).sum().backward()
    assert head.grad is not None
    return head.grad.std(0, keepdim=True) / math.sqrt(n)


def test_relative_starts_at_the_analytic_scalar_and_stays_finite() -> None:
    assert float(relative_factor(torch.zeros(1, dtype=torch.float64))) == pytest.approx(1.0, abs=1e-14)
    h = torch.tensor([-1e4, -200.0, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    q = relative_factor(h)
    assert float(q.detach().min()) == pytest.approx(FLOOR) and torch.all(torch.diff(q) >= 0)
    loss = q.log() + 1e-3 / q
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(h.grad).all()


def test_relative_at_a_head_of_zeros_is_the_residual_in_units_of_the_variance() -> None:
    """Loss = mean r^2 / Var_t, with the clipped x0_hat, at different times in one batch."""
    process = PROCESSES["linear"].build(1000)
    t = np.array([1.0, 400.0, 1000.0])
    variance = np.array([1e-4, 0.3, 0.9])
    x0, eps = (torch.randn(3, 1, 2, 2, dtype=torch.float64) for _ in range(2))
    raw = predict(process, x0, eps, t, 1.1 * eps, torch.zeros_like(x0))
    alpha, sigma = per_sample(process.alpha(t), x0), per_sample(process.sigma(t), x0)
    x = alpha * x0 + sigma * eps
    prediction = clipped(x, raw.x0, raw.eps, raw.head, alpha, sigma, (-1.0, 1.0), lambda x, x0, eps, a, s: eps)
    assert (prediction.x0 != raw.x0).any()
    loss = relative(lambda t: variance)(prediction, x0, eps, t)
    expected = (x0 - prediction.x0).square().flatten(1).mean(1) / torch.as_tensor(variance)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------ refusals


def test_relative_refuses_a_variance_that_is_not_positive() -> None:
    x0 = torch.zeros(2, 1, 2, 2)
    with pytest.raises(UserError, match=r"Var_t, which is -0\.5 at t = 7.*`rule.estimator` = 'residual'"):
        relative(lambda t: np.array([1.0, -0.5]))(Prediction(x0, x0, x0, x0), x0, x0, np.array([3.0, 7.0]))


@pytest.mark.parametrize("name", ["hybrid", "vlb"])
def test_the_bound_is_for_discrete_processes(name: str) -> None:
    with pytest.raises(UserError, match=r"'hybrid' and 'vlb' bound the steps of a discrete process"):
        OBJECTIVES[name].build(needs(SDES["vp"].build(steps=10)))
    with pytest.raises(UserError, match=r"`process.steps` = 1"):
        OBJECTIVES[name].build(needs(DiscreteProcess([0.5])))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objectives_need_their_second_output(name: str) -> None:
    x0 = torch.zeros(2, 1, 2, 2)
    objective = OBJECTIVES[name].build(needs(DiscreteProcess([0.1] * 10)))
    with pytest.raises(UserError, match="reads a network's second output, but there is none"):
        objective(Prediction(x0, x0, x0, None), x0, x0, np.array([1.0, 2.0]))


@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
def test_hessian_matching_is_least_at_the_posterior_variance(name: str) -> None:
    """Over all signs the gradient at Var[eps | x_t] is zero, whatever the state; the slopes are those of the mean."""
    process = {**PROCESSES, **SDES}[name].build()
    patterns = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 2)
    data = diagonal_mixture([0.3, 0.7], [[-0.5, 0.2, 0.1, 0.0], [0.4, -0.1, 0.3, 0.2]], [0.05, 0.2], (1, 2, 2))
    exact, t = IdealDenoiser(data, process), np.full(16, float(process.times[len(process.times) // 2]))
    x = (float(process.alpha(t[0])) * data.sample(1, 0)).expand(16, -1, -1, -1)
    signs, along = probed(exact, process, x, patterns, t)
    assert torch.equal(signs, patterns.roll(1, 0))
    head = (exact.variance(x, t[0]) * float(np.exp(process.log_snr(t[0])))).requires_grad_(True)
    off, objective = (head.detach() + 0.1).requires_grad_(True), OBJECTIVES["ocm"].build(needs(process))
    for own in (head, off):
        objective(replace(exact(x, t), head=own), x, patterns, t, signs, along).sum().backward()
    assert head.grad is not None and off.grad is not None
    assert head.grad.sum(0).abs().max() < 1e-6 * off.grad.sum(0).abs().min()


def test_slopes_want_signs_that_the_state_does_not_know() -> None:
    process = PROCESSES["linear"].build(200)
    exact, one = IdealDenoiser(diagonal_mixture([1.0], [[0.0]], [1.0], (1, 1, 1)), process), torch.zeros(1, 1, 1, 1)
    with pytest.raises(UserError, match=r"at least two examples .`batch_size`., and a network"):
        probed(exact, process, one, one, np.array([3.0]))


def test_a_head_of_another_shape_is_told() -> None:
    x0 = torch.zeros(2, 3, 2, 2)
    with pytest.raises(UserError, match=r"second output has shape \(2, 1, 2, 2\); one of shape \(2, 3, 2, 2\)"):
        second_output(Prediction(x0, x0, x0, x0[:, :1]))


def test_float32_is_enough_for_the_bound() -> None:
    """At every time of the linear and cosine schedules the float32 loss is within 1e-3 of float64's, ends included."""
    generator = torch.Generator().manual_seed(0)
    for name in ("linear", "cosine"):
        process = PROCESSES[name].build(1000)
        t = np.array([1.0, 2.0, 10.0, 500.0, 990.0, 1000.0])
        x0 = torch.randint(0, 256, (6, 1, 4, 4), generator=generator) / 127.5 - 1
        eps = torch.randn(x0.shape, generator=generator)
        first, v = (
            eps + 0.1 * torch.randn(x0.shape, generator=generator),
            0.3 * torch.randn(x0.shape, generator=generator),
        )
        single = StepBound(process, LEVELS)(v, first, x0, eps, t)
        double = StepBound(process, LEVELS)(v.double(), first.double(), x0.double(), eps.double(), t)
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-9)
