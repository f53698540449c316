"""Who wins and why, from hand-made results whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from adpm.run.compare.merit import BITS, DISTANCE, ranked, tied
from adpm.run.compare.results import Formulation
from adpm.run.compare.verdict import headline, verdict
from adpm.run.compare.verdict.neighbours import Neighbourhood, differing
from adpm.run.compare.verdict.reasons import MOST, sentences
from adpm.run.compare.verdict.why import BANDS, anatomy
from tests.comparisons import DATA, PRIOR, PROCESS, moments, results, row, tables

WORLD = Formulation(PROCESS, moments(), 1.0)


def size_of(factor: float) -> float:
    """Bits of the three noisy steps of K = 4 whose variances are `factor` times the best."""
    ratio = 1.0 / factor
    return 3 * 0.5 * (ratio - 1.0 - math.log(ratio)) / math.log(2.0)


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
    assert found.noisy and found.end == item.log_snr[0]
    silent = anatomy(row("small", eta=0.0, factor=0.0), WORLD)
    assert silent.last_noise == 0.0 and not silent.noisy and silent.ratios == (0.0, 0.0, 0.0) and silent.bits is None


def test_a_single_step_and_a_solver_without_a_rule_have_no_variances():
    found = anatomy(row(steps=1), WORLD)
    assert found.ratios == (None, None, None) and found.last_noise is None and not found.noisy
    assert found.bits is not None and found.bits.path == pytest.approx(DATA + PRIOR)
    assert (found.bits.size, found.bits.rest, found.bits.bands) == (0.0, 0.0, (0.0, 0.0, 0.0))
    found = anatomy(row(None, solver="euler_maruyama", eta=None), WORLD)
    assert found.ratios == (None, None, None) and found.bits is None and found.noisy


# ---- winners and ties


def test_ties_of_distances_are_told_by_differences_over_seeds():
    """Seeds differ by 20, methods by 2 or 8 in every seed: the seeds' spread must not hide that."""
    rows = [row("small", (10.0, 30.0)), row("sn", (12.0, 32.5)), row("npr", (18.0, 38.0))]
    # differences (2, 2.5), (8, 8), (6, 5.5): pooled variance 1/12, limit 0.41
    assert tied(rows, DISTANCE) == rows[:1]
    assert DISTANCE.errors(rows[0], rows[1:]) == pytest.approx([math.sqrt(1 / 24)] * 2)
    # (2, 7), (8, 8), (6, 1): pooled variance 25/3, limit 4.08; the means differ by 4.5 and 8
    assert tied([rows[0], row("sn", (12.0, 37.0)), rows[2]], DISTANCE) == rows[:1]
    # (-1, 6), (8, 8), (9, 2): pooled variance 49/3, limit 5.7; the means differ by 2.5 and 8
    wide = [rows[0], row("sn", (9.0, 36.0)), rows[2]]
    assert tied(wide, DISTANCE) == wide[:2]
    three = [row("small", (1.0, 2.0, 4.0)), row("sn", (2.0, 2.0, 7.0))]  # (1, 0, 3): variance 7/3, over three seeds
    assert DISTANCE.errors(three[0], three[1:]) == pytest.approx([math.sqrt(7 / 9)])


def test_only_the_nearest_methods_lend_their_variance():
    near = [row("sn", (10.0 + k, 10.0 + k)) for k in range(11)]
    far = row("large", (500.0, 900.0))
    assert tied([*near, far], DISTANCE) == near[:1]
    assert tied([*near[:10], far], DISTANCE)[-1] is not near[0]


def test_without_error_bars_nothing_is_tied():
    rows = [row("small", (10.0,), error=None), row("sn", (10.0,), error=None)]
    assert tied(rows, DISTANCE) == rows[:1] and tied(rows, BITS) == rows[:1]
    assert tied([row(eta=0.0)], BITS) == [] and tied([], DISTANCE) == []


def test_rows_without_a_finite_figure_are_not_ranked():
    rows = [row("small", (math.nan, 1.0)), row("sn", (2.0, 2.0)), row("npr", (1.0, 2.0))]
    assert ranked(rows, DISTANCE) == [rows[2], rows[1]]


