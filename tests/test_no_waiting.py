"""The sampling loop never waits for the device: nothing is read back, and nothing is sent in a way that waits.

Seen on the meta device, which holds no numbers: whatever would read them back fails, and copies to it are written down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adpm.basis import Basis, Matrix
from adpm.denoiser import Denoiser
from adpm.families import built
from adpm.gaussian import InBasis
from adpm.kernel import Kernel
from adpm.members import MEMBERS
from adpm.moving import moved
from adpm.noise import KeyedNoise
from adpm.process import PROCESSES
from adpm.sampler import keyed, sample
from adpm.solver import ReverseGaussian
from adpm.variance import Analytic, PosteriorRule, Rule

SHAPE = (1, 4, 4)
PROCESS = PROCESSES["linear"].build(1000)
TIMES = PROCESS.times[[0, 1, 200, 500, 1000]]
STATELESS = sorted(name for name, kind in MEMBERS["solver"].items() if not kind.facts.statistics)


class Waits(TorchDispatchMode):
    """Writes down what waits for the device: a number read back, a plain copy from the host or to it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name, target = str(func), given.get("device")
        if name.startswith("aten._local_scalar_dense") and args[0].device.type == "meta":
            self.found.append("a number is read back")
        if name.startswith("aten._to_copy") and target is not None and target.type != args[0].device.type:
            if not given.get("non_blocking"):
                self.found.append(f"{tuple(args[0].shape)} goes from {args[0].device} to {target}")
        return func(*args, **given)


class PerAxis(PosteriorRule):
    """A variance for every axis of a basis, from a table of float64 numbers, as `spectral` has."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis

    def posterior(self, kernel: Kernel, prediction: object) -> InBasis:
        return InBasis(np.linspace(0.1, 1.0, 16).reshape(1, *SHAPE), basis=self.basis)


def steps_of(solver: Any) -> list[str]:
    """What waits in the second walk: the first one may move tables that are kept."""
    weight = torch.empty(1, device="meta")
    denoise = Denoiser(lambda x, label: x * weight + label[:, None, None, None], PROCESS, clip=(-1.0, 1.0))
    noise = keyed(KeyedNoise(0, "sample"), torch.arange(3, device="meta"), SHAPE)
    for _ in range(2):
        with torch.inference_mode(), Waits() as waits:
            assert all(step.x.is_meta for step in sample(denoise, solver, PROCESS, TIMES, noise))
    return waits.found


@pytest.fixture(autouse=True)
def numbers_are_not_sent_one_by_one(monkeypatch):
    """torch.as_tensor(number, device=...) waits, too, but no dispatch mode sees it."""
    plain = torch.as_tensor

    def watched(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        assert device is None or torch.device(device).type == "cpu" or isinstance(data, Tensor), "a number is sent"
        return plain(data, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "as_tensor", watched)


def test_what_waits_is_seen():
    with Waits() as waits:
        torch.arange(3).to("meta")
        moved(np.arange(3.0), "meta")
    assert waits.found == ["(3,) goes from cpu to meta"]
    with pytest.raises(AssertionError, match="a number is sent"):
        torch.as_tensor(1.0, device="meta")


@pytest.mark.parametrize("rule", [Analytic(lambda t: 0.3 + 0.0 * t), PerAxis(Matrix(torch.eye(16)))])
def test_the_reverse_gaussian_waits_for_nothing(rule: Rule):
    assert steps_of(ReverseGaussian(PROCESS, rule)) == []


@pytest.mark.parametrize("name", STATELESS)
def test_no_solver_waits(name: str):
    kind = MEMBERS["solver"][name]
    protocol = kind.facts.given(TIMES, 1.0, lambda: Analytic(lambda t: 0.3 + 0.0 * t), lambda: None)
    assert steps_of(built(MEMBERS["solver"], name, "`solver`", PROCESS, protocol=protocol)) == []


def test_moved_numbers_are_the_same():
    for values in (3.5, np.float64(1 / 3), np.arange(6.0).reshape(2, 3) / 7, torch.arange(4), np.array(2.0), 7):
        for dtype in (None, torch.float32, torch.float64):
            plain = torch.as_tensor(values, dtype=dtype)
            there = moved(values, "cpu", dtype)
            assert torch.equal(there, plain) and there.dtype == plain.dtype
