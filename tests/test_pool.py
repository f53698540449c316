"""Processes side by side: results as they finish, one thread each, and nobody left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from adpm.run.work import _uninterrupted, available, side_by_side
from tests.processes import HANG, at_work, started, until

_STARTED: list[object] = []


def start(*given: object) -> None:
    _STARTED[:] = given


def tell(item: int) -> tuple[int, int, int, list[object]]:
    return item**2, os.getpid(), torch.get_num_threads(), list(_STARTED)


def fail(item: int) -> int:
    if item == 2:
        raise ZeroDivisionError(f"item {item}")
    return item


def test_two_processes_of_one_thread_do_all_items_once():
    found = dict(side_by_side(tell, range(5), 2, start, "a", 7))
    assert {item: found[item][0] for item in range(5)} == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}
    assert os.getpid() not in {told[1] for told in found.values()}
    assert all(told[2:] == (1, ["a", 7]) for told in found.values())


def test_one_process_is_this_one():
    found = list(side_by_side(tell, [3, 4], 1, start))
    assert [(item, told[0], told[1]) for item, told in found] == [(3, 9, os.getpid()), (4, 16, os.getpid())]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_in_the_work_comes_through(processes):
    with pytest.raises(ZeroDivisionError, match="item 2"):
        list(side_by_side(fail, [1, 2, 3], processes, start))


def test_ctrl_c_while_processes_start_is_not_lost(ctrl_c):
    """It is heard as soon as they have started, and not by them."""
    with pytest.raises(KeyboardInterrupt), _uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        child = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('deaf')"]
        heard = subprocess.run(child, capture_output=True, text=True, check=False)
        assert heard.stdout == "deaf\n"


def test_a_gpu_has_one_process():
    assert available(torch.device("cuda")) == 1
    assert 1 <= available(torch.device("cpu")) <= (os.cpu_count() or 1)


PARENT = """
import os, sys, threading
from pathlib import Path
from adpm.run.work import side_by_side

def start(): pass

def sleep(folder):
    Path(folder, str(os.getpid())).touch()
    threading.Event().wait()

if __name__ == "__main__":
    try:
        list(side_by_side(sleep, [sys.argv[1]] * 3, 2, start))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nobody_outlives_the_process_that_started_them(tmp_path, ctrl_c, how):
    script, folder = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    folder.mkdir()
    with started(script, folder, stderr=subprocess.DEVNULL) as parent:
        until(lambda: len(list(folder.iterdir())) == 2, parent)
        parent.send_signal(how)
        assert parent.wait(HANG) == (-signal.SIGKILL if how is signal.SIGKILL else 130)
        until(lambda: not at_work(parent.pid))
