"""Fixtures shared by the tests; tests/goldens.py holds what the golden files are made of."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from tests.goldens import Golden, golden


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread, and results do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal has it, here and in what is started: a shell's background jobs are born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
