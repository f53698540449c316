"""Moments per coordinate from the command line: one pass, kept and keyed; what does not fit is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adpm.run.spectrum
from adpm.basis import Matrix
from adpm.coordinate_draws import Watch
from adpm.coordinates import Spectrum
from adpm.moments import MomentTable
from tests.commands import go, refused, the_file

FEW = ("moments.times=20", "moments.draws=50", "trajectory.steps=4", "sampling.samples=4", "likelihood.images=64")
SPECTRAL = ("rule.name=spectral", "trajectory.cost=axes", *FEW)


def test_one_pass_serves_rule_plan_bound_and_scalar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path / "run", "toy", "sample", *SPECTRAL) == 0
    told = capsys.readouterr().out
    assert told.count("measuring them") == 1 and "no moments per coordinate" in told
    spectrum = Spectrum.load(the_file(tmp_path / "cache", "coordinates-*.npz"))
    table = MomentTable.load(the_file(tmp_path / "cache", "moments-*.npz"))
    np.testing.assert_array_equal(spectrum.times, table.times)
    assert spectrum.draws == table.draws[0].n == 50
    assert go(tmp_path / "run", "toy", "likelihood", *SPECTRAL) == 0
    assert go(tmp_path / "run", "toy", "likelihood", "rule.name=analytic", *FEW) == 0
    assert "measuring them" not in capsys.readouterr().out, "the scalar's moments are those of the same pass"
    bits = {
        path.parent.name.split("-")[0]: json.loads(path.read_text())["bits_per_dim"]
        for path in (tmp_path / "run" / "likelihood").glob("*/result.json")
    }
    assert bits["spectral"] < bits["analytic"] - 0.05, bits


def test_estimate_tells_what_every_basis_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path / "run", "toy", "estimate", "moments.statistics=coordinates", *FEW[:2]) == 0
    told = capsys.readouterr().out
    for name in ("identity", "pca", "dct", "haar"):
        assert f"  {name}" in told
    assert told.count("(chosen)") == 1 and "block_dct" not in told, "4 pixels are no multiple of 8"
    assert the_file(tmp_path / "run", "coordinates-*.png").stat().st_size > 10_000


def test_samples_in_another_basis_are_others(tmp_path: Path) -> None:
    for basis in ("pca", "identity"):
        assert go(tmp_path / "run", "toy", "sample", *SPECTRAL, f"moments.basis={basis}") == 0
    assert len(list((tmp_path / "run" / "samples").glob("spectral-*"))) == 2
    assert len(list((tmp_path / "cache").glob("coordinates-*.npz"))) == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (("moments.basis=pca",), "config.moments.basis = 'pca' does not go with"),
        (("rule.name=spectral", "moments.basis=fourier"), "config.moments.basis"),
        (("rule.name=spectral", "moments.basis=haar", "moments.block=4"), "config.moments.block = 4 does not go with"),
        (("rule.name=spectral", "moments.basis=block_dct", "moments.block=3"), "config.moments.block = 3 must divide"),
        (("rule.name=spectral", "trajectory.cost=bound"), "has many; use 'axes'"),
        (("trajectory.cost=axes", "sampling.eta=0.0"), "no finite bound to plan on"),
        (("rule.name=spectral", "moments.draws=10"), "config.moments.draws = 10 is too few"),
        (("rule.name=spectral", "moments.coordinates_file=none.npz"), "coordinates_file = 'none.npz' is no file"),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: tuple[str, ...], told: str) -> None:
    assert told in refused(capsys, tmp_path / "run", "toy", "sample", *fields)


def test_files_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(tmp_path / "run", "toy", "sample", *SPECTRAL) == 0
    named = f"moments.coordinates_file={the_file(tmp_path / 'cache', 'coordinates-*.npz')}"
    capsys.readouterr()
    assert go(tmp_path / "same", "toy", "sample", *SPECTRAL, named) == 0
    assert "no moments per coordinate" not in capsys.readouterr().out
    told = refused(capsys, tmp_path / "other", "toy", "sample", *SPECTRAL, named, "data.seed=7")
    assert "belongs to something else" in told
    moments = f"moments.coordinates_file={the_file(tmp_path / 'cache', 'moments-*.npz')}"
    assert "is not a coordinates file" in refused(capsys, tmp_path / "wrong", "toy", "sample", *SPECTRAL, moments)


def test_a_file_in_another_basis_than_the_one_asked_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(tmp_path / "run", "toy", "sample", *SPECTRAL, "moments.basis=pca") == 0
    named = f"moments.coordinates_file={the_file(tmp_path / 'cache', 'coordinates-*.npz')}"
    for basis in ("pca", "auto"):
        assert go(tmp_path / basis, "toy", "sample", *SPECTRAL, named, f"moments.basis={basis}") == 0
    told = refused(capsys, tmp_path / "dct", "toy", "sample", *SPECTRAL, named, "moments.basis=dct")
    assert "config.moments.basis = 'dct' is not the basis of config.moments.coordinates_file" in told
    assert told.endswith("'pca'; name that one, or 'auto'.\n")


def test_other_contents_of_a_file_are_another_basis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ("moments.statistics=coordinates", *FEW[:2], "moments.basis=matrix")
    named = f"moments.basis_file={tmp_path / 'q.npy'}"
    for turned in (False, True):
        matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0] if turned else np.eye(16)
        np.save(tmp_path / "q.npy", matrix)
        assert go(tmp_path / "run", "toy", "estimate", *fields, named) == 0
        assert "measuring them" in capsys.readouterr().out


def test_a_killed_measurement_goes_on_in_the_bases_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eigenvectors made again may be others: here the data's PCA is turned between the two runs."""
    fields = ("moments.statistics=coordinates", *FEW[:2], "moments.basis=pca")
    assert go(tmp_path / "whole", "toy", "estimate", *fields, f"cache={tmp_path / 'one'}") == 0
    add, calls = Watch.add, []

    def dies(self: Watch, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        add(self, *args)

    killed = ("toy", "estimate", *fields, f"cache={tmp_path / 'two'}")
    monkeypatch.setattr(Watch, "add", dies)
    assert go(tmp_path / "killed", *killed) == 130
    turned = Matrix(torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0])
    monkeypatch.setattr(adpm.run.spectrum, "bases_of", lambda *args, **options: {"pca": turned})
    assert go(tmp_path / "killed", *killed) == 0
    whole, again = (Spectrum.load(the_file(tmp_path / name, "coordinates-*.npz")) for name in ("one", "two"))
    np.testing.assert_array_equal(whole.residual, again.residual)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(whole.basis.forward(x), again.basis.forward(x))
