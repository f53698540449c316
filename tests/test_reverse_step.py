"""One reverse step t -> s against the published codes: mean, variance and x0 of every stored case.

The networks are constant tensors, so nothing but the step is tested. Every case is checked for its mean, x0 and
variance, those of networks with a second output included.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from adpm.denoiser import Denoiser
from adpm.errors import UserError
from adpm.kernel import Kernel, reverse_kernel
from adpm.solver import ReverseGaussian, reverse_mean
from adpm.variance import Rule
from tests.goldens import RTOL, Golden, head_rule, heuristic, process, rel, scalar_rule

CASES = 1548

# (model type, transition, variance, ms_eps given) -> number of cases with a state-independent variance
SCALAR = {
    ("eps", "ddpm", "small", False): 36,
    ("eps", "ddpm", "big", False): 36,
    ("eps", "ddpm", "optimal", True): 72,
    ("eps", "ddim", "small", False): 108,
    ("eps", "ddim", "optimal", True): 108,
    ("x0", "ddpm", "small", False): 36,
    ("x0", "ddpm", "optimal", True): 36,
    ("x0", "ddim", "optimal", True): 108,
    ("eps_eps2", "ddpm", "small", False): 36,
    ("eps_eps2", "ddpm", "optimal", True): 36,
    ("eps_iddpm", "ddpm", "big", False): 36,
    ("eps_iddpm", "ddpm", "optimal", True): 36,
}
# model type -> number of cases whose variance depends on the state
STATE_DEPENDENT = {"eps": 180, "eps_eps2": 324, "eps_epsc": 324, "eps_iddpm": 36}
# model type -> how many of them are one number per state (1) and one per element (2)
HEAD_KINDS = {
    "eps": {1: 36, 2: 144},
    "eps_eps2": {1: 144, 2: 180},
    "eps_epsc": {1: 144, 2: 180},
    "eps_iddpm": {2: 36},
}

OUTPUTS = {
    "eps": ("in_eps",),
    "x0": ("in_x0",),
    "eps_eps2": ("in_eps", "in_h"),
    "eps_epsc": ("in_eps", "in_g"),
    "eps_iddpm": ("in_eps", "in_v"),
}

Case = tuple[str, str, str, bool]


def case(stored: Golden, i: int) -> Case:
    return (
        str(stored["case_typ"][i]),
        str(stored["case_forward"][i]),
        str(stored["case_rev_var_type"][i]),
        bool(stored["case_use_ms_eps"][i]),
    )


def denoiser(stored: Golden, i: int) -> Denoiser:
    """The constant network of case i with the case's clipping; the published DDPM re-derives eps, the DDIM keeps it."""
    typ, forward, _, _ = case(stored, i)
    output = torch.cat([torch.as_tensor(stored[key]) for key in OUTPUTS[typ]], dim=1)
    return Denoiser(
        lambda x, label: output,
        process(str(stored["case_schedule"][i])),
        predicts="x0" if typ == "x0" else "eps",
        clip=(-1.0, 1.0) if stored["case_clip_x0"][i] else None,
        eps_after_clip={"ddpm": "rederive", "ddim": "keep"}[forward],
    )


def step_kernel(stored: Golden, i: int) -> Kernel:
    eta = 1.0 if stored["case_forward"][i] == "ddpm" else float(stored["case_eta"][i])
    return reverse_kernel(process(str(stored["case_schedule"][i])), stored["case_t"][i], stored["case_s"][i], eta)


def bounded(stored: Golden, i: int) -> bool:
    """clip_cov_x0 = -1 means that the covariance is limited to [0, 1] when x0 is clipped."""
    clip = int(stored["case_clip_cov_x0"][i])
    return bool(stored["case_clip_x0"][i]) if clip < 0 else bool(clip)


def step_rule(stored: Golden, i: int) -> Rule:
    """The case's state-independent rule."""
    name, bounds = str(stored["case_schedule"][i]), bounded(stored, i)
    return scalar_rule(str(stored["case_rev_var_type"][i]), bounds, name, stored[f"ms_eps__{name}"])


