"""What a comparison says of its data; results from disk are in test_compare.py."""

from __future__ import annotations

import dataclasses

from adpm.run.compare.collect import described
from adpm.run.data import digits


def test_data_are_described_in_a_line():
    assert described(digits()) == "digits, 1 x 8 x 8, 17 levels, 1,438 train and 359 test images"
    real = dataclasses.replace(digits(), levels=0)
    assert described(real) == "digits, 1 x 8 x 8, continuous values, 1,438 train and 359 test images"