def test_winners_of_all_and_of_each_formulation():
    rows = [
        row("analytic", (5.0, 5.1), rest=0.5),
        row("small", (9.0, 9.1), factor=0.5),
        row("analytic", (7.0, 7.1), formulation="ve", rest=-0.5),
        row("small", (8.0, 8.1), formulation="ve", eta=0.0),
        row("analytic", (4.0, 4.1), steps=2),
    ]
    text = verdict(results(*rows))
    best, others, *_ = tables(text)
    assert [line[0] for line in best[1:]] == ["**all**", "vp", "ve"]
    assert [line[1].partition(":")[0] for line in best[1:]] == [
        "vp, analytic, even, eta 1",
        "vp, analytic, even, eta 1",
        "ve, analytic, even, eta 1",
    ]
    assert [line[2].partition(":")[0] for line in best[1:]] == [
        "ve, analytic, even, eta 1",
        "vp, analytic, even, eta 1",  # 0.5 bits of rest against 0.66 of size
        "ve, analytic, even, eta 1",
    ]
    assert size_of(0.5) == pytest.approx(0.664, abs=1e-3)
    assert [line[0] for line in others] == ["K", "2"] and "vp, analytic, even, eta 1: **4.0" in others[1][1]
    assert "the best in bits/dim has a Frechet distance of 7.0" in text and "1.40 times the least" in text
    assert "Best of each rule: `analytic` 5.05, `small` 8.05." in text
    assert "Formulations are different networks" in text


def test_ties_are_named_with_what_they_chose():
    rows = [row(rule, (10.0 + k, 12.0 - k), rest=0.001 * k) for k, rule in enumerate(("sn", "npr", "analytic"))]
    text = verdict(results(*rows, row("large", (50.0, 52.0), factor=9.0)))
    assert (
        "**Samples**: not told apart from the best: vp, npr, even, eta 1; vp, analytic, even, eta 1 (in all: rule"
        in text
    )
    assert "(in all: rule sn or npr or analytic)" in text
    told = headline(results(*rows, row("large", (50.0, 52.0), factor=9.0))).splitlines()
    assert told[0] == (
        "best samples at K = 4: vp, sn, even, eta 1 (Frechet distance 11.0 +- 1.4; not told apart: 2 of 3 others)"
    )
    assert told[1].startswith("best likelihood at K = 4: vp, sn, even, eta 1 (bits/dim ") and len(told) == 2


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
    _, samples, where, why = tables(verdict(results(*rows)))
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
    assert rest == f"Rule `analytic`: 0.50 more, through the rest (0.00 instead of -0.50; {where})."
    for line, factor, words in ((small, 0.1, "10.0 times smaller"), (large, 9.0, "9.00 times larger")):
        size = f"{size_of(factor):.2f}"
        assert f"{size} more, through the size ({size} instead of 0.00; variances {words} than measured at" in line
    assert small.startswith("Rule `small`") and large.startswith("Rule `large`")


