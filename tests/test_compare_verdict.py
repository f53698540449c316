"""Why a method wins, from hand-made results whose answers are known; who wins is test_compare_answer.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adpm.run.compare.merit import BITS, DISTANCE
from adpm.run.compare.results import Formulation
from adpm.run.compare.verdict import verdict
from adpm.run.compare.verdict.neighbours import Neighbourhood, differing
from adpm.run.compare.verdict.reasons import MOST, UNEXPLAINED, sentences
from adpm.run.compare.verdict.why import BANDS, anatomy
from tests.comparisons import DATA, PRIOR, PROCESS, moments, results, row, size_of, tables

WORLD = Formulation(PROCESS, moments(), 1.0)


# ---- what a row is made of


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("trajectory", ["even", "least_cost"])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_both_splits_of_a_bound_add_up_and_the_size_is_the_formula(factor, trajectory, eta):
    item = row("small", trajectory=trajectory, eta=eta, factor=factor, rest=-0.3)
    found = anatomy(item, WORLD)
    assert item.bound is not None and found.bits is not None
    total, parts = item.bound.total.mean, found.bits
    assert parts.data + sum(parts.bands) + parts.prior == pytest.approx(total, rel=1e-12)
    assert parts.path + parts.size + parts.rest == pytest.approx(total, rel=1e-12)
    assert (parts.data, parts.prior) == (DATA, PRIOR)
    assert parts.size == pytest.approx(size_of(factor), rel=1e-9, abs=1e-12)
    assert parts.rest == pytest.approx(-0.3, rel=1e-9) and sum(parts.rests) == pytest.approx(parts.rest)
    ratios = [ratio for ratio in found.ratios if ratio is not None]
    assert ratios == pytest.approx([factor] * len(ratios), rel=1e-9) and ratios


def test_bands_are_of_where_steps_land():
    item = row(trajectory="even", rest=0.25)  # lands at t = 67, 34 and 1
    landed = PROCESS.log_snr(np.array([1.0, 34.0, 67.0]))
    assert landed[0] > 2.0 > landed[1] > -2.0 > landed[2]
    assert item.bound is not None
    found = anatomy(item, WORLD)
    assert found.bits is not None and found.bits.bands == pytest.approx(item.bound.terms[1:4])
    assert found.bits.rests == pytest.approx((0.25, 0.0, 0.0))
    assert [band.holds(np.array([2.0, -2.0])).tolist() for band in BANDS] == [
        [False, False],
        [True, False],
        [False, True],
    ]
    assert anatomy(row(trajectory="least_cost", steps=2), WORLD).ratios == (pytest.approx(1.0), None, None)


def test_last_noise_is_told_in_sigmas_of_where_it_lands():
    item = row(factor=2.0)
    found = anatomy(item, WORLD)
    assert found.last_noise == pytest.approx(math.sqrt(item.variance[1]) / float(PROCESS.sigma(1.0)))
    assert found.end == item.log_snr[0]
    silent = anatomy(row("small", eta=0.0, factor=0.0), WORLD)
    assert silent.last_noise == 0.0 and silent.ratios == (0.0, 0.0, 0.0) and silent.bits is None


def test_a_single_step_and_a_solver_without_a_rule_have_no_variances():
    found = anatomy(row(steps=1), WORLD)
    assert found.ratios == (None, None, None) and found.last_noise is None
    assert found.bits is not None and found.bits.path == pytest.approx(DATA + PRIOR)
    assert (found.bits.size, found.bits.rest, found.bits.bands) == (0.0, 0.0, (0.0, 0.0, 0.0))
    found = anatomy(row(None, solver="euler_maruyama", eta=None), WORLD)
    assert found.ratios == (None, None, None) and found.bits is None


# ---- one choice changed at a time


def test_neighbours_differ_in_one_choice():
    best = row("sn", (5.0, 5.1))
    rows = [
        best,
        row("small", (6.0, 6.1)),
        row("npr", (5.5, 5.6)),
        row("sn", (7.0, 7.1), formulation="ve"),
        row("sn", (8.0, 8.1), trajectory="least_cost"),
        row("sn", (9.0, 9.1), eta=0.5),
        row("small", (5.2, 5.3), eta=0.5),  # two
        row(None, (20.0, 20.1), solver="heun", eta=None),
        row(None, (30.0, 30.1), solver="heun", eta=None, formulation="ve"),  # two
    ]
    around = Neighbourhood.of(results(*rows), rows, DISTANCE)
    assert around.best is best
    assert [(other.axis, other.value) for other in around.others] == [
        ("rule", "npr"),
        ("rule", "small"),
        ("trajectory", "least_cost"),
        ("eta", "0.5"),
        ("formulation", "ve"),
        ("solver", "heun"),
    ]
    # around the solver, the best of another solver's choices stands for them
    around = Neighbourhood.of(results(*rows), [*rows[1:3], row(None, (1.0, 1.1), solver="heun", eta=None)], DISTANCE)
    assert [(other.axis, other.value) for other in around.others] == [("solver", "reverse_gaussian (npr, eta 1)")]
    assert differing(rows[1].method, rows[6].method) == ["eta"]


def test_the_tables_of_one_choice_have_figures_and_differences():
    rows = [
        row("sn", (5.0, 5.0), rest=-0.2),
        row("small", (20.0, 20.0), factor=0.1, rest=-0.2),
        row("sn", (10.0, 10.0), trajectory="least_cost", rest=9.0),
    ]
    _, _, samples, where, why = tables(verdict(results(*rows)))
    assert [line[0] for line in samples[1:]] == ["**vp, sn, even, eta 1**", "rule small", "trajectory least_cost"]
    assert [line[2] for line in samples] == ["÷ best", "1.00", "4.00", "2.00"]
    assert [line[3:6] for line in samples[1:3]] == [["1.00"] * 3, ["0.10"] * 3]
    assert where[2][2] == why[2][2] == f"{size_of(0.1):.2f}"  # the difference is all size
    assert [line[3] for line in why[1:]] == ["-0.20", "-0.20", "9.00"] and why[2][4:] == ["0.10"] * 3
    for line, of in zip(where[1:], rows, strict=True):
        assert of.bound is not None
        assert sum(map(float, line[3:])) == pytest.approx(of.bound.total.mean, abs=0.026)  # five rounded figures
    for line, of in zip(why[1:], rows, strict=True):
        assert of.bound is not None
        assert sum(map(float, line[1:4])) == pytest.approx(of.bound.total.mean, abs=0.016)


def told(*rows, merit=DISTANCE) -> list[str]:
    found = results(*rows)
    return sentences(Neighbourhood.of(found, rows, merit), found, rows)


def test_too_small_too_large_and_missing_pixels_are_told_by_their_parts():
    rows = (
        row("npr", (5.0, 5.0), rest=-0.5),
        row("small", (6.0, 6.0), factor=0.1, rest=-0.5),
        row("large", (7.0, 7.0), factor=9.0, rest=-0.5),
        row("analytic", (8.0, 8.0)),
    )
    rest, large, small = told(*rows, merit=BITS)
    where = "mostly at log-SNR > 2"
    pixels = "because of differences between pixels, states and images"
    assert rest == f"Rule `analytic`: 0.50 more, {pixels} (rest: 0.00 instead of -0.50; {where})."
    for line, factor, words in ((small, 0.1, "10.0 times smaller"), (large, 9.0, "9.00 times larger")):
        size = f"{size_of(factor):.2f}"
        assert (
            f"{size} more, because of the mean variance (size: {size} instead of 0.00; variances {words} than" in line
        )
    assert small.startswith("Rule `small`") and large.startswith("Rule `large`")


def test_a_path_that_ends_elsewhere_is_told_by_where():
    rows = (row("sn", rest=0.0, trajectory="least_cost"), row("sn", trajectory="even"))
    best, other = sorted(rows, key=lambda item: item.bound.total.mean)
    (line,) = told(*rows, merit=BITS)
    ends = f"last call at log-SNR {other.log_snr[0]:.1f} instead of {best.log_snr[0]:.1f}"
    assert (
        line.startswith(f"Trajectory `{other.method.trajectory}`: ")
        and "because of where the steps lie (path: " in line
        and ends in line
    )


def test_samples_go_with_what_all_of_a_group_have():
    rows = (
        row("small", (5.0, 5.0), eta=0.0, factor=0.0),
        row("analytic", (6.0, 6.0), eta=0.0),
        row("sn", (7.0, 7.0), eta=0.0),
        row("small", (10.0, 10.0), factor=0.9),
        row("large", (40.0, 40.0), factor=4.0),
    )
    rule, eta, elsewhere = told(*rows)
    assert rule == "Rule `analytic`, `sn`: 1.20 to 1.40 times the distance."  # no noise to compare theirs with
    assert eta == "Eta `1`: 2.00 times the distance."
    assert elsewhere.startswith("Rules with eta 1: `small` is best with 10.0 ± 0.0; `large`: 4.00 times the distance; ")
    assert "variances of 4.00 times the measured ones at log-SNR > 2 (best: 0.90)" in elsewhere


def test_what_goes_with_nothing_is_said_without_a_reason():
    rows = (row("sn", (5.0, 5.0)), row("npr", (6.0, 6.0), factor=1.05))
    assert told(*rows) == ["Rule `npr`: 1.20 times the distance.", UNEXPLAINED]


def test_a_fact_that_a_tied_method_shares_is_no_reason():
    """`small` is tied with the best, neighbour or not, and its variances are 3 times too large."""
    best, loser = row("sn", (5.0, 7.0)), row("npr", (50.0, 52.0), factor=3.0)
    reason = "goes with variances of 3.00 times the measured ones at log-SNR > 2 (best: 1.00)"
    apart = row("small", (5.1, 6.9), factor=0.3)
    assert reason in told(best, loser, apart)[1]
    for tied_too in (row("small", (5.1, 6.9), factor=3.0), row("small", (5.1, 6.9), factor=3.0, formulation="ve")):
        *_, line, last = told(best, loser, tied_too)
        assert line.startswith("Rule `npr`: 8.50 times the distance.") and last == UNEXPLAINED
    less = row("small", (5.1, 6.9), factor=2.0)
    assert reason in told(best, loser, less)[1]


def test_differences_of_bits_that_are_nothing_have_no_sentence():
    rows = (row("sn", error=0.001), row("npr", rest=0.009, error=0.001), row("small", rest=0.02, error=0.001))
    (line,) = told(*rows, merit=BITS)
    assert line.startswith("Rule `small`: 0.02 more")


def test_the_best_of_other_trajectories_is_told():
    rows = [
        row("sn", (5.0, 5.1)),
        row("small", (8.0, 8.1)),
        row("sn", (9.0, 9.1), trajectory="least_cost"),
        row("large", (7.0, 7.1), trajectory="least_cost", formulation="ve"),
    ]
    text = verdict(results(*rows))
    assert "* Best on `least_cost`: ve, large, least_cost, eta 1 with Frechet distance 7.05 ± 0.07." in text
    assert "Best on `even`" not in text


def test_ties_are_not_explained():
    rows = (row("sn", (5.0, 7.0)), row("npr", (5.1, 7.2), factor=5.0), row("small", (7.2, 5.2), factor=0.2))
    assert told(*rows) == ["Tied with the best: `rule npr`, `rule small`."]


def test_there_are_never_too_many_sentences():
    """Nine could be said of the distances: three groups of rules, two axes and their rules, two formulations."""
    rows = [row("sn", (5.0, 5.0), rest=-5.0)]
    rows += [row(f"r{k}", (6.0, 6.0), factor=factor) for k, factor in enumerate((0.1, 1.0, 9.0))]
    for other in ({"trajectory": "least_cost"}, {"eta": 0.5}):
        rows += [row(rule, (d, d), factor=f, **other) for rule, d, f in (("sn", 50.0, 0.5), ("r1", 60.0, 1.0))]
    rows += [row("sn", (60.0, 60.0), formulation=f, factor=k) for f, k in (("ve", 2.0), ("discrete", 0.5))]
    lines = told(*rows)
    assert len(lines) == len(told(*rows, merit=BITS)) == MOST == 6
    assert [line.split()[0] for line in lines] == ["Rule", "Rule", "Rule", "Trajectory", "Rules", "Eta"]


def test_methods_far_apart_are_told_one_by_one():
    rows = [row("sn", (10.0, 10.0))]
    rows += [row(f"r{k}", (d, d), rest=r) for k, (d, r) in enumerate([(12.0, 0.1), (13.0, 0.15), (30.0, 0.31)])]
    near, far = "Rule `r0`, `r1`: 1.20 to 1.30 times the distance.", "Rule `r2`: 3.00 times the distance."
    assert told(*rows) == [near, far, UNEXPLAINED]
    assert [line.split(", because")[0] for line in told(*rows, merit=BITS)] == [
        "Rule `r0`, `r1`: 0.10 to 0.15 more",
        "Rule `r2`: 0.31 more",
    ]


def test_parts_that_are_half_as_far_above_are_named_too():
    """0.66 bits of size beside 0.5 of rest, then beside 0.2."""
    best = row("npr", (5.0, 5.0), rest=-1.0)
    (line,) = told(best, row("small", (6.0, 6.0), factor=0.5, rest=-0.5), merit=BITS)
    assert "1.16 more, because of the mean variance (size: 0.66 instead of 0.00; " in line
    assert "and of differences between pixels, states and images (rest: -0.50 instead of -1.00;" in line
    (line,) = told(best, row("small", (6.0, 6.0), factor=0.5, rest=-0.8), merit=BITS)
    assert "0.86 more, because of the mean variance (size: " in line and "(rest" not in line
