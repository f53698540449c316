"""Rules with a second output: exact heads give the exact posterior and the exact bound, on every process.

Besides: the two halves of a rule, limits, averages, and what builders refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor

from adpm import ideal
from adpm.basis import Pixels
from adpm.denoiser import Denoise, Prediction
from adpm.errors import UserError
from adpm.families import built
from adpm.gaussian import Covariance
from adpm.kernel import reverse_kernel
from adpm.process import Process
from adpm.run.checks import check_method
from adpm.run.families import house
from adpm.run.heads import SecondOutput
from adpm.scale import Scale
from adpm.variance import RULES as CORE_RULES
from adpm.variance import Averaged, Bounded, LastStepCap, PosteriorRule, Rule, RuleNeeds
from covariance.relative import FLOOR
from covariance.rules import RULES, Learned, NoiseResidual, Relative, SquaredNoise
from sde.process import PROCESSES
from tests.goldens import process, rel, with_head

SHAPE, D = (1, 2, 3), 6
WORLDS: dict[str, Process] = {"linear": process("linear_1000")} | {
    name: kind.build() for name, kind in PROCESSES.items()
}
STEPS = [(0.05, 0.03), (0.4, 0.35), (0.9, 0.2), (1.0, 0.95)]  # in units of the last time
SCALE = Scale(np.array([30.0, -30.0]), np.geomspace(1.0, 0.01, 2 * D).reshape(2, D), Pixels(), "identity", SHAPE)
VAR = lambda t: 0.3 + 0.0 * np.asarray(t)  # noqa: E731  any Var_t will do for exact relative heads


def times(p: Process, step: tuple[float, float]) -> tuple[float, float]:
    """(t, s) at these fractions of the reference times."""
    t, s = (float(p.times[max(1, round(f * p.steps))]) for f in step)
    return t, s


def before_pure_noise(name: str, p: Process, step: tuple[float, float]) -> tuple[float, float]:
    """Where alpha is 0, heads about eps say nothing of x0."""
    return (min(step[0], 0.99), step[1]) if p.pure_noise and name in ("sn", "npr") else step


def mixture() -> ideal.Mixture:
    rng = np.random.default_rng(3)
    return ideal.diagonal_mixture(
        [0.3, 0.5, 0.2], rng.uniform(-0.8, 0.8, (3, D)), rng.uniform(1e-3, 0.3, (3, D)), SHAPE
    )


def states(world: ideal.Mixture, p: Process, t: float, n: int = 5) -> Tensor:
    noise = torch.randn(n, *world.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return float(p.alpha(t)) * world.sample(n, 2) + float(p.sigma(t)) * noise


Head = Callable[[ideal.IdealDenoiser, Process], Callable[[Tensor, float], Tensor]]


def inverse_factor(q: Tensor) -> Tensor:
    """The head whose relative_factor is q."""
    y = (q - FLOOR) / (1.0 - FLOOR)
    return y + torch.log(-torch.expm1(-y)) - math.log(math.e - 1.0)


# rule -> (the rule, its exact head)
EXACT: dict[str, tuple[PosteriorRule, Head]] = {
    "sn": (SquaredNoise(), lambda exact, p: exact.squared_noise),
    "npr": (
        NoiseResidual(),
        lambda exact, p: lambda x, t: exact.variance(x, t) * float(p.alpha(t) / p.sigma(t)) ** 2,
    ),
    "relative": (
        Relative(VAR),
        lambda exact, p: lambda x, t: inverse_factor(exact.variance(x, t) / float(VAR(t))),
    ),
}


def exact_world(name: str, p: Process, data: ideal.Mixture) -> tuple[PosteriorRule, ideal.IdealDenoiser, Denoise]:
    rule, head = EXACT[name]
    exact = ideal.IdealDenoiser(data, p)
    return rule, exact, with_head(exact, head(exact, p))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_heads_give_the_posterior_variance(name: str, world: str, step: tuple[float, float]) -> None:
    p, data = WORLDS[world], mixture()
    t, s = times(p, before_pure_noise(name, p, step))
    rule, exact, denoise = exact_world(name, p, data)
    x = states(data, p, t)
    kernel = reverse_kernel(p, t, s)
    expected = exact.variance(x, t)
    # sn subtracts numbers of order 1 to get (alpha/sigma)^2 Var
    rtol = 1e-12 + (1e-14 * float(p.sigma(t) / p.alpha(t)) ** 2 / float(expected.min()) if name == "sn" else 0.0)
    assert rtol < 1e-6
    assert rel(rule.posterior(kernel, denoise(x, t)).values, expected) < rtol
    wanted = float(kernel.lambda2) + float(kernel.gain) ** 2 * expected
    assert rel(rule(kernel, denoise(x, t)).values, wanted) < rtol


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", EXACT)
def test_gaussian_data_are_reversed_exactly(name: str, world: str, step: tuple[float, float]) -> None:
    """The variance is Var[x_s | x_t] of the joint Gaussian, and the expected term I(x_s; x_0 | x_t)."""
    p, v = WORLDS[world], np.geomspace(1.0, 0.01, D)
    t, s = times(p, before_pure_noise(name, p, step))
    data = ideal.gaussian(0.2, v, SHAPE)
    rule, exact, denoise = exact_world(name, p, data)
    kernel, x = reverse_kernel(p, t, s), states(data, p, t)
    covariance = rule(kernel, denoise(x, t))
    alpha, sigma = (np.array([float(f(u)) for u in (s, t)]) for f in (p.alpha, p.sigma))
    total = alpha[:, None] ** 2 * v + sigma[:, None] ** 2  # Var x_s, Var x_t
    joint = total[0] - (alpha[1] / alpha[0] * total[0]) ** 2 / total[1]
    assert rel(covariance.values.flatten(1), np.broadcast_to(joint, (len(x), D))) < 1e-8
    # x_0 - x0_hat has variance P; a term is linear in its square, so its mean is the term at sqrt(P)
    off = float(kernel.gain) * exact.variance(x, t).sqrt()
    nats = covariance.kl_from_isotropic(float(kernel.lambda2), off)
    assert rel(nats, np.full(len(x), 0.5 * np.log(joint / float(kernel.lambda2)).sum())) < 1e-7


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", EXACT)
def test_the_expected_term_of_a_mixture_by_quadrature(name: str, world: str) -> None:
    """E[term | x_t] over x_0 | x_t is 1/2 log(w/lambda2), its least value, and rises when the head is off."""
    p = WORLDS[world]
    t, s = times(p, (0.4, 0.35))
    data = ideal.diagonal_mixture([0.35, 0.65], [[-0.6], [0.7]], [0.03, 0.05], (1, 1, 1))
    rule, exact, denoise = exact_world(name, p, data)
    kernel, x = reverse_kernel(p, t, s), states(data, p, t, 4)
    grid = torch.linspace(-4, 4, 40001, dtype=torch.float64)
    mean, variance = data.means[:, 0, None], data.spectrum[:, 0, None]
    density = (data.weights[:, None] * torch.exp(-((grid - mean) ** 2) / (2 * variance)) / variance.sqrt()).sum(0)
    prediction = denoise(x, t)
    covariance = rule(kernel, prediction)
    for i in range(len(x)):
        log_weight = density.log() - (float(x[i]) - float(p.alpha(t)) * grid) ** 2 / (2 * float(p.sigma(t)) ** 2)
        weight = torch.softmax(log_weight, 0)
        off = float(kernel.gain) * (grid - prediction.x0[i].flatten()).reshape(-1, 1, 1, 1)

        def expected(
            factor: float, i: int = i, weight: Tensor = weight, off: Tensor = off, w: Covariance = covariance
        ) -> float:
            scaled = replace(w, values=w.values[i : i + 1] * factor)
            return float(weight @ scaled.kl_from_isotropic(float(kernel.lambda2), off))

        least = 0.5 * np.log(float(covariance.values[i]) / float(kernel.lambda2))
        assert expected(1.0) == pytest.approx(least, rel=1e-6)
        assert min(expected(0.9), expected(1.1)) > expected(1.0)


# The two halves


def made_up(n: int = 4) -> Prediction:
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator) for _ in range(4))
    return Prediction(a, b, c, c.square() + d.square() / 4)


def halves() -> dict[str, Rule]:
    rules: dict[str, Rule] = {name: rule for name, (rule, _) in EXACT.items()}
    rules |= {f"bounded {name}": Bounded(rule, 0.1) for name, (rule, _) in EXACT.items()}
    rules |= {f"averaged {name}": Averaged(rule) for name, (rule, _) in EXACT.items()}
    rules["bounded averaged sn"] = Bounded(Averaged(SquaredNoise()), 0.1)
    rules["learned"] = Learned(1e-5)
    return rules | {f"capped {name}": LastStepCap(rule, 1e-3, 40.0) for name, rule in rules.items()}


@pytest.mark.parametrize("name", halves())
def test_a_rule_is_its_two_halves(name: str) -> None:
    """The parameter does not depend on s, and one tensor, floats, and arrays of many s give the same variances."""
    rule, p, prediction = halves()[name], process("linear_1000"), made_up()
    assert rule.state_dependent
    s = np.array([1.0, 20.0, 41.0, 200.0, 499.0])
    many = rule.variance(reverse_kernel(p, 500.0, s), np.asarray(parameter(rule, p, 1.0, prediction))[:, None])
    for j, end in enumerate(s):
        kernel = reverse_kernel(p, 500.0, end)
        covariance = rule(kernel, prediction)
        np.testing.assert_array_equal(parameter(rule, p, end, prediction), parameter(rule, p, 1.0, prediction))
        np.testing.assert_allclose(covariance.values.flatten(), many[:, j], rtol=1e-12)
        one = float(parameter(rule, p, end, prediction)[3])
        assert float(rule.variance(kernel, one)) == pytest.approx(many[3, j], rel=1e-12)


def parameter(rule: Rule, p: Process, s: float, prediction: Prediction) -> Tensor:
    return rule.parameter(reverse_kernel(p, 500.0, s), prediction).values.flatten()


def test_limits_act_and_say_how_often() -> None:
    p, prediction = process("linear_1000"), made_up()
    kernel = reverse_kernel(p, 500, 400)
    free, limited = SquaredNoise(), Bounded(SquaredNoise(), 0.5)
    raw = free.posterior(kernel, prediction).values
    assert 0.1 < float((raw > 0.5).double().mean()) < 0.9
    covariance = limited(kernel, prediction)
    assert float(covariance.clipped) == float(((raw > 0.5) | (raw < 0)).double().mean())
    assert torch.equal(limited.posterior(kernel, prediction).values, raw.clamp(0, 0.5))


def test_one_variance_per_state_is_the_mean_over_its_pixels() -> None:
    p, prediction = process("linear_1000"), made_up()
    kernel = reverse_kernel(p, 500, 400)
    averaged = Averaged(NoiseResidual())(kernel, prediction).values
    assert averaged.shape == (4, 1, 1, 1)
    assert rel(averaged.flatten(), NoiseResidual()(kernel, prediction).values.flatten(1).mean(1)) < 1e-13


def test_averaging_before_the_limits_does_not_bias() -> None:
    """A head that errs by zero-mean noise: its average is near the truth, unless it was cut at 0 before."""
    p, truth = process("linear_1000"), 0.1
    kernel, scale = reverse_kernel(p, 900, 850), float(p.alpha(900) / p.sigma(900)) ** 2
    noise = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction = replace(made_up(8), eps=noise, head=scale * (truth + 0.5 * noise))
    first = Bounded(Averaged(NoiseResidual()), 1.0).posterior(kernel, prediction).values
    last = Averaged(Bounded(NoiseResidual(), 1.0)).posterior(kernel, prediction).values
    assert (first / truth - 1).abs().max() < 4 * 5 / 3072**0.5
    assert (last / truth).min() > 2


def test_negative_heads_make_negative_variances_without_limits() -> None:
    kernel = reverse_kernel(process("linear_1000"), 500, 400)
    prediction = replace(made_up(), head=-torch.ones(4, *SHAPE, dtype=torch.float64))
    covariance = NoiseResidual()(kernel, prediction)
    assert (covariance.values < 0).all()
    assert covariance.draw(torch.zeros(4, *SHAPE), torch.ones(4, *SHAPE)).isnan().all()
    assert (Bounded(NoiseResidual(), 1.0)(kernel, prediction).values == float(kernel.lambda2)).all()


def test_relative_variances_are_positive_whatever_the_head() -> None:
    kernel = reverse_kernel(process("linear_1000"), 500, 400)
    head = torch.linspace(-40, 40, 24, dtype=torch.float64).reshape(4, *SHAPE)
    values = Relative(VAR).posterior(kernel, replace(made_up(), head=head)).values
    assert (values > 0).all() and (values.flatten().diff() > 0).all()
    assert rel(values.flatten()[-1], 0.3 * (FLOOR + (1.0 - FLOOR) * (40.0 + math.log(math.e - 1.0)))) < 1e-15


def test_rules_need_the_second_output() -> None:
    kernel = reverse_kernel(process("linear_1000"), 500, 400)
    for rule in halves().values():
        for prediction in (None, replace(made_up(), head=None)):
            with pytest.raises(UserError, match="reads a network's second output, but there is none"):
                rule(kernel, prediction)


# Builders

TRAINED = [(name, objective) for name, kind in RULES.items() for objective in kind.facts.trained_with]


def needs(**changes: object) -> RuleNeeds:
    return replace(
        RuleNeeds(lambda estimator: VAR, lambda: 0.5, 1.0, lambda: 1e-5, None, lambda: SCALE, process("linear_1000")),
        **changes,
    )


def with_rule(name: str, eta: float = 1.0) -> ConfigDict:
    config = house().table.config()
    config.rule.name, config.sampling.eta = name, eta
    return config


@pytest.mark.parametrize(("name", "objective"), TRAINED)
def test_rules_take_the_heads_of_their_objectives(name: str, objective: str) -> None:
    """An objective that there is, and no other; what is yet to be trained is told when it is looked for."""
    families = house().families
    assert RULES[name].facts.state_dependent and families["objective"][objective].about
    for fits in (objective, None):
        check_method(with_rule(name), families, 256, SecondOutput(fits, "head 'x'", "use another"))
    for other in families["objective"].keys() - set(RULES[name].facts.trained_with):
        with pytest.raises(
            UserError,
            match=rf"'{name}' needs a head .*config\.train\.objective = .*got '{other}' .head 'x'.; use another",
        ):
            check_method(with_rule(name), families, 256, SecondOutput(other, "head 'x'", "use another"))
    with pytest.raises(UserError, match=rf"'{name}' needs a head .*no network with a second output"):
        check_method(with_rule(name), families, 256, None)


@pytest.mark.parametrize("name", RULES)
def test_built_rules_read_the_head(name: str) -> None:
    kernel = reverse_kernel(process("linear_1000"), 500, 400)
    rule = RULES[name].build(needs())
    assert rule.state_dependent and (rule(kernel, made_up()).values > 0).all()


@pytest.mark.parametrize("name", ["sn", "npr", "relative"])
def test_builders_limit_and_average(name: str) -> None:
    kernel, prediction = reverse_kernel(process("linear_1000"), 900, 800), made_up()
    made, build = needs(state_bound=0.01), RULES[name].build
    free = build(made, bounds=False).parameter(kernel, prediction)
    assert (free.values > 0.01).any() and float(free.clipped) == 0.0
    assert float(build(made).parameter(kernel, prediction).values.max()) == 0.01
    averaged = build(made, average=True, bounds=False).parameter(kernel, prediction)
    assert rel(averaged.values.flatten(), free.values.flatten(1).mean(1)) < 1e-13
    limited = build(made, average=True).parameter(kernel, prediction)
    assert rel(limited.values, averaged.values.clamp(0.0, 0.01)) == 0.0, "the average is taken first"


def test_the_relative_rule_scales_the_estimate_that_is_asked_for() -> None:
    kernel, prediction = reverse_kernel(process("linear_1000"), 500, 400), made_up()
    scale = {"residual": 0.3, "gamma": 0.06}
    rules = {
        name: RULES["relative"].build(needs(variance=lambda e: lambda t: scale[e] + 0.0 * t), estimator=name)
        for name in scale
    }
    values = {name: rule.rule.parameter(kernel, prediction).values for name, rule in rules.items()}
    assert rel(values["residual"], 5.0 * values["gamma"]) < 1e-14


def test_learned_refuses_what_it_has_no_use_for() -> None:
    assert RULES["learned"].facts.only_eta == 1.0 and not RULES["learned"].fields
    with pytest.raises(UserError, match=r"config\.rule\.name = 'learned' goes with .*eta = 1 only, got 0\.5"):
        check_method(with_rule("learned", 0.5), house().families, 256, SecondOutput("vlb"))
    with pytest.raises(UserError, match=r"'learned' has no option `average`; its options: none"):
        built(RULES, "learned", "`rule`", needs(), average=True)


def test_the_core_rules_do_not_look_at_the_state() -> None:
    for name, kind in CORE_RULES.items():
        assert not kind.facts.state_dependent and not kind.facts.trained_with
        if kind.facts.per_axis:
            continue  # as many as the measured axes: tests/test_coordinates.py
        rule = kind.build(needs())
        kernel = reverse_kernel(process("linear_1000"), 500, 400)
        assert not rule.state_dependent and isinstance(rule(kernel, None).values, float), name
