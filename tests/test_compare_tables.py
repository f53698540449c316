"""Tables of a comparison as files: exact CSV, rounding, what is in bold, LaTeX that has its structure."""

from __future__ import annotations

import csv
import dataclasses
import re

from adpm.run.compare.method import Method, Skipped
from adpm.run.compare.tables import escaped, names, write_tables
from tests.comparisons import DATA, PRIOR, results, row, tables


def test_cells_csv_gives_every_float_back(tmp_path):
    first = row("sn", (1 / 3, 0.1), rest=1e-7 / 3, clipped=0.7, seconds=12.3456789)
    without = row("small", (7.0, 8.0), eta=0.0)
    solver = row(None, (5.0, 6.0), solver="euler_maruyama", eta=None)
    write_tables(results(first, without, solver), [], tmp_path)
    read = list(csv.DictReader((tmp_path / "cells.csv").open(newline="")))
    assert list(read[0])[-1] == "seconds" and float(read[0]["seconds"]) == 12.3456789
    assert [float(read[0][f"frechet_distance_seed_{seed}"]) for seed in (0, 1)] == [1 / 3, 0.1]
    assert float(read[0]["frechet_distance"]) == first.distance
    assert float(read[0]["frechet_distance_std"]) == first.spread
    assert first.bound is not None
    assert float(read[0]["bits_per_dim"]) == first.bound.total.mean
    assert float(read[0]["bits_per_dim_error"]) == 0.02 and read[0]["images"] == "64"
    assert float(read[0]["data_term"]) == DATA and float(read[0]["prior"]) == PRIOR
    assert float(read[0]["kl_terms"]) == float(first.bound.terms[1:-1].sum())
    assert float(read[0]["largest_clipped_share"]) == 0.7
    assert read[1]["bits_per_dim"] == read[1]["data_term"] == read[1]["images"] == "" and read[1]["eta"] == "0.0"
    assert read[2]["rule"] == read[2]["eta"] == "" and read[2]["solver"] == "euler_maruyama"
    assert (read[0]["steps"], read[0]["network_calls"]) == ("4", "4")


def test_one_seed_has_no_standard_deviation(tmp_path):
    write_tables(results(row("sn", (5.0,)), row("small", (5.01,))), [], tmp_path)
    read = list(csv.DictReader((tmp_path / "cells.csv").open(newline="")))
    assert read[0]["frechet_distance_std"] == "" and "frechet_distance_seed_1" not in read[0]
    text = (tmp_path / "frechet_distance.md").read_text()
    (table,) = tables(text)
    assert [line[1] for line in table] == ["K = 4", "3.00", "**5.00**", "5.01"]
    assert "one seed" in text


def test_only_clock_time_may_differ_between_two_runs(tmp_path):
    rows = (row("sn"), row("small", (11.0, 14.0)))
    later = tuple(dataclasses.replace(item, seconds=99.0) for item in rows)
    for folder, found in (("a", rows), ("b", rows), ("c", later)):
        write_tables(results(*found), [], tmp_path / folder)
    a, b, c = ({path.name: path.read_bytes() for path in (tmp_path / x).iterdir()} for x in "abc")
    assert a == b and a.keys() == c.keys()
    assert {name for name in a if a[name] != c[name]} == {"cells.csv"}

    def cut(text: bytes) -> list[bytes]:
        return [line.rpartition(b",")[0] for line in text.splitlines()]

    assert cut(a["cells.csv"]) == cut(c["cells.csv"])


def test_bold_is_the_least_and_what_is_tied(tmp_path):
    """The difference over two seeds is (14, 16): variance 2, error 1, and chance allows 12.7."""
    rows = (row("small", (24.0, 28.0)), row("sn", (10.0, 12.0)), row("large", (40.0, 42.0), factor=4.0))
    write_tables(results(*rows), [], tmp_path)
    (table,) = tables((tmp_path / "frechet_distance.md").read_text())
    assert [line[-1] for line in table[1:]] == ["3.50 ± 0.71", "26.0 ± 2.8", "**11.0 ± 1.4**", "41.0 ± 1.4"]
    near = (row("small", (21.0, 25.0)), *rows[1:])  # (11, 13): the same limit
    write_tables(results(*near), [], tmp_path)
    (table,) = tables((tmp_path / "frechet_distance.md").read_text())
    assert [line[-1].startswith("**") for line in table[2:]] == [True, True, False]
    rows = (row("small", rest=0.056), row("sn"), row("large", rest=0.058))
    write_tables(results(*rows), [], tmp_path)
    (table,) = tables((tmp_path / "bits_per_dim.md").read_text())
    assert [line[-1].startswith("**") for line in table[1:]] == [True, True, False]


def test_columns_are_the_choices_that_there_are(tmp_path):
    rows = [row(rule, steps=k, factor=2.0) for rule in ("small", "sn") for k in (2, 4)]
    write_tables(results(*rows, row("sn", eta=0.0)), [], tmp_path)
    text = (tmp_path / "frechet_distance.md").read_text()
    (table,) = tables(text)
    assert table[0] == ["rule", "eta", "K = 2", "K = 4"]
    assert table[1][:2] == ["real images (bootstrap)", ""] and table[1][2] == table[1][3] == "3.50 ± 0.71"
    assert table[4][2] == "–"
    assert "formulation vp, trajectory even, solver reverse_gaussian" in text
    text = (tmp_path / "bits_per_dim.md").read_text()
    (table,) = tables(text)
    assert table[0] == ["rule", "K = 2", "K = 4"] and len(table) == 3
    assert "eta 1" in text and "64 images of the test split" in text


