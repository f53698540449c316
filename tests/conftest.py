"""Fixtures shared by the tests; tests/goldens.py holds what the golden files are made of."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure

from tests.goldens import Golden, golden
from tests.threads import single_thread

os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start: several tests run side by side


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread, and results do not depend on the machine."""
    with single_thread():
        yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal has it, here and in what is started: a shell's background jobs are born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and saved, but blank: painting takes most of the time of a comparison's report.

    tests/test_compare_figures.py looks at them.
    """
    monkeypatch.setattr(Figure, "draw", lambda *_: None)


@pytest.fixture
def schedules() -> Golden:
    return golden("schedules")


@pytest.fixture
def reverse_step() -> Golden:
    return golden("reverse_step")


@pytest.fixture
def sampling() -> Golden:
    return golden("sampling")


@pytest.fixture
def elbo() -> Golden:
    return golden("elbo")
