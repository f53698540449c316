"""Whole sampling chains against the published samplers, with their stored noise, and the cap of the last variances."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm.denoiser import Counted, Denoiser, Prediction
from adpm.errors import UserError
from adpm.gaussian import Covariance
from adpm.kernel import Kernel, reverse_kernel
from adpm.sampler import walk
from adpm.solver import ReverseGaussian
from adpm.variance import Large, LastStepCap, Rule, cap_threshold
from tests.goldens import RTOL, Golden, MixtureNetwork, golden, head_rule, process, rel, scalar_rule

LEVEL = 2.0 / 255.0
CHAINS = 65


def describe(i: int) -> dict[str, Any]:
    return json.loads(str(golden("sampling")["chain_desc"][i]))


def is_scalar(chain: dict[str, Any]) -> bool:
    """Whether the published code used a scalar variance: with ms_eps it does so whatever the heads are."""
    return chain["rev_var_type"] != "optimal" or chain["ms_eps_passed"]


def chain_rule(chain: dict[str, Any], ms_eps: np.ndarray) -> Rule:
    """The chain's rule before the cap; x0 is always clipped, and with it the covariance."""
    if is_scalar(chain):
        return scalar_rule(chain["rev_var_type"], True, chain["schedule"], ms_eps)
    return head_rule(chain["typ"], process(chain["schedule"]), True, chain["avg_cov"])


SCALAR = [i for i in range(CHAINS) if is_scalar(describe(i))]


