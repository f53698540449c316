"""The published ms_eps files: old and new pickles, refusals in words, and the way back."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adpm.draws import COLUMNS, GAMMA, Draws
from adpm.errors import UserError
from adpm.moments import MomentTable
from adpm.ms_eps import read_array, read_ms_eps, table_of_gamma, write_ms_eps
from adpm.process import DiscreteProcess, Process, linear_betas
from adpm.trajectory import Request, trajectory
from adpm.variance import Analytic
from tests.goldens import DATA, golden, process

FORMATS = DATA / "formats"


def gamma(table: MomentTable) -> np.ndarray:
    return table.column(GAMMA).values


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["ms_eps_numpy1.pth", "ms_eps_numpy2.pth"])
def test_published_files(name: str) -> None:
    """Entry n belongs to step n, in files written under numpy 1 and numpy 2."""
    p = process("linear_1000")
    table = read_ms_eps(FORMATS / name, p)
    stored = golden("formats/formats_golden")["ms_eps"]
    assert stored[0] == 0 and stored.shape == (1001,)
    np.testing.assert_array_equal(gamma(table), stored[1:].astype(np.float64))
    np.testing.assert_array_equal(table.times, np.arange(1, 1001))
    expected = (p.sigma(table.times) / p.alpha(table.times)) ** 2 * (1 - stored[1:].astype(np.float64))
    np.testing.assert_allclose(table.variance("gamma", p)(table.times), expected, rtol=1e-12)
    assert table.provenance == {"ms_eps": str(FORMATS / name)}


def test_only_gamma_is_known() -> None:
    p = process("linear_1000")
    table = read_ms_eps(FORMATS / "ms_eps_numpy2.pth", p)
    for estimator in ("residual", "data"):
        with pytest.raises(UserError, match=rf"hold no '{estimator}' statistics .* `estimator` = 'gamma'"):
            Analytic(table.variance(estimator, p))


@pytest.mark.parametrize(
    ("name", "steps", "told"),
    [
        ("ms_eps_bad_length.pth", "linear_1000", r"shape \(1000,\), but a process of N = 1000 steps needs \(1001,\)"),
        ("ms_eps_numpy2.pth", "linear_100", r"shape \(1001,\), but a process of N = 100 steps needs \(101,\)"),
        ("nowhere.pth", "linear_1000", "does not exist"),
        ("formats_manifest.json", "linear_1000", "is not a saved array of numbers: it is XML or JSON text"),
        ("plain_iddpm_head.pth", "linear_1000", "is not a saved array of numbers"),
    ],
)
def test_wrong_files_are_refused_in_words(name: str, steps: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"`ms_eps` file '.*{name}' .*{told}"):
        read_ms_eps(FORMATS / name, process(steps))


class Touch:
    """A pickle that writes a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "ms_eps.pth"
    torch.save(Touch(victim), path)
    with pytest.raises(UserError, match="is not a saved array of numbers; refused"):
        read_ms_eps(path, process("linear_1000"))
    assert not victim.exists()
    pickle.loads(pickle.dumps(Touch(victim)))
    assert victim.exists()  # the trap was a real one


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.25])
def test_a_number_that_is_no_mean_of_squares_is_named(tmp_path: Path, value: float) -> None:
    ms_eps = np.full(1001, 0.9, dtype=np.float32)
    ms_eps[0] = np.nan  # which nobody reads
    torch.save(ms_eps, tmp_path / "ms_eps.pth")
    assert read_array(tmp_path / "ms_eps.pth", process("linear_1000"))[500] == np.float32(0.9)
    ms_eps[[500, 700]] = value
    torch.save(ms_eps, tmp_path / "ms_eps.pth")
    with pytest.raises(UserError, match=rf"ms_eps\.pth' holds {value:g} at n = 500, which is no mean of squares"):
        read_ms_eps(tmp_path / "ms_eps.pth", process("linear_1000"))