def test_the_caption_claims_no_solver_that_some_have_not(tmp_path):
    write_tables(results(row("sn"), row(None, (20.0, 22.0), solver="euler_maruyama", eta=None)), [], tmp_path)
    text = (tmp_path / "frechet_distance.md").read_text()
    assert "All with formulation vp, trajectory even." in text and "solver" not in text.rpartition("All with")[2]


def test_a_solver_without_a_rule_stands_in_the_rules_column(tmp_path):
    rows = (row("sn"), row(None, (20.0, 22.0), solver="euler_maruyama", eta=None))
    write_tables(results(*rows), [], tmp_path)
    (table,) = tables((tmp_path / "frechet_distance.md").read_text())
    assert [line[:2] for line in table] == [
        ["rule", "eta"],
        ["real images (bootstrap)", ""],
        ["sn", "1"],
        ["euler_maruyama", ""],
    ]
    other = row("sn", (20.0, 22.0), solver="heun")
    write_tables(results(rows[0], other), [], tmp_path)
    (table,) = tables((tmp_path / "frechet_distance.md").read_text())
    assert [line[0] for line in table] == ["solver", "real images (bootstrap)", "reverse_gaussian", "heun"]


def test_latex_has_its_structure(tmp_path):
    rows = [row(formulation=f, trajectory=t) for f in ("a_1", "b%2") for t in ("even", "least_cost")]
    write_tables(results(*rows), [], tmp_path)
    for name, heads in (("frechet_distance", 3), ("bits_per_dim", 2)):
        text = (tmp_path / f"{name}.tex").read_text()
        assert text.isascii()
        lines = text.splitlines()
        body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
        data = [line for line in body if line != r"\midrule"]
        assert {line.count("&") for line in data} == {2} and all(line.endswith(r" \\") for line in data)
        assert body.count(r"\midrule") == heads
        assert r"\begin{tabular}{llr}" in lines and lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}"
        assert r"a\_1 & least\_cost & $" in text and r"b\%2 & even & $" in text
        assert r"\mathbf{" in text and r" \pm " in text
        plain = re.sub(r"\\label\{[^}]*\}|\\[_&%$#{}]|\$[^$]*\$", "", text)
        assert not re.search(r"[_%#^~]", plain)
        unescaped = re.sub(r"\\[{}]", "", text)
        assert unescaped.count("{") == unescaped.count("}")
        assert text.count("$") % 2 == 0


def test_names_that_occur_are_explained_below_the_markdown(tmp_path):
    """Formulations first, then rules, trajectories and solvers; in a table a bar would end a cell."""
    about = {"sn": "Var[x0 | x_t] of a head", "npr": "not here", "even": "even times", "vp": "a process", "heun": "ODE"}
    found = results(row("sn"), row(None, solver="heun", eta=None), about=about)
    told = [["`vp`", "a process"], ["`sn`", "Var[x0 \\| x_t] of a head"], ["`even`", "even times"], ["`heun`", "ODE"]]
    lines = names(found).splitlines()
    assert lines[0] == "| name | what it is |" and lines[2:] == [f"| {name} | {text} |" for name, text in told]
    write_tables(found, [], tmp_path)
    assert (tmp_path / "frechet_distance.md").read_text().endswith(f"\n\n{names(found)}\n")
    assert "a process" not in (tmp_path / "frechet_distance.tex").read_text()
    assert names(results(row("sn"))) == "" and names(results(row("small"), about={"sn": "a head"})) == ""


def test_latex_escapes():
    assert escaped("a_b & 5% #1 {x} $ ^ ~ \\ < ±") == (
        r"a\_b \& 5\% \#1 \{x\} \$ \textasciicircum{} \textasciitilde{} \textbackslash{} $<$ $\pm$"
    )


def test_skipped_by_reason_and_no_stale_files(tmp_path):
    methods = [Method("vp", rule, "even", "reverse_gaussian", 0.0) for rule in ("large", "sn", "npr")]
    skipped = [
        Skipped(methods[0], "no such thing", (2, 4)),
        Skipped(methods[1], "no head", (2,)),
        Skipped(methods[2], "no such thing", (4,)),
    ]
    write_tables(results(row()), skipped, tmp_path)
    assert (tmp_path / "skipped.md").read_text().split("\n\n") == [
        "Not run; the reason stands above each list.",
        "no such thing",
        "* vp, large, even, eta 0; K = 2, 4\n* vp, npr, even, eta 0; K = 4",
        "no head",
        "* vp, sn, even, eta 0; K = 2\n",
    ]
    assert (tmp_path / "bits_per_dim.tex").exists()
    write_tables(results(row(eta=0.0)), [], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cells.csv",
        "frechet_distance.md",
        "frechet_distance.tex",
    ]


def test_nothing_measured_writes_nothing(tmp_path):
    write_tables(results(), [], tmp_path / "tables")
    assert not (tmp_path / "tables").exists()