def test_every_case_is_counted(reverse_step: Golden) -> None:
    stored = Counter(case(reverse_step, i) for i in range(len(reverse_step["case_typ"])))
    assert {key: stored[key] for key in SCALAR} == SCALAR
    rest = Counter()
    for (typ, *_), count in ((key, n) for key, n in stored.items() if key not in SCALAR):
        rest[typ] += count
    assert rest == STATE_DEPENDENT
    assert sum(SCALAR.values()) == 684 and sum(STATE_DEPENDENT.values()) == 864
    assert stored.total() == CASES


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("typ", OUTPUTS)
def test_mean_and_x0_of_every_case(reverse_step: Golden, typ: str) -> None:
    chosen = np.flatnonzero(reverse_step["case_typ"] == typ)
    x = torch.as_tensor(reverse_step["in_x"])
    for i in chosen:
        prediction = denoiser(reverse_step, i)(x, reverse_step["case_t"][i])
        assert rel(prediction.x0, reverse_step["x0_pred"][i]) < RTOL
        assert rel(reverse_mean(step_kernel(reverse_step, i), prediction), reverse_step["mean"][i]) < RTOL
        if typ != "x0":
            assert torch.equal(prediction.eps_network, torch.as_tensor(reverse_step["in_eps"]))
        head = OUTPUTS[typ][1:]
        assert (prediction.head is None) == (not head)
        if head:
            assert torch.equal(prediction.head, torch.as_tensor(reverse_step[head[0]]))
    assert len(chosen) == STATE_DEPENDENT.get(typ, 0) + sum(n for key, n in SCALAR.items() if key[0] == typ)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wanted", SCALAR, ids=lambda c: "-".join(map(str, c)))
def test_scalar_variance(reverse_step: Golden, wanted: Case) -> None:
    """The step's variance, negative ones (ms_eps > 1 without bounds) included."""
    chosen = [i for i in range(CASES) if case(reverse_step, i) == wanted]
    assert len(chosen) == SCALAR[wanted]
    for i in chosen:
        assert reverse_step["case_var_kind"][i] == 0  # the published code returned one number, too
        covariance = step_rule(reverse_step, i)(step_kernel(reverse_step, i), None)
        assert isinstance(covariance.values, float)
        assert rel(np.full_like(reverse_step["var"][i], covariance.values), reverse_step["var"][i]) < RTOL


def head_cases(stored: Golden, typ: str) -> list[int]:
    """Cases whose variance comes from the state."""
    return [i for i in range(CASES) if case(stored, i)[0] == typ and case(stored, i) not in SCALAR]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("typ", STATE_DEPENDENT)
def test_variance_of_a_second_output(reverse_step: Golden, typ: str) -> None:
    """SN, NPR and Improved DDPM per pixel and averaged, with and without limits, negative ones included.

    Without a head the published codes take 1 - eps_hat^2 for Var[eps | x_t], which is SN with a head that says 1.
    """
    chosen, x = head_cases(reverse_step, typ), torch.as_tensor(reverse_step["in_x"])
    kinds, limited = Counter(), 0
    for i in chosen:
        denoise = denoiser(reverse_step, i)
        prediction = (denoise if OUTPUTS[typ][1:] else heuristic(denoise))(x, reverse_step["case_t"][i])
        p, average = process(str(reverse_step["case_schedule"][i])), bool(reverse_step["case_avg_cov"][i])
        rule = head_rule(typ, p, bounded(reverse_step, i), average)
        kernel = step_kernel(reverse_step, i)
        covariance = rule(kernel, prediction)
        values = covariance.values.expand_as(x)
        assert rel(values, reverse_step["var"][i]) < RTOL
        parameter = rule.parameter(kernel, prediction).values
        assert torch.equal(values, rule.variance(kernel, parameter).expand_as(x))
        kinds[int(reverse_step["case_var_kind"][i])] += 1
        assert covariance.values.numel() == (len(x) if average else x.numel())
        limited += float(covariance.clipped) > 0
    assert len(chosen) == STATE_DEPENDENT[typ]
    assert kinds == HEAD_KINDS[typ]
    assert (limited > 0) == (typ != "eps_iddpm"), "there is no model of Cov[x_0 | x_t] to limit"


def test_negative_variance_is_not_drawn_from(reverse_step: Golden) -> None:
    """48 scalar cases have a variance below zero; a step that would have to draw from it raises."""
    scalar = reverse_step["case_var_kind"] == 0
    negative = np.flatnonzero(scalar & (reverse_step["var"][:, 0, 0, 0, 0] < 0))
    drawn = negative[reverse_step["case_s"][negative] > 0]
    assert len(negative) == 48 and len(drawn) == 37
    x = torch.as_tensor(reverse_step["in_x"])
    for i in drawn:
        solver = ReverseGaussian(
            process(str(reverse_step["case_schedule"][i])), step_rule(reverse_step, i), step_kernel(reverse_step, i).eta
        )
        t, s = float(reverse_step["case_t"][i]), float(reverse_step["case_s"][i])
        with pytest.raises(UserError, match="gives -.*, which is negative"):
            solver.step(denoiser(reverse_step, i), x, t, s, lambda: torch.zeros_like(x))