class Recorded:
    """A rule that keeps the variances it has given."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.values: list[float | Tensor] = []

    def __call__(self, kernel: Kernel, prediction: Prediction | None) -> Covariance:
        covariance = self.rule(kernel, prediction)
        self.values.append(covariance.values)
        return covariance


def test_every_chain_is_counted(sampling: Golden) -> None:
    """41 chains have scalar variances; the other 24 use heads."""
    assert len(sampling["chain_desc"]) == CHAINS
    assert len(SCALAR) == 41
    rest = [describe(i) for i in range(CHAINS) if i not in SCALAR]
    assert len(rest) == 24
    assert all(c["typ"] != "eps" and c["rev_var_type"] == "optimal" and not c["ms_eps_passed"] for c in rest)
    chosen = [describe(i) for i in SCALAR]
    assert {c["trajectory"] for c in chosen} == {"linear", "dp_seg", "quad_ddim", "power2"}
    assert {c["eta"] for c in chosen} == {None, 0.0, 0.5, 1.0}
    assert {c["schedule"] for c in chosen} == {"linear_1000", "cosine_1000", "vpsde_1000"}
    assert sum(c["typ"] != "eps" for c in chosen) == 6  # heads that the published dp_seg ignores


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("i", range(CHAINS))
def test_chain(sampling: Golden, i: int) -> None:
    """States before each step, means, uncapped variances, and the final image."""
    chain = describe(i)
    name, steps, ddpm = chain["schedule"], chain["K"], chain["forward"] == "ddpm"
    times = sampling[f"timesteps__{name}__{chain['trajectory']}__K{steps}"]
    noise = torch.as_tensor(sampling[f"noise__K{steps}"])
    raw = Recorded(chain_rule(chain, sampling[f"ms_eps__{name}"]))
    last = float(times[chain["clip_sigma_idx"]]) if chain["clip_sigma_idx"] else 0.0
    rule = LastStepCap(raw, cap_threshold(chain["clip_pixel"], LEVEL), last)
    denoise = Counted(
        Denoiser(
            MixtureNetwork(sampling, process(name), chain["typ"]),
            process(name),
            clip=(-1.0, 1.0),
            eps_after_clip="rederive" if ddpm else "keep",
        )
    )
    solver = ReverseGaussian(process(name), rule, 1.0 if ddpm else chain["eta"])
    x = torch.as_tensor(sampling["x_init"])
    # the published step to s = 0 draws no noise: asking for noise K would be an IndexError
    taken = list(walk(denoise, solver, times.astype(float), x, lambda k: noise[k - 1]))
    assert denoise.calls == len(taken) == steps
    assert [step.t for step in taken] == times[:0:-1].tolist() and [step.s for step in taken] == times[-2::-1].tolist()
    before = torch.stack([x, *(step.x for step in taken[:-1])])
    assert rel(before, sampling[f"chain{i}__x_before"]) < RTOL
    assert rel(torch.stack([step.mean for step in taken]), sampling[f"chain{i}__mean"]) < RTOL
    assert all(isinstance(v, float) == is_scalar(chain) for v in raw.values)
    variances = torch.stack([torch.as_tensor(v, dtype=torch.float64).expand_as(x) for v in raw.values])
    assert rel(variances, sampling[f"chain{i}__sigma2_raw"]) < RTOL
    assert rel(taken[-1].x, sampling[f"chain{i}__final"]) < RTOL


def test_published_cap_thresholds(sampling: Golden) -> None:
    thresholds = [cap_threshold(float(pixel), LEVEL) for pixel in sampling["clip_pixel"]]
    np.testing.assert_allclose(thresholds, sampling["sigma2_threshold"], rtol=1e-14)


@pytest.mark.parametrize("levels", [1e300, 0.0, -1.0, float("nan"), float("inf")])
def test_a_cap_of_no_number_of_levels_is_refused(levels: float) -> None:
    with pytest.raises(
        UserError, match=rf"`cap_levels` = {re.escape(str(levels))} must be a positive number of levels"
    ):
        cap_threshold(levels, LEVEL)


def test_cap_is_a_mean_absolute_noise(sampling: Golden) -> None:
    """Gaussian noise has E|z| = sd sqrt(2/pi); at the threshold for y levels that is y levels."""
    for pixel in sampling["clip_pixel"]:
        sd = cap_threshold(float(pixel), LEVEL) ** 0.5
        assert sd * (2 / np.pi) ** 0.5 == pytest.approx(pixel * LEVEL, rel=1e-14)


Run = tuple[str, str, int, int]


def cap_runs(stored: Golden) -> Iterator[tuple[Run, list[int]]]:
    """The rows of each (schedule, trajectory, K, clip_sigma_idx)."""
    keys = [stored[f"cliprow_{k}"].tolist() for k in ("schedule", "trajectory", "K", "clip_sigma_idx")]
    runs = list(zip(*keys, strict=True))
    for run, rows in groupby(range(len(runs)), key=lambda i: runs[i]):
        yield run, list(rows)


def test_cap_rows(sampling: Golden) -> None:
    """Which transitions are capped, and to what, over every stored row; each run is also a whole path."""
    checked, capped = 0, 0
    for (name, _, steps, index), rows in cap_runs(sampling):
        s, t = sampling["cliprow_s"][rows], sampling["cliprow_t"][rows]
        times = np.concatenate([s[::-1], t[:1]])
        assert len(rows) == steps and times[0] == 0 and (times[1:] == t[::-1]).all()
        rule = LastStepCap(Large(), cap_threshold(2, LEVEL), float(times[index]) if index else 0.0)
        for row in rows:
            kernel = reverse_kernel(process(name), sampling["cliprow_t"][row], sampling["cliprow_s"][row])
            given, raw = rule(kernel, None), Large()(kernel, None)
            active = bool(sampling["cliprow_clip_active"][row])
            if kernel.s > 0:
                assert rel(raw.values, sampling["cliprow_sigma2_raw"][row]) < RTOL
                assert rel(given.values, sampling["cliprow_sigma2_used"][row]) < RTOL
            else:  # no noise, and the published code records nothing
                assert not active and np.isnan(sampling["cliprow_sigma2_used"][row])
            assert given.clipped == (1.0 if active else 0.0)
            capped += active
            checked += 1
    assert checked == 420 and capped == 35


def test_cap_spares_the_step_to_the_data() -> None:
    """No noise is added at s = 0, and its covariance stays what the rule says."""
    p = process("linear_1000")
    rule = LastStepCap(Large(), cap_threshold(1, LEVEL), 100.0)
    assert rule(reverse_kernel(p, 500, 0), None) == Large()(reverse_kernel(p, 500, 0), None)
    assert rule(reverse_kernel(p, 500, 100), None).values == cap_threshold(1, LEVEL)
    assert rule(reverse_kernel(p, 500, 101), None) == Large()(reverse_kernel(p, 500, 101), None)
