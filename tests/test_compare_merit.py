"""Which methods of a comparison are tied, from hand-made results, and how figures are told."""

from __future__ import annotations

import math

import pytest
from scipy.stats import t as student_t

from adpm.run.compare.merit import BITS, DISTANCE, plus_minus, ranked, tied
from tests.comparisons import row


def test_ties_of_distances_are_told_by_differences_over_seeds():
    """Seeds differ by 20, methods by 4 or 9 in every seed: the seeds' spread must not hide that."""
    rows = [row("small", (10.0, 30.0)), row("sn", (14.0, 34.5)), row("npr", (19.0, 39.0))]
    # differences (4, 4.5): variance 1/8, error 1/4, and 12.7 times it is 3.18
    assert tied(rows, DISTANCE) == rows[:1]
    one, other = DISTANCE.chance(rows[0], rows[1:])
    assert one == other and one.error == pytest.approx(0.25)
    assert one.limit == pytest.approx(0.25 * student_t.ppf(0.975, 1)) == pytest.approx(3.176, abs=1e-3)
    wide = [rows[0], row("sn", (13.0, 36.0)), rows[2]]  # (3, 6): error 1.5, limit 19
    # so all three are near: (3, 6), (9, 9), (6, 3): pooled variance 3, error sqrt(3/2), limit 4.3 times it = 5.27
    assert tied(wide, DISTANCE) == wide[:2]
    assert DISTANCE.chance(wide[0], wide[1:])[1].limit == pytest.approx(math.sqrt(1.5) * student_t.ppf(0.975, 2))
    three = [row("small", (1.0, 2.0, 4.0)), row("sn", (2.0, 2.0, 7.0))]  # (1, 0, 3): variance 7/3, over three seeds
    assert DISTANCE.chance(three[0], three[1:])[0].error == pytest.approx(math.sqrt(7 / 9))


def test_what_is_far_off_says_nothing_about_what_is_near():
    """A noisy bad method must not make two precise good ones a tie."""
    near = [row("sn", (10.0, 10.02)), row("npr", (11.0, 11.021))]
    assert tied([*near, row("large", (20000.0, 21000.0))], DISTANCE) == near[:1]
    crowd = [row("sn", (10.0 + k, 10.0 + k)) for k in range(11)]
    assert tied([*crowd, row("large", (500.0, 900.0))], DISTANCE) == crowd[:1]


def test_ties_of_bits_are_told_by_differences_over_images():
    """Images' errors are 0.02 each and uncorrelated: less than 2 sqrt(2) 0.02 = 0.057 is nothing."""
    rows = [row("sn"), row("small", rest=0.056), row("large", rest=0.058)]
    assert tied(rows, BITS) == rows[:2]
    (chance,) = BITS.chance(rows[0], rows[1:2])
    assert (chance.error, chance.limit) == pytest.approx((0.02 * math.sqrt(2.0), 0.04 * math.sqrt(2.0)))


def test_without_error_bars_nothing_is_tied():
    rows = [row("small", (10.0,), error=None), row("sn", (10.0,), error=None)]
    assert tied(rows, DISTANCE) == rows[:1] and tied(rows, BITS) == rows[:1]
    assert tied([row(eta=0.0)], BITS) == [] and tied([], DISTANCE) == []


def test_rows_without_a_finite_figure_are_not_ranked():
    rows = [row("small", (math.nan, 1.0)), row("sn", (2.0, 2.0)), row("npr", (1.0, 2.0))]
    assert ranked(rows, DISTANCE) == [rows[2], rows[1]]


@pytest.mark.parametrize(
    ("mean", "error", "told"),
    [
        (334.2, 5.0, "334 ± 5"),
        (13.43, 3.02, "13.4 ± 3.0"),
        (2.354, 0.0162, "2.35 ± 0.02"),
        (0.741, 0.05, "0.741 ± 0.050"),
        (20113.2, 904.8, "20110 ± 900"),
        (58962.2, 4272.0, "59000 ± 4300"),
        (1883.4, 28.0, "1883 ± 28"),
        (5.782, 0.0048, "5.78 ± 0.00"),
        (121.0, 0.0, "121 ± 0"),
        (8.1, 2.34, "8.1 ± 2.3"),
        (8.3096, None, "8.31"),
        (0.0, None, "0.00"),
        (-0.0001, 0.5, "0.00 ± 0.50"),
        (-1.2345, 0.0123, "-1.23 ± 0.01"),
        (9.996, None, "10.00"),
        (3.0, float("nan"), "3.00"),
        (float("inf"), 1.0, "inf ± 1.0"),
    ],
)
def test_figures_are_rounded_by_their_error_and_to_three_digits(mean, error, told):
    assert plus_minus(mean, error) == told
    assert plus_minus(mean, error, r" \pm ") == told.replace("±", r"\pm")
