"""Samples on disk: they grow batch by batch, survive kills and damage, and are drawn once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adpm.progress import Arrays
from adpm.run.growing import Growing
from adpm.run.stored import Mapped

SHAPE = (2, 3)


class Killed(BaseException):
    pass


def images(items: range) -> np.ndarray:
    return (np.arange(items.start * 6, items.stop * 6) % 251).astype(np.uint8).reshape(-1, *SHAPE)


class Work:
    """Draws, and remembers what."""

    def __init__(self, dies_at: int = -1) -> None:
        self.ranges: list[range] = []
        self.dies_at = dies_at

    def __call__(self, items: range) -> Arrays:
        if items.start == self.dies_at:
            raise Killed
        self.ranges.append(items)
        return {"samples": images(items), "seconds": np.array(0.5), "nfe": np.array(3)}


def grown(path: Path, count: int, work: Work, size: int = 4) -> list[Arrays]:
    begun: list[Arrays] = []
    batches = Growing(path, SHAPE, np.uint8, size).fill(count, work, begun.append)
    assert sum(batch.images for batch in batches) == count and {batch.seconds for batch in batches} == {0.5}
    return begun


def test_the_file_is_a_plain_npy_with_the_images_in_order(tmp_path: Path) -> None:
    path, work = tmp_path / "a" / "samples.npy", Work()
    (begun,) = grown(path, 10, work)
    assert begun.keys() == {"nfe"} and work.ranges == [range(0, 4), range(4, 8), range(8, 10)]
    assert np.array_equal(np.load(path), images(range(10)))
    assert sorted(p.name for p in path.parent.iterdir()) == ["samples.csv", "samples.npy"]
    rows = Mapped(path, 9)
    assert len(rows) == 9 and np.array_equal(rows[3:7].numpy(), images(range(3, 7)))


@pytest.mark.parametrize("dies_at", [0, 4, 8])
def test_a_killed_run_goes_on_with_the_next_batch(tmp_path: Path, dies_at: int) -> None:
    path = tmp_path / "samples.npy"
    with pytest.raises(Killed):
        grown(path, 10, Work(dies_at))
    assert not path.exists()
    work = Work()
    grown(path, 10, work)
    assert work.ranges[0].start == dies_at and np.array_equal(np.load(path), images(range(10)))


def cut(path: Path) -> None:
    """In the middle of the second batch: its line was not written."""
    partial = path.with_name("samples.npy.partial")
    partial.write_bytes(partial.read_bytes()[:-13])
    lines = path.with_suffix(".csv").read_text().splitlines(keepends=True)
    path.with_suffix(".csv").write_text("".join(lines[:-1]))


def torn_line(path: Path) -> None:
    text = path.with_suffix(".csv").read_text()
    path.with_suffix(".csv").write_text(text[: text.rindex(",")])


def no_line_end(path: Path) -> None:
    """The line looks whole, but a digit may be missing."""
    path.with_suffix(".csv").write_text(path.with_suffix(".csv").read_text()[:-1])


def longer(path: Path) -> None:
    """Images whose line was not written."""
    with path.with_name("samples.npy.partial").open("ab") as file:
        file.write(b"x" * 24)


@pytest.mark.parametrize(("torn", "good"), [(cut, 4), (torn_line, 4), (no_line_end, 4), (longer, 8)])
def test_what_a_kill_has_torn_is_cut_off(tmp_path: Path, torn: Callable[[Path], None], good: int) -> None:
    path = tmp_path / "samples.npy"
    with pytest.raises(Killed):
        grown(path, 12, Work(8))
    torn(path)
    work = Work()
    grown(path, 12, work)
    assert work.ranges[0].start == good and np.array_equal(np.load(path), images(range(12)))


def test_a_whole_file_grows_on_and_its_short_last_batch_is_drawn_again(tmp_path: Path) -> None:
    path = tmp_path / "samples.npy"
    grown(path, 6, Work())
    work = Work()
    grown(path, 14, work)
    assert work.ranges == [range(4, 8), range(8, 12), range(12, 14)]
    assert np.array_equal(np.load(path), images(range(14)))


def test_other_batches_are_other_images(tmp_path: Path) -> None:
    path, work = tmp_path / "samples.npy", Work()
    grown(path, 8, Work())
    assert Growing(path, SHAPE, np.uint8, 4).whole(7) is not None
    assert Growing(path, SHAPE, np.uint8, 4).whole(9) is None and Growing(path, SHAPE, np.uint8, 2).whole(7) is None
    grown(path, 8, work, size=2)
    assert work.ranges[0] == range(0, 2)


def test_a_changed_byte_is_found_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "samples.npy"
    grown(path, 12, Work())
    content = bytearray(path.read_bytes())
    content[-6 * 5] ^= 1  # of image 7, in the second batch
    path.write_bytes(content)
    assert Growing(path, SHAPE, np.uint8, 4).whole(12) is None
    assert f"'{path}' is damaged after 4 images" in capsys.readouterr().out
    work = Work()
    grown(path, 12, work)
    assert np.array_equal(np.load(path), images(range(12))) and work.ranges[0] == range(4, 8)
    assert not capsys.readouterr().out
