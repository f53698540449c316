"""Steps with the whole covariance by products: roots of dense matrices, posteriors of a mixture, counted calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adpm import ideal
from adpm.denoiser import Counted, Prediction
from adpm.kernel import reverse_kernel
from covariance.lanczos import Lanczos, tridiagonal
from tests.commands import go
from tests.test_spectral_head import MIXED, SHAPE, WORLDS, D, at, covariances, states


def root(matrix: Tensor, z: Tensor) -> Tensor:
    """C^(1/2) z by eigenvalues, [B, d]."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.einsum("bij,bj,bkj,bk->bi", vectors, values.sqrt(), vectors, z)


def noise_of(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("different", "steps"), [(8, 8), (3, 3), (3, 6), (1, 4)])
def test_as_many_products_as_eigenvalues_are_exact(different: int, steps: int) -> None:
    """More than that, and vectors that are eigenvectors, change nothing."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(4, 8, 8, dtype=torch.float64, generator=generator))[0]
    spectrum = torch.linspace(0.1, 2.0, different, dtype=torch.float64).repeat(8)[:8]
    matrix = (axes * spectrum) @ axes.mT
    z = torch.randn(4, 8, dtype=torch.float64, generator=generator)
    z[0] = axes[0, :, 0]
    columns, t = tridiagonal(lambda v: torch.einsum("bij,bj->bi", matrix, v), z, steps)
    values, vectors = torch.linalg.eigh(t)
    along = torch.einsum("bij,bj,bj->bi", vectors, values.clamp_min(0.0).sqrt(), vectors[:, 0])
    found = z.norm(dim=1, keepdim=True) * torch.einsum("bi,ibj->bj", along, torch.stack(columns))
    torch.testing.assert_close(found, root(matrix, z), rtol=0, atol=1e-10)


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("world", WORLDS)
def test_a_step_has_the_posterior_of_its_state(world: str, fraction: float) -> None:
    """lambda2 I + gain^2 Cov[x_0 | x_t] of a mixture, its root times the very noise that was given."""
    process, t = WORLDS[world], at(WORLDS[world], fraction)
    s = at(process, 0.5 * fraction)
    x, kernel = states(process, t)[1], reverse_kernel(process, t, s)
    exact, z = ideal.IdealDenoiser(MIXED, process), noise_of(x)
    c = covariances(MIXED, x, float(process.alpha(t)), float(process.sigma(t)))
    whole = float(kernel.lambda2) * torch.eye(D) + float(kernel.gain) ** 2 * c
    wanted, off = root(whole, z.flatten(1)), []
    for products in (1, 2, 4, D):
        step = Lanczos(process, 1.0, products).step(exact, x, t, s, lambda draw=0: z)
        off.append(float(((step.x - step.mean).flatten(1) - wanted).norm()))
    assert off[-1] < 1e-5 * float(wanted.norm())
    assert all(more <= 1.001 * less + 1e-6 for less, more in zip(off, off[1:], strict=False))
    average = torch.einsum("bi,bij,bj->b", z.flatten(1), whole, z.flatten(1)) / z.flatten(1).square().sum(1)
    np.testing.assert_allclose(step.covariance.values.flatten(), average, rtol=1e-5)


def test_a_derivative_that_is_no_covariance_adds_nothing() -> None:
    """eps_hat = 2 x / sigma: C = -rho^2 I, and lambda2 is left; said as a share."""
    process, t = WORLDS["vp"], at(WORLDS["vp"], 0.5)
    said = ideal.IdealDenoiser(MIXED, process)

    def wrong(x: Tensor, t: float) -> Prediction:
        return replace(said(x, t), eps_network=2.0 * x / float(process.sigma(t)))

    x, s = states(process, t)[1], at(process, 0.2)
    z = noise_of(x)
    step = Lanczos(process).step(wrong, x, t, s, lambda draw=0: z)
    kernel = reverse_kernel(process, t, s)
    torch.testing.assert_close(step.x - step.mean, float(kernel.lambda2) ** 0.5 * z, rtol=1e-9, atol=1e-9)
    assert float(step.covariance.clipped) > 0.3


def test_products_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 + 2 m a step, and one in the last."""
    process, exact = WORLDS["linear"], ideal.IdealDenoiser(MIXED, WORLDS["linear"])
    counted = Counted(exact)
    x = states(process, 50.0)[1]
    Lanczos(process, products=2).step(counted, x, 50.0, 20.0, lambda draw=0: x)
    assert counted.calls == 5 and x.shape[1:] == SHAPE
    monkeypatch.chdir(Path(__file__).parent.parent)
    few = ("sampling.solver=lanczos", "sampling.products=2", "trajectory.name=even", "trajectory.steps=4")
    assert go(tmp_path, "toy", "sample", *few, "sampling.samples=6", "sampling.batch_size=4") == 0
    assert "16 network calls" in capsys.readouterr().out
