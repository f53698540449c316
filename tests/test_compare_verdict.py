"""Who wins a comparison and what one other choice would change, from hand-made results whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from adpm.run.compare.merit import DISTANCE
from adpm.run.compare.verdict import NAMED, bits, differing, headline, neighbours, sections, verdict
from tests.comparisons import DATA, PRIOR, results, row, size_of, tables

# ---- who wins


def test_the_best_of_all_of_each_formulation_and_at_other_steps():
    rows = [
        row("analytic", (5.0, 5.1), rest=0.5),
        row("small", (9.0, 9.1), factor=0.5),
        row("analytic", (7.0, 7.1), formulation="ve", rest=-0.5),
        row("small", (8.0, 8.1), formulation="ve", eta=0.0),
        row("analytic", (4.0, 4.1), steps=2),
    ]
    text = verdict(results(*rows))
    best, *_ = tables(text)
    assert best[0] == ["best of", "samples: Frechet distance", "likelihood: bits/dim"]
    assert [line[0] for line in best[1:]] == ["**all**", "vp", "ve", "all, K = 2"]
    title = "{}, analytic, even, eta 1"
    assert [line[1].partition(":")[0] for line in best[1:]] == [title.format(f) for f in ("vp", "vp", "ve", "vp")]
    # of vp, 0.5 bits of rest against 0.66 of size
    assert [line[2].partition(":")[0] for line in best[1:]] == [title.format(f) for f in ("ve", "vp", "ve", "vp")]
    assert size_of(0.5) == pytest.approx(0.664, abs=1e-3)
    assert best[1][1].endswith(": **5.05 ± 0.07**") and best[4][1].endswith(": **4.05 ± 0.07**")
    assert "Formulations are different networks" in text


def test_the_answer_comes_first_and_names_the_tied():
    rows = [row(rule, (10.0 + k, 12.0 - k), rest=0.001 * k) for k, rule in enumerate(("sn", "npr", "analytic"))]
    found = results(*rows, row("large", (50.0, 52.0), factor=9.0))
    lines = verdict(found).splitlines()
    answer = "no clear winner: 3 of 4 methods are tied, led by vp, sn, even, eta 1 (Frechet distance 11.0 ± 1.4)."
    equal = "Tied with it: vp, npr, even, eta 1; vp, analytic, even, eta 1."
    assert lines[0] == "## Who wins at K = 4" and lines[2] == f"* **Samples**: {answer} {equal}"
    assert lines[3].startswith(
        "* **Likelihood**: no clear winner: 3 of 4 methods are tied, led by vp, sn, even, eta 1 ("
    )
    assert tables(verdict(found))[0][1][1] == "vp, sn, even, eta 1: **11.0 ± 1.4** (+ 2 tied)"
    told = headline(found)
    assert told.isascii() and len(told.splitlines()) == 2
    assert told.splitlines()[0] == f"Samples at K = 4: {answer}".replace("±", "+-")


def test_a_clear_winner_is_told_with_its_lead():
    five = tuple(5.0 + 0.01 * k for k in range(5))
    rows = [row("sn", five), row("npr", tuple(d + 1.0 + 0.1 * (k % 2) for k, d in enumerate(five)), rest=0.5)]
    lines = headline(results(*rows)).splitlines()
    error = float(np.std([1.0, 1.1, 1.0, 1.1, 1.0], ddof=1)) / math.sqrt(5)
    wins = (
        "Samples at K = 4: vp, sn, even, eta 1 wins with Frechet distance 5.02 +- 0.02; the next, vp, npr, even, eta 1"
    )
    assert lines[0] == f"{wins}, is behind by 1.04 +- {error:.2f} (paired)."
    paired = 0.02 * math.sqrt(2.0)  # images' errors are uncorrelated
    assert lines[1].endswith(f"bits/dim; the next, vp, npr, even, eta 1, is behind by 0.500 +- {paired:.3f} (paired).")
    assert "seeds are few" not in verdict(results(*rows)), "five need no warning"


def test_more_tied_methods_than_a_line_has_room_for_are_counted():
    rows = [row(f"r{k}", (10.0 + 0.1 * k, 20.0 - 0.1 * k)) for k in range(NAMED + 3)]
    line = verdict(results(*rows)).splitlines()[2]
    assert line.count("vp, r") == NAMED + 1 and line.endswith("; 2 more.")


# ---- one choice changed


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
    found = neighbours(rows, DISTANCE)
    assert list(found) == [
        "rule npr",
        "rule small",
        "trajectory least_cost",
        "eta 0.5",
        "formulation ve",
        "solver heun",
    ]
    assert list(found.values()) == [rows[k] for k in (2, 1, 4, 5, 3, 7)]
    # around the solver, the best of another solver's choices stands for them
    around = [*rows[1:3], row(None, (1.0, 1.1), solver="heun", eta=None)]
    assert neighbours(around, DISTANCE) == {"solver reverse_gaussian": rows[2]}
    assert differing(rows[1].method, rows[6].method) == ["eta"]


def test_the_tables_of_one_choice_have_figures_and_differences():
    rows = [
        row("sn", (5.0, 5.0), rest=-0.2),
        row("small", (20.0, 20.0), factor=0.1, rest=-0.2),
        row("npr", (5.0, 5.0), rest=-0.19),
        row("sn", (10.0, 10.0), trajectory="least_cost", rest=9.0),
    ]
    _, samples, likelihood = tables(verdict(results(*rows)))
    names = ["**vp, sn, even, eta 1**", "rule npr", "rule small", "trajectory least_cost"]
    assert samples[0] == ["choice", "Frechet distance", "÷ best", "tied"]
    assert [line[0] for line in samples[1:]] == [line[0] for line in likelihood[1:]] == names
    assert [line[1] for line in samples[1:]] == ["5.00 ± 0.00", "5.00 ± 0.00", "20.0 ± 0.0", "10.0 ± 0.0"]
    assert [line[2] for line in samples[1:]] == ["1.00", "1.00", "4.00", "2.00"]
    assert [line[3] for line in samples[1:]] == ["", "yes", "", ""]
    assert likelihood[0] == ["choice", "bits/dim", "more", "data term", "steps", "prior", "tied"]
    assert [line[2] for line in likelihood[1:4]] == ["0.00", "0.01", f"{size_of(0.1):.2f}"]
    assert {(line[3], line[5]) for line in likelihood[1:]} == {(f"{DATA:.2f}", f"{PRIOR:.2f}")}
    assert [line[6] for line in likelihood[1:]] == ["", "yes", "", ""]
    ordered = [rows[0], rows[2], rows[1], rows[3]]
    assert [line[4] for line in likelihood[1:]] == [bits(item.bound.terms[1:-1].sum()) for item in ordered]


def test_bits_are_legible_from_small_to_huge():
    assert [bits(x) for x in (2.356, -0.001, 99.994, 99.996, 20112.6)] == ["2.36", "0.00", "99.99", "100", "20113"]


# ---- what is said around it, and what may be missing


def test_the_protocol_is_a_paragraph():
    found = results(row("sn"), row("small", rest=0.5), levels=11)
    told = sections(found)["protocol"].splitlines()
    assert told[0] == "## Protocol" and len(told) == 3
    for part in (
        "Digits, 1 x 2 x 2; 2 methods.",
        "between 1,000 samples and the real images (features: digits), mean ± standard deviation over 2 seeds.",
        "These score 3.50 ± 0.71;",
        "2 seeds are few",
        "on 64 images of the test split, one draw of noise, decoder variance optimal, mean ± one standard error",
        "A uniform code costs 3.46.",
        "so its own are slightly optimistic",
    ):
        assert part in told[2]
    assert "uniform code" not in verdict(results(row("sn"), levels=0))
    assert "different networks" not in verdict(found)


def test_sections_are_the_text_in_order():
    found = results(row("sn", (5.0, 5.1)), row("small", (9.0, 9.1), factor=0.5), about={"sn": "a head"})
    parts = sections(found)
    assert list(parts) == ["answer", "samples", "likelihood", "names", "protocol"]
    assert all(part.startswith("## ") and part.count("\n## ") == 0 for part in parts.values())
    assert "\n\n".join(parts.values()) + "\n" == verdict(found)
    assert tables(parts["names"]) == [[["name", "what it is"], ["`sn`", "a head"]]]


def test_one_seed_is_told_and_judges_nothing():
    text = verdict(results(row("sn", (5.0,)), row("small", (5.1,), factor=0.5)))
    assert "is best (Frechet distance 5.00), but without error bars no difference can be judged" in text
    assert "One seed has no spread" in text and "These score 3.00;" in text and "seeds are few" not in text
    assert [line[3] for line in tables(text)[1][1:]] == ["", ""]


def test_no_bounds_anywhere():
    found = results(row("sn", eta=0.0), row("small", (20.0, 22.0), eta=0.0))
    assert list(sections(found)) == ["answer", "samples", "protocol"] and tables(verdict(found))[0][1][2] == "–"
    assert "variational" not in verdict(found)
    assert len(headline(found).splitlines()) == 1 and headline(found).startswith("Samples at K = 4: vp, sn, even, eta")


def test_a_solver_without_a_rule_can_win():
    solver = row(None, (5.0, 5.1), solver="heun", eta=None)
    text = verdict(results(solver, row("sn", (9.0, 9.1))))
    assert "vp, heun, even wins with Frechet distance 5.05" in text
    assert [line[0] for line in tables(text)[1][1:]] == ["**vp, heun, even**", "solver reverse_gaussian"]
    assert "is the only method with this figure" in text, "the other one has no bound"


def test_nothing_at_the_shown_number_of_steps():
    found = results(row(steps=2), shown=4)
    assert "No method has finished at K = 4." in verdict(found) and "## Samples" not in verdict(found)
    assert headline(found) == "no method has finished at K = 4."


def test_it_fits_a_screen_and_tensorboard_renders_it():
    rules = ("small", "large", "analytic", "sn", "npr", "relative")
    rows = [
        row(rule, (5.0 + k, 6.0 + k), formulation=f, trajectory=t, steps=s, factor=1.0 + 0.2 * k)
        for f in ("vp", "ve", "discrete")
        for t in ("even", "least_cost")
        for k, rule in enumerate(rules)
        for s in (2, 4)
    ]
    text = verdict(results(*rows, about={name: f"what {name} | is" for name in ("vp", "ve", *rules)}))
    html = markdown_to_safe_html(text)
    assert html.count("<table>") == len(tables(text)) == 4
    assert html.count("<li>") == sum(line.startswith("* ") for line in text.splitlines())
    assert "**" not in html and "## " not in html and "WARNING" not in html and "what vp | is</td>" in html
    assert len(text.splitlines()) <= 60
