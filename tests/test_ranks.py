"""Several processes as one: they agree, share work, and give the same files as one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from adpm.errors import UserError
from adpm.progress import Arrays, say
from adpm.ranks import Ranks, alone, as_one_of, ranks, require_same
from adpm.run.growing import Growing
from adpm.run.lock import held_locks, hold
from adpm.run.store import Parts, record
from adpm.run.work import resolve_device, side_by_side
from adpm.whole import write_whole


def together(size: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` gives in each of so many threads that are ranks of each other."""
    store, out, failed = dist.HashStore(), [None] * size, []

    def one(number: int) -> None:
        with as_one_of(Ranks(number, size, number, size, store, quiet=number > 0)):
            try:
                out[number] = work()
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive(), "some wait for others that never come"
    if failed:
        raise failed[0]
    return out


def test_all_know_what_each_gave() -> None:
    def work() -> list[Any]:
        here = ranks()
        return [here.gathered(10 * here.number + i) for i in range(30)] + [here.of_first(here.number)]

    every = together(3, work)
    assert every == [[[i, 10 + i, 20 + i] for i in range(30)] + [0]] * 3


def test_every_number_goes_to_one_of_them() -> None:
    every = together(3, lambda: (list(ranks().shares(20)), list(ranks().shares(2))))
    for shares, total in zip(zip(*every, strict=True), (20, 2), strict=True):
        assert sorted(number for share in shares for number in share) == list(range(total))
    assert list(Ranks().shares(3)) == [0, 1, 2]


def test_one_of_them_tells() -> None:
    assert sorted(together(3, lambda: [ranks().tells(), ranks().tells()])) == [[False, False]] * 2 + [[True, False]]
    assert Ranks().tells() and Ranks().tells()


def test_one_of_them_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    together(3, lambda: say(f"rank {ranks().number}"))
    assert capsys.readouterr().out == "rank 0\n"


def test_alone_nobody_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> bool:
        if ranks().number == 1:
            with alone():
                ranks().wait()
                say("silent still")
                assert ranks().first and ranks().local == 1
            with alone(quiet=False):
                say("heard")
        return ranks().first

    assert together(2, work) == [True, False] and capsys.readouterr().out == "heard\n"


def test_the_first_writes_and_afterwards_all_see_it(tmp_path: Path) -> None:
    """None takes for written what others have not yet found missing."""

    def work() -> list[bool]:
        found = []
        for i in range(20):
            path = tmp_path / f"{i}.txt"
            found.append(path.exists())
            if not path.exists():
                write_whole(path, lambda p: p.write_text(str(ranks().number)))
            assert path.read_text() == "0"
        return found

    assert together(3, work) == [[False] * 20] * 3


def test_long_work_is_shared_out_and_all_get_all_of_it(tmp_path: Path) -> None:
    done: list[tuple[int, range]] = []

    def work() -> list[int]:
        here = ranks()

        def square(items: range) -> Arrays:
            done.append((here.number, items))
            return {"x": np.array(items) ** 2}

        made = record(tmp_path / "a.npz", lambda keep: {"x": np.concatenate([p["x"] for p in keep(10, 3, square, "")])})
        return list(made["x"])

    expected = [i**2 for i in range(10)]
    assert together(3, work) == [expected] * 3
    assert sorted(r.start for _, r in done) == [0, 3, 6, 9]
    done.clear()
    assert together(2, work) == [expected] * 2 and not done
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_finished_ranges_are_not_worked_on_again(tmp_path: Path) -> None:
    done: list[range] = []

    def square(items: range) -> Arrays:
        done.append(items)
        return {"x": np.array(items) ** 2}

    parts = Parts(tmp_path)
    first = parts(9, 3, square, "")
    next(first), next(first)
    done.clear()
    every = together(2, lambda: [list(p["x"]) for p in parts(9, 3, square, "")])
    assert done == [range(6, 9)] and every == [[[0, 1, 4], [9, 16, 25], [36, 49, 64]]] * 2


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_are_the_same_file_for_any_number_of_them(tmp_path: Path, size: int) -> None:
    path = tmp_path / "s.npy"

    def work() -> int:
        def draw(items: range) -> Arrays:
            return {"samples": np.full((len(items), 2), items.start, np.float32), "seconds": np.array(0.25)}

        batches = Growing(path, (2,), np.float32, 4).fill(10, draw, lambda arrays: None)
        return sum(batch.images for batch in batches)

    assert together(size, work) == [10] * size
    assert np.load(path)[:, 0].tolist() == [0.0] * 4 + [4.0] * 4 + [8.0] * 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "s.npy"]


_BEGUN = threading.local()


def _begin(tag: str) -> None:
    _BEGUN.tag = tag


def _work(item: int) -> str:
    return f"{_BEGUN.tag}{item}"


def test_items_side_by_side_are_those_of_the_ranks() -> None:
    every = together(2, lambda: list(side_by_side(_work, range(5), 7, _begin, "x")))
    assert every == [[(i, f"x{i}") for i in range(5)]] * 2


def test_ranks_that_were_given_different_things_are_refused() -> None:
    def work() -> str:
        try:
            require_same(ranks(), {"config.seed": 1, "config.rule.name": "small" if ranks().number else "large"})
        except UserError as error:
            return str(error)
        return ""

    told = "config.rule.name is 'small' for process 1 and 'large' for process 0"
    assert all(told in one for one in together(2, work))
    together(2, lambda: require_same(ranks(), {"x": 1}))


def test_each_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    every = together(2, lambda: [str(resolve_device(name)) for name in ("auto", "cuda", "cpu")])
    assert every == [["cuda:0", "cuda:0", "cpu"], ["cuda:1", "cuda:1", "cpu"]]
    assert str(resolve_device("cuda:1")) == "cuda:1" and str(resolve_device("auto")) == "cuda"
    for size, name in ((3, "auto"), (2, "cuda:0")):
        with pytest.raises(UserError, match="each needs its own; use auto, and --nproc-per-node=2"):
            together(size, lambda name=name: resolve_device(name))


# -- one command at a time --------------------------------------------------------------------------------------------


def test_a_folder_is_one_commands(tmp_path: Path) -> None:
    hold(tmp_path)  # outside of a command nothing is held
    with held_locks():
        hold(tmp_path)
        hold(tmp_path)  # its own
        with held_locks(), pytest.raises(UserError, match="in use by process [0-9]+; wait"):
            hold(tmp_path)
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())
    with held_locks():
        hold(tmp_path)


def test_the_lock_of_a_killed_run_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1")
    with held_locks():
        hold(tmp_path)
