"""Lines to the user, and signals from them: closed pipes, runs without a terminal, Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from adpm import progress as voice
from adpm.progress import progress, say
from adpm.run.interrupts import SIGNALS, deferred_interrupt


def test_a_closed_pipe_is_survived(capfd: pytest.CaptureFixture[str]) -> None:
    """`... | head -1`: the first line is read, the reader goes, and the run ends without a word."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        say("first", stream)
        assert os.read(read, 100) == b"first\n", "a line is there at once"
        os.close(read)
        for line in ("second", "third", "x" * 100_000):
            say(line, stream)
    assert capfd.readouterr().err == ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that the voice believes."""
    now = [100.0]
    monkeypatch.setattr(voice.time, "monotonic", lambda: now[0])
    yield now


def test_a_line_a_minute_without_a_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress(range(1000, 2000), total=10_000, initial=1000, what="iteration")
    seen = []
    for i in bar:
        bar.set_postfix(refresh=False, loss=f"{i / 10_000:.4f}")
        seen.append(i)
        clock[0] += 1 / 8
    assert seen == list(range(1000, 2000)) and len(seen) / 8 == 125.0
    assert capsys.readouterr().err.splitlines() == [
        "iteration 1480 of 10000, loss 0.1479, 8.0 it/s",
        "iteration 1960 of 10000, loss 0.1959, 8.0 it/s",
    ]


def test_lines_tell_slow_work_and_work_without_an_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(["a", "b", "c"], what="sampling"):
        clock[0] += 59.0
    assert capsys.readouterr().err == "sampling 2 of 3, 59.0 s/it\n"
    for _ in progress(iter(["a", "b"]), what="methods"):
        clock[0] += 61.0
    assert capsys.readouterr().err == "methods 1, 61.0 s/it\nmethods 2, 61.0 s/it\n"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([1, 2, 3], what="moments")) == [1, 2, 3]
    assert re.search(r"moments: 100%.*3/3", capsys.readouterr().err)


# ---------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_is_noted_and_the_second_acts(number: int, error: type[BaseException]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(error) as raised, deferred_interrupt() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested and stop.signal == number and type(stop.error()) is error
        signal.raise_signal(number)
        raise AssertionError("the second signal interrupts at once")
    assert getattr(raised.value, "code", 143) == 143
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_signal_of_the_other_kind_acts_too() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_in_a_thread_nothing_is_held_back() -> None:
    """A notebook's thread may train; signals are the main thread's."""
    before, seen = [signal.getsignal(number) for number in SIGNALS], []

    def work() -> None:
        with deferred_interrupt() as stop:
            seen.append((stop.requested, [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
