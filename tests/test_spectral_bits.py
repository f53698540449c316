"""A cell of benchmarks/spectral_bits.py is what `--mode=likelihood` says of the same config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.spectral_bits import BORROWED, EVEN, PLANNED, SCALAR, Bench
from tests.commands import go, the_file

FEW = {"draws": 16, "times": 12}
BASIS = ("rule.name=spectral", "trajectory.cost=axes")


@pytest.mark.parametrize(
    ("model", "config", "cells"),
    [
        (
            "linear",
            "digits",
            {
                (SCALAR, PLANNED): ("",),
                ("PCA", PLANNED): ("", *BASIS, "moments.basis=pca"),
                ("SN", EVEN): (":sn", "trajectory.name=even"),
                ("relative", BORROWED): (":relative",),
                ("spectral head", EVEN): (":spectral", "trajectory.name=even"),
            },
        ),
        ("patches", "patches", {("spectral head", EVEN): (":spectral", "trajectory.name=even")}),
        ("ve", "digits_sde", {("DCT", PLANNED): (":ve", *BASIS, "moments.basis=dct")}),
    ],
)
def test_cells_are_those_of_the_command(model, config, cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    bench = Bench(model, tmp_path, (3, 5), 6, **FEW)
    few = [f"moments.{name}={value}" for name, value in FEW.items()]
    for number, ((name, kind), (variant, *fields)) in enumerate(cells.items()):
        own = bench.bits(bench.rules[name], bench.paths[name, kind][1])
        workdir = tmp_path / f"run{number}"
        assert (
            go(workdir, config + variant, "likelihood", "trajectory.steps=5", "likelihood.images=6", *few, *fields) == 0
        )
        said = json.loads(the_file(workdir, "likelihood/*/result.json").read_text())
        np.testing.assert_allclose(own.mean(), said["bits_per_dim"], rtol=1e-5)
        np.testing.assert_allclose(own.std(ddof=1) / np.sqrt(6), said["standard_error"], rtol=1e-4)


def test_what_was_seen_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    first = Bench("linear", tmp_path, (3,), 4, **FEW)
    monkeypatch.setattr(Bench, "_seen", lambda *_: pytest.fail("seen already"))
    again = Bench("linear", tmp_path, (3,), 4, **FEW)
    for row, (path,) in first.paths.items():
        np.testing.assert_array_equal(again.paths[row][0], path)
        np.testing.assert_array_equal(again.bits(again.rules[row[0]], path), first.bits(first.rules[row[0]], path))
