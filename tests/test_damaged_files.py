"""Files that are not what they should be are named in a sentence; damaged ones of our own are made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import ROOT, SMALL, go, refused, the_file

PLANNED = ("moments.draws=12", "moments.times=8", "trajectory.steps=4", "sampling.samples=4")
GAMMA = ("trajectory.name=even", "rule.estimator=gamma", "likelihood.decoder=published")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def page(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html>not found</html>")


def ms_eps(value: float) -> Callable[[Path], None]:
    numbers = np.full(1001, 0.5, np.float32)
    numbers[500] = value
    return lambda file: torch.save(numbers, file)


def moments(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    """A moments file of 5 times with something changed."""

    def write(file: Path) -> None:
        arrays = {"times": np.arange(1.0, 6.0), "n": np.full(5, 10), "mean": np.full((5, 6), 0.5)}
        arrays |= {"scatter": np.tile(np.eye(6), (5, 1, 1)), "data_variance": np.float64(0.2)}
        arrays |= {"shape": np.array([1, 4, 4]), "provenance": np.array("{}")}
        change(arrays)
        with file.open("wb") as opened:
            np.savez(opened, **arrays)

    return write


def reverse_times(arrays: dict[str, np.ndarray]) -> None:
    arrays["times"] = arrays["times"][::-1]


def infinite_mean(arrays: dict[str, np.ndarray]) -> None:
    arrays["mean"] = np.full((5, 6), np.inf)


WRONG: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "page as weights": ("digits", "network.pretrained", page, "is an HTML page, perhaps of a download that failed"),
    "page as head": ("digits:npr", "network.head_pretrained", page, "is an HTML page"),
    "pipe as weights": ("digits", "network.pretrained", os.mkfifo, "is a named pipe, not a plain file"),
    "nan": ("toy", "moments.ms_eps", ms_eps(np.nan), "config.moments.ms_eps file '{}' holds nan at n = 500"),
    "inf": ("toy", "moments.ms_eps", ms_eps(np.inf), "config.moments.ms_eps file '{}' holds inf at n = 500"),
    "pipe as moments": ("toy", "moments.file", os.mkfifo, "config.moments.file = '{}' is no file"),
    "reverse times": ("toy", "moments.file", moments(reverse_times), "times of moments must be positive numbers that"),
    "infinite moments": ("toy", "moments.file", moments(infinite_mean), "'{}'"),
    "page as moments": ("toy", "moments.file", page, "'{}'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    config, field, make, told = WRONG[case]
    file = tmp_path / "file.pt"
    make(file)
    rule = GAMMA if "ms_eps" in field else SMALL[1:] if "head" in field or "moments" in field else SMALL
    sentence = refused(capsys, tmp_path / "run", config, "sample", *rule, f"{field}={file}")
    assert told.format(file) in sentence and str(file) in sentence, sentence


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 8] = bytes(255 - b for b in whole[middle : middle + 8])
    file.write_bytes(whole)


def other_keys(file: Path) -> None:
    np.savez(file, nothing=np.zeros(3))


def other_shapes(file: Path) -> None:
    with np.load(file) as stored:
        arrays = {name: value[..., None] if value.ndim else value for name, value in stored.items()}
    np.savez(file, **arrays)


def huge(file: Path) -> None:
    """Its first array claims to have 2^40 elements."""
    whole = file.read_bytes()
    start = whole.index(b"'shape': (")
    end = whole.index(b"\n", start)
    claim = b"'shape': (1099511627776,), }"
    file.write_bytes(whole[:start] + claim.ljust(end - start) + whole[end:])


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has planned, sampled and evaluated."""
    folder = tmp_path_factory.mktemp("done")
    for mode in ("sample", "likelihood"):
        assert go(folder / "run", "toy", mode, *PLANNED) == 0
    return folder


@pytest.mark.parametrize("damage", [flip, other_keys, other_shapes, huge, torn, pipe])
def test_damaged_files_of_ours_are_named_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], done: Path, damage: Callable[[Path], None]
) -> None:
    """Moments, the data term, samples and bound: what is made in their place holds the same numbers."""
    work = tmp_path / "work"
    shutil.copytree(done, work)
    kept = [the_file(work, p) for p in ("cache/moments-*.npz", "cache/data-term-*.npz", "run/samples/*/steps.npz")]
    kept.append(the_file(work, "run/likelihood/*/*-images.npz"))
    before = [dict(np.load(file)) for file in kept]
    for file in kept:
        damage(file)
    capsys.readouterr()
    for mode in ("sample", "likelihood"):
        assert go(work / "run", "toy", mode, *PLANNED) == 0
    told = capsys.readouterr().out
    for file, arrays in zip(kept, before, strict=True):
        assert damage is pipe or f"'{file}'" in told
        again = dict(np.load(file))
        same = [name for name in arrays if name not in ("seconds", "drawing")]
        assert all(np.array_equal(again[name], arrays[name]) for name in same)


def test_a_pipe_in_the_place_of_the_workdirs_config_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert "config.json' is a named pipe" in refused(capsys, tmp_path, "toy", "sample", *SMALL)