def test_a_path_that_ends_elsewhere_is_told_by_where():
    rows = (row("sn", rest=0.0, trajectory="least_cost"), row("sn", trajectory="even"))
    best, other = sorted(rows, key=lambda item: item.bound.total.mean)
    (line,) = told(*rows, merit=BITS)
    ends = f"last call at log-SNR {other.log_snr[0]:.1f} instead of {best.log_snr[0]:.1f}"
    assert (
        line.startswith(f"Trajectory `{other.method.trajectory}`: ") and "through the path (" in line and ends in line
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
    assert rule.startswith("Rule `analytic`, `sn`: 1.20 to 1.40 times the distance; goes with added noise")
    assert eta.startswith("Eta `1`: 2.00 times the distance; goes with added noise") and eta.endswith("(best: none).")
    assert elsewhere.startswith("Rules with eta 1: `small` is best with 10.0 ± 0.0; `large`: 4.00 times the distance; ")
    assert "variances of 4.00 times the measured ones at log-SNR > 2 (best: 0.90)" in elsewhere


def test_what_goes_with_nothing_is_said_without_a_reason():
    rows = (row("sn", (5.0, 5.0)), row("npr", (6.0, 6.0), factor=1.05))
    assert told(*rows) == ["Rule `npr`: 1.20 times the distance."]


def test_ties_are_not_explained():
    rows = (row("sn", (5.0, 7.0)), row("npr", (5.1, 7.2), factor=5.0), row("small", (7.2, 5.2), factor=0.2))
    assert told(*rows) == ["Not told apart from the best: `rule npr`, `rule small`."]


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
    assert told(*rows) == ["Rule `r0`, `r1`: 1.20 to 1.30 times the distance.", "Rule `r2`: 3.00 times the distance."]
    assert [line.split(", through")[0] for line in told(*rows, merit=BITS)] == [
        "Rule `r0`, `r1`: 0.10 to 0.15 more",
        "Rule `r2`: 0.31 more",
    ]


def test_parts_that_are_half_as_far_above_are_named_too():
    """0.66 bits of size beside 0.5 of rest, then beside 0.2."""
    best = row("npr", (5.0, 5.0), rest=-1.0)
    (line,) = told(best, row("small", (6.0, 6.0), factor=0.5, rest=-0.5), merit=BITS)
    assert "1.16 more, through the size (0.66 instead of 0.00; " in line and "the rest (-0.50 instead of -1.00;" in line
    (line,) = told(best, row("small", (6.0, 6.0), factor=0.5, rest=-0.8), merit=BITS)
    assert "0.86 more, through the size (" in line and "the rest" not in line


# ---- what may be missing


def test_one_seed_is_told_and_judges_nothing():
    text = verdict(results(row("sn", (5.0,)), row("small", (5.1,), factor=0.5)))
    assert "**Samples**: without error bars no difference can be judged" in text
    assert "With one seed there is no spread" in text and "score 3.00." in text
    assert "(tie)" not in tables(text)[1][2][2]


def test_no_bounds_anywhere():
    found = results(row("sn", eta=0.0), row("small", (20.0, 22.0), eta=0.0))
    text = verdict(found)
    assert "no method of this comparison has a bound" in text and "## Bits/dim" not in text
    assert tables(text)[0][1][2] == "–"
    assert headline(found) == "best samples at K = 4: vp, sn, even, eta 0 (Frechet distance 11.0 +- 1.4)"


def test_a_solver_without_a_rule_can_win():
    solver = row(None, (5.0, 5.1), solver="heun", eta=None)
    text = verdict(results(solver, row("sn", (9.0, 9.1))))
    samples = tables(text)[1]
    assert samples[1][0] == "**vp, heun, even**" and samples[1][3:6] == ["–"] * 3
    assert samples[2][0] == "solver reverse_gaussian (sn, eta 1)"
    assert "Best of each rule: `heun` 5.05, `sn` 9.05." in text
    assert "the best in samples has no bound" in text


def test_one_formulation_one_method():
    text = verdict(results(row()))
    assert [line[0] for line in tables(text)[0]] == ["best of", "**all**"]
    assert "different networks" not in text and "told apart from all others" not in text
    assert "**Samples**: no other method has this figure." in text and "best of 1 methods" not in text


def test_nothing_at_the_shown_number_of_steps():
    found = results(row(steps=2), shown=4)
    assert "No method has finished at K = 4." in verdict(found) and "## Samples" not in verdict(found)
    assert headline(found) == "no method has finished at K = 4."


def test_tensorboard_renders_every_table_and_list():
    rows = [
        row(rule, (5.0 + k, 6.0 + k), formulation=f, trajectory=t, steps=s, factor=1.0 + 0.2 * k)
        for f in ("vp", "ve")
        for t in ("even", "least_cost")
        for k, rule in enumerate(("small", "large", "analytic"))
        for s in (2, 4)
    ]
    text = verdict(results(*rows))
    html = markdown_to_safe_html(text)
    assert html.count("<table>") == len(tables(text)) == 5
    assert html.count("<li>") == sum(line.startswith("* ") for line in text.splitlines())
    assert "|" not in html and "**" not in html and "## " not in html and "WARNING" not in html
    assert len(text.splitlines()) < 80
