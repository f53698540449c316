"""The answer of a comparison and the names in it, from hand-made results."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import t as student_t
from tensorboard.plugin_util import markdown_to_safe_html

from adpm.run.compare import glossary
from adpm.run.compare.merit import BITS, DISTANCE, ranked, tied
from adpm.run.compare.results import described
from adpm.run.compare.verdict import headline, sections, verdict
from adpm.run.compare.verdict.answer import NAMED
from adpm.run.data import digits
from tests.comparisons import PROCESS, results, row, size_of, tables
from tests.test_compare_grid import TABLES

# ---- winners and ties


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
    assert "The best in bits/dim has a Frechet distance of 7.0" in text and "1.40 times the least" in text
    assert "Best of each rule, samples (Frechet distance): `analytic` 5.05, `small` 8.05." in text
    assert "was run with" not in text and "rules that all have" not in text
    assert "Formulations are different networks" in text


# ---- the answer


def test_the_answer_comes_first_and_names_the_tied():
    rows = [row(rule, (10.0 + k, 12.0 - k), rest=0.001 * k) for k, rule in enumerate(("sn", "npr", "analytic"))]
    found = results(*rows, row("large", (50.0, 52.0), factor=9.0))
    lines = verdict(found).splitlines()
    answer = (
        "no clear winner: 3 of 4 methods are tied, led by vp, sn, even, eta 1 (Frechet distance 11.0 ± 1.4). "
        "There are 2 seeds only, and a ± of 2 seeds is itself uncertain."
    )
    assert lines[0] == "## Who wins at K = 4" and lines[2] == f"* **Samples at K = 4**: {answer}"
    assert lines[3] == "* **Tied**: vp, sn, even, eta 1; vp, npr, even, eta 1; vp, analytic, even, eta 1."
    assert lines[4].startswith("* **Likelihood at K = 4**: no clear winner: 3 of 4 methods are tied, led by vp, sn, ")
    assert lines[6] == "* **Experiment**: digits, 1 x 2 x 2; 4 methods, 2 seeds of 1,000 samples."
    assert tables(verdict(found))[0][1][1] == "vp, sn, even, eta 1: **11.0 ± 1.4** (+ 2 tied)"
    told = headline(found)
    assert told.isascii() and len(told.splitlines()) == 2
    assert told.splitlines()[0] == f"Samples at K = 4: {answer}".replace("±", "+-")


def test_a_clear_winner_is_told_with_its_lead():
    five = tuple(5.0 + 0.01 * k for k in range(5))
    rows = [row("sn", five), row("npr", tuple(d + 1.0 + 0.1 * (k % 2) for k, d in enumerate(five)), rest=0.5)]
    lines = headline(results(*rows)).splitlines()
    error = float(np.std([1.0, 1.1, 1.0, 1.1, 1.0], ddof=1)) / math.sqrt(5)
    lead = f"behind by 1.04 +- {error:.2f} (paired)."  # five seeds need no warning
    assert lines[0].startswith(
        "Samples at K = 4: vp, sn, even, eta 1 wins with Frechet distance 5.02 +- 0.02; the next,"
    )
    assert lines[0].endswith(f"the next, vp, npr, even, eta 1, is {lead}")
    paired = 0.02 * math.sqrt(2.0)  # images' errors are uncorrelated
    assert lines[1].endswith(f"bits/dim; the next, vp, npr, even, eta 1, is behind by 0.500 +- {paired:.3f} (paired).")
    assert "Few seeds" not in verdict(results(*rows))


def test_more_tied_methods_than_a_line_has_room_for_are_counted():
    rows = [row(f"r{k}", (10.0 + 0.1 * k, 20.0 - 0.1 * k)) for k in range(NAMED + 3)]
    tied_line = verdict(results(*rows)).splitlines()[3]
    assert tied_line.count("; ") == NAMED and tied_line.endswith("; 3 more.")


def test_formulations_with_fewer_rules_are_compared_at_the_rules_that_all_have():
    rows = [
        row("npr", (5.0, 5.1)),
        row("small", (9.0, 9.1), factor=0.5),
        row("large", (8.0, 8.1), factor=2.0),
        row("small", (7.0, 7.1), formulation="ve"),
        row("large", (7.5, 7.6), formulation="ve"),
    ]
    text = verdict(results(*rows))
    assert "* `ve` was run with `small` and `large` only;" in text and "`vp` was run" not in text
    best = tables(text)[0]
    assert [line[0] for line in best[1:]] == ["**all**", "vp", "ve", "vp, rules that all have"]
    assert best[2][1].startswith("vp, npr") and best[4][1].startswith("vp, large, even, eta 1: **8.0")


def test_sections_are_the_text_in_order():
    found = results(row("sn", (5.0, 5.1)), row("small", (9.0, 9.1), factor=0.5))
    parts = sections(found)
    assert list(parts) == ["answer", "names", "samples", "bits per dim", "how to read it"]
    assert all(part.startswith("## ") and part.count("\n## ") == 0 for part in parts.values())
    assert "\n\n".join(parts.values()) + "\n" == verdict(found)


def test_what_is_worse_than_the_uniform_code_is_counted():
    rows = (row("sn"), row("small", rest=0.5))
    assert [round(item.bound.total.mean, 2) for item in rows if item.bound] == [3.2, 3.7]
    told = "The uniform code of 11 levels spends 3.46 bits/dim; 1 of 2 methods at K = 4 are worse than that."
    assert told in verdict(results(*rows, levels=11))
    assert "uniform code" not in verdict(results(*rows, levels=0))


# ---- the names


def test_every_name_of_the_families_is_in_the_glossary():
    assert set(glossary.RULES) == set(TABLES.rules)
    assert set(glossary.TRAJECTORIES) == set(TABLES.trajectories)
    assert set(glossary.SOLVERS) == set(TABLES.solvers)
    told = [*glossary.RULES.values(), *glossary.TRAJECTORIES.values(), *glossary.SOLVERS.values()]
    assert all(line and not set(line) & set("|\n") for line in told)


def test_the_glossary_tells_the_names_that_occur_and_no_others():
    solver = row(None, (5.0, 5.1), solver="probability_flow_euler", eta=None, trajectory="least_cost")
    text = glossary.glossary(results(row("sn"), row("small", eta=0.0), row("a_new_rule"), solver))
    (table,) = tables(text)
    assert [tuple(line[:2]) for line in table[1:]] == [
        ("formulation", "`vp`"),
        ("rule", "`small`"),
        ("rule", "`sn`"),
        ("trajectory", "`even`"),
        ("trajectory", "`least_cost`"),
        ("solver", "`reverse_gaussian`"),
        ("solver", "`probability_flow_euler`"),
        ("eta", "`1`, `0`"),
    ]
    low, high = PROCESS.log_snr(np.array([100.0, 1.0]))
    assert table[1][2].endswith(f"log-SNR {high:.1f} to {low:.1f}") and "given by its betas" in table[1][2]
    (table,) = tables(glossary.glossary(results(solver)))
    assert not [line for line in table if line[0] in ("rule", "eta")]


def test_data_are_described_in_a_line():
    assert described(digits()) == "digits, 1 x 8 x 8, 17 levels, 1,438 train and 359 test images"
    real = dataclasses.replace(digits(), levels=0)
    assert described(real) == "digits, 1 x 8 x 8, continuous values, 1,438 train and 359 test images"


# ---- what may be missing


def test_one_seed_is_told_and_judges_nothing():
    text = verdict(results(row("sn", (5.0,)), row("small", (5.1,), factor=0.5)))
    assert "is best (Frechet distance 5.00), but without error bars no difference can be judged" in text
    assert "With one seed there is no spread" in text and "score 3.00; values below it are not better than" in text
    assert "(tied)" not in tables(text)[2][2][2] and "Few seeds" not in text


def test_no_bounds_anywhere():
    found = results(row("sn", eta=0.0), row("small", (20.0, 22.0), eta=0.0))
    text = verdict(found)
    assert "no method of this comparison has a bound" in text and "## Bits/dim" not in text
    assert tables(text)[0][1][2] == "–"
    assert list(sections(found)) == ["answer", "names", "samples", "how to read it"]
    assert len(headline(found).splitlines()) == 1 and headline(found).startswith("Samples at K = 4: vp, sn, even, eta")


def test_a_solver_without_a_rule_can_win():
    solver = row(None, (5.0, 5.1), solver="heun", eta=None)
    text = verdict(results(solver, row("sn", (9.0, 9.1))))
    samples = tables(text)[2]
    assert samples[1][0] == "**vp, heun, even**" and samples[1][3:6] == ["–"] * 3
    assert samples[2][0] == "solver reverse_gaussian (sn, eta 1)"
    assert "Best of each rule, samples (Frechet distance): `heun` 5.05, `sn` 9.05." in text
    assert "the best in samples has no bound" in text


def test_one_formulation_one_method():
    text = verdict(results(row()))
    assert [line[0] for line in tables(text)[0]] == ["best of", "**all**"]
    assert "different networks" not in text and "wins with" not in text
    assert "eta 1 is the only method with this figure (Frechet distance 11.0 ± 1.4)." in text
    assert "best of 1 methods" not in text and "Best of each rule" not in text and "do not explain" not in text


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
    assert html.count("<table>") == len(tables(text)) == 6
    assert html.count("<li>") == sum(line.startswith("* ") for line in text.splitlines())
    assert "|" not in html and "**" not in html and "## " not in html and "WARNING" not in html
    assert len(text.splitlines()) < 90