@pytest.mark.parametrize(
    ("stored", "told"),
    [(np.array(["a", "b"]), "is not a saved array"), (torch.zeros(1001, dtype=torch.cfloat), "complex64")],
)
def test_what_are_no_numbers_is_refused(tmp_path: Path, stored: object, told: str) -> None:
    torch.save(stored, tmp_path / "ms_eps.pth")
    with pytest.raises(UserError, match=told):
        read_array(tmp_path / "ms_eps.pth", process("linear_1000"))


def test_a_web_page_and_a_pipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>Not found</html>")
    with pytest.raises(UserError, match=r"page\.pth' is not a saved array of numbers: it is an HTML page"):
        read_array(tmp_path / "page.pth", process("linear_1000"))
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match=r"`ms_eps` file '.*pipe\.pth' is a named pipe, not a plain file"):
        read_array(tmp_path / "pipe.pth", process("linear_1000"))


def test_there_and_back(tmp_path: Path) -> None:
    """Reading, writing and reading a published file keeps every float32, and the published layout."""
    p, path = process("linear_1000"), tmp_path / "ms_eps.pth"
    table = read_ms_eps(FORMATS / "ms_eps_numpy1.pth", p)
    write_ms_eps(path, table, p)
    np.testing.assert_array_equal(gamma(read_ms_eps(path, p)), gamma(table))
    raw = torch.load(path, weights_only=False)
    assert isinstance(raw, np.ndarray) and raw.dtype == np.float32 and raw.shape == (1001,) and raw[0] == 0


def gaussian_gamma(p: Process, times: np.ndarray, variance: float) -> np.ndarray:
    """E||eps_hat||^2/d of the exact denoiser of N(0, variance I): sigma^2 / (alpha^2 variance + sigma^2)."""
    a, b = p.alpha(times) ** 2, p.sigma(times) ** 2
    return b / (a * variance + b)


def test_sparse_moments_are_interpolated_to_every_step(tmp_path: Path) -> None:
    """40 exact values of N(0, 0.3 I) give all 1000; a table of all steps gives itself."""
    p, path = process("cosine_1000"), tmp_path / "ms_eps.pth"
    exact = gaussian_gamma(p, p.times[1:], 0.3)
    every = table_of_gamma(np.concatenate([[0.0], exact]), p, "exact")
    write_ms_eps(path, every, p)
    np.testing.assert_allclose(gamma(read_ms_eps(path, p)), exact, rtol=1e-6)
    chosen = np.unique(np.concatenate([[1, 2], p.nearest_index(np.linspace(*p.log_snr([1, 1000]), 40))]))
    nan = np.full((len(COLUMNS), len(COLUMNS)), np.nan)
    draws = tuple(Draws(1, np.where(np.arange(len(COLUMNS)) == GAMMA, g, np.nan), nan) for g in exact[chosen - 1])
    write_ms_eps(path, MomentTable(p.times[chosen], draws, float("nan"), {}), p)
    np.testing.assert_allclose(gamma(read_ms_eps(path, p)), exact, atol=2e-3)


def test_published_paths_come_from_published_files(tmp_path: Path) -> None:
    """float32 files give the published "dp_seg" paths, which float64 copies of the same numbers do not."""
    stored = golden("trajectories")
    file = tmp_path / "ms_eps.pth"
    torch.save(stored["ms_eps__A32"].astype(np.float32), file)
    p = DiscreteProcess(linear_betas(1000))
    array = read_array(file, p)
    assert array.dtype == np.float32
    moved = 0
    for steps in (10, 25, 50, 100, 200):
        published = stored[f"dpseg__A32__K{steps}"]
        ours = trajectory("published_split", Request(p, steps, ms_eps=lambda: array))[1:]
        double = trajectory("published_split", Request(p, steps, ms_eps=lambda: array.astype(np.float64)))[1:]
        np.testing.assert_array_equal(ours, published)
        moved += int((double != published).sum())
    assert moved > 0
