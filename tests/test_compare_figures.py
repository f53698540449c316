"""Figures of a comparison, of results made by hand: what is in the axes, which figures there are, and their files."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from adpm.bound import BitsPerDim
from adpm.run.compare.figures import FIGURES, STYLE, save_figures, strip, variance_bounds
from adpm.run.compare.results import Bound, Formulation
from tests.comparisons import PROCESS, moments, results, row

SETTINGS = [("even", 1.0), ("even", 0.0), ("least_cost", 1.0)]
RULES = ("small", "large", "head")


def cells(names=("discrete", "vp"), rules=RULES, chosen=SETTINGS, steps=(2, 4)):
    """Distances and variances rise with the number of the rule."""
    return [
        row(rule, (10.0 + i, 14.0 + i), formulation=name, trajectory=path, eta=eta, steps=k, factor=1.0 + 0.5 * i)
        for name, (path, eta), (i, rule), k in itertools.product(names, chosen, enumerate(rules), steps)
    ]


def points(axes, bold):
    """Of lines of methods, or of those through the best rules."""
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 1 and (line.get_alpha() is None) == bold]
    return {(x, y) for line in drawn for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


def entries(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_quality_has_every_method_thin_and_the_best_rules_bold():
    rows = [replace(r, nfe=2 * r.steps) for r in cells()]
    figure = FIGURES["quality"](results(*rows))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["discrete", "vp", "", ""]
    assert entries(figure) == [*RULES, "even, eta 1", "even, eta 0", "least_cost, eta 1", "real images (bootstrap)"]
    for axes, value in ((figure.axes[1], lambda r: r.distance), (figure.axes[3], lambda r: r.bound.total.mean)):
        having = [r for r in rows if r.method.formulation == "vp" and (axes is figure.axes[1] or r.bound)]
        assert points(axes, bold=False) == {(2 * r.steps, value(r)) for r in having}
        assert points(axes, bold=True) == {(2 * r.steps, value(r)) for r in having if r.method.rule == "small"}
    assert {line.get_linestyle() for line in figure.axes[1].lines if line.get_alpha()} == {"-", "--", ":"}
    assert [tick.get_text() for tick in figure.axes[3].get_xticklabels()] == ["4", "8"]
    bars = np.concatenate([np.array(found.get_segments()) for found in figure.axes[1].collections])
    np.testing.assert_allclose(bars[:, 1, 1] - bars[:, 0, 1], 2.0 * math.sqrt(8.0))  # of (a, a + 4)
    assert figure.axes[1].patches[0].get_bbox().intervaly == pytest.approx([3.5 - 0.5**0.5, 3.5 + 0.5**0.5])


def test_axes_end_with_the_worst_of_the_best_also_below_zero():
    for bits, scale, limits in (((0.0, -2.0), "linear", (-2.12, 0.12)), ((40.0, 1.0), "log", (0.8, 50.0))):
        totals = {"small": bits, "large": (20000.0, 20000.0), "head": bits}
        rows = cells(chosen=SETTINGS[:1])
        found = [replace(r.bound, total=BitsPerDim(totals[r.method.rule][r.steps // 4], 0.1)) for r in rows]
        rows = [replace(r, bound=bound) for r, bound in zip(rows, found, strict=True)]
        axes = FIGURES["quality"](results(*rows)).axes[2]
        assert axes.get_yscale() == scale and axes.get_ylim() == pytest.approx(limits)


def test_bits_add_up_from_noise_to_data():
    rows = cells(chosen=SETTINGS[:1], steps=(4,))
    figure = FIGURES["bound_terms"](results(*rows, *cells(chosen=SETTINGS[1:2])))
    assert "K = 4, even, eta 1" in figure.get_suptitle() and len(figure.axes) == 2
    for line, r in zip(figure.axes[1].lines, rows[3:], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [*r.log_snr[::-1], r.log_snr[0]])
        data, last, middle, first, prior = r.bound.terms
        spent = [prior, prior + first, prior + first + middle, prior + first + middle + last]
        np.testing.assert_allclose(line.get_ydata(), [*spent, spent[-1] + data])
    huge = Bound(BitsPerDim(9000.0, 1.0), 5000.0 * rows[1].bound.terms, rows[1].bound.per_image)
    (axes,) = FIGURES["bound_terms"](results(rows[0], replace(rows[1], bound=huge))).axes
    assert axes.get_ylim()[1] < 1.1 * rows[0].bound.total.mean, "what costs thousands does not stretch the axis"
    assert FIGURES["bound_terms"](results(*cells(chosen=[("even", 0.0)]))) is None


def band_of(times, eta, variance=0.25):
    """lambda2 and the upper bound from alpha and sigma alone, subtractions and all."""
    squares = PROCESS.alpha(times) ** 2, PROCESS.sigma(times) ** 2
    (as_, at), (ss, st) = ((square[:-1], square[1:]) for square in squares)
    lam = eta**2 * (st - at / as_ * ss) * ss / st
    gain = np.sqrt(as_) - np.sqrt(at) * np.sqrt(ss - lam) / np.sqrt(st)
    # the best linear guess m + c (x_t - alpha_t m) has c = alpha_t V / (alpha_t^2 V + sigma_t^2)
    return np.array([lam, lam + gain**2 * (variance - at * variance**2 / (at * variance + st))])


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_variances_are_bounded_by_theory(eta):
    times = np.array([1.0, 34.0, 67.0, 100.0])
    known = Formulation(PROCESS, moments(), 1.0)
    np.testing.assert_allclose(variance_bounds(known, times, eta), band_of(times, eta), rtol=1e-9)
    unknown = replace(known, moments=replace(known.moments, data_variance=math.nan))  # then no variance is above 1
    np.testing.assert_allclose(variance_bounds(unknown, times, eta), band_of(times, eta, 1.0), rtol=1e-9)


def test_variances_lie_on_their_bounds():
    mine = cells(names=("vp",), chosen=SETTINGS[:1], steps=(4,))
    figure = FIGURES["reverse_variance"](results(*cells(names=("vp",), chosen=SETTINGS[1:2]), *mine))
    assert "K = 4, even, eta 1" in figure.get_suptitle()
    assert entries(figure) == [*RULES, "bounds of the best single variance"]
    (axes,) = figure.axes
    for line, r in zip(axes.lines, mine, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), r.log_snr[1:])  # the step to the data is left out
        np.testing.assert_array_equal(line.get_ydata(), r.variance[1:])
    vertices = axes.collections[0].get_paths()[0].vertices
    for x, low, high in zip(mine[0].log_snr[1:], *band_of(mine[0].times, 1.0), strict=True):
        ys = vertices[vertices[:, 0] == x][:, 1]
        assert (ys.min(), ys.max()) == pytest.approx((low, high), rel=1e-9)
    other = FIGURES["reverse_variance"](results(mine[0], replace(mine[1], times=mine[1].times + 0.5))).axes[0]
    assert len(other.lines) == 2 and not other.collections, "paths that differ have no bounds in common"
    assert FIGURES["reverse_variance"](results(row(steps=1), shown=1)) is None


def test_equal_paths_are_one_line():
    rows = [replace(r, times=r.times - 1.0) if r.method.rule == "large" else r for r in cells(chosen=SETTINGS[2:])]
    axes = FIGURES["trajectories"](results(*cells(chosen=SETTINGS[:2]), *rows)).axes[0]
    planned = [f"{name}, least_cost: {rules}" for name in ("discrete", "vp") for rules in ("small, head", "large")]
    told = ["discrete, even: all rules", "vp, even: all rules", *planned]
    assert [text.get_text() for text in axes.get_yticklabels()] == told
    np.testing.assert_array_equal(axes.lines[2].get_xdata(), PROCESS.log_snr(np.array([4.0, 20.0, 50.0, 100.0])))
    assert [to_hex(line.get_color()) for line in axes.lines[1:4]] == ["#333333", "#333333", "#000000"]
    many = [replace(rows[1], times=rows[1].times - 1.0), *cells(("discrete",), "abcde", SETTINGS[2:])]
    axes = FIGURES["trajectories"](results(*many)).axes[0]
    assert axes.get_yticklabels()[1].get_text() == "discrete, least_cost: a, b, c + 2"


def test_samples_are_of_the_best_and_the_worst():
    images = np.random.default_rng(0).random((6, 9, 1, 2, 2))
    rows = [replace(r, images=x) for r, x in zip(cells(chosen=SETTINGS[:1], steps=(4,)), images, strict=True)]
    (axes,) = FIGURES["samples"](results(*rows)).axes
    chosen = [rows[0], rows[2], rows[3], rows[5]]
    labels = [text.get_text().split("\n") for text in axes.get_yticklabels()]
    assert [label[0] for label in labels] == [r.method.title for r in chosen]
    assert labels[0][1] == f"12.0 ± 2.8, {chosen[0].bound.total.mean:.2f} ± 0.02 bits/dim"
    canvas = np.asarray(axes.images[0].get_array())
    assert canvas.shape == (4 * 3 + 1, 8 * 3 + 1)  # 2 x 2 pixels and one between
    for i, r in enumerate(chosen):
        shown = canvas[3 * i + 1 : 3 * i + 3]
        np.testing.assert_allclose([shown[:, 3 * j + 1 : 3 * j + 3] for j in range(8)], r.images[:8, 0], rtol=1e-6)
    colours = np.array([0.1, 2.0, 0.3]).reshape(1, 3, 1, 1).repeat(2, 2).repeat(2, 3)
    canvas = FIGURES["samples"](results(replace(row(), images=colours))).axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(canvas)[1, 1], [0.1, 1.0, 0.3], rtol=1e-6)


def test_strips_have_log_snr_below():
    one = replace(row(), strip=np.random.default_rng(0).random((5, 3, 1, 2, 2)))
    (axes,) = strip(one).axes
    told = [text.get_text() for text in (*axes.get_xticklabels(), axes.xaxis.label)]
    assert told == [*(f"{one.log_snr[k]:.1f}" for k in (3, 1, 0)), "log-SNR"]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[10:12, 4:6], one.strip[3, 1, 0], rtol=1e-6)


def test_a_rule_has_one_colour_and_marker_everywhere():
    looks = {}
    for name in ("quality", "reverse_variance", "bound_terms"):
        for handle in FIGURES[name](results(*cells())).legends[0].legend_handles:
            if handle.get_label() in RULES:
                looks.setdefault(handle.get_label(), set()).add((to_hex(handle.get_color()), handle.get_marker()))
    assert [len(found) for found in looks.values()] == [1, 1, 1] and len(set.union(*looks.values())) == 3


@pytest.mark.parametrize("name", FIGURES)
def test_all_text_stays_on_the_page(name):
    long = tuple(f"a_rule_of_a_long_name_{i}" for i in range(6))
    with matplotlib.rc_context(STYLE):
        figure = FIGURES[name](results(*cells(rules=(*RULES, *long))))
        figure.draw_without_rendering()
    texts = [figure._suptitle, *(text for legend in figure.legends for text in legend.get_texts())]
    for text in texts + [text for axes in figure.axes for text in (axes.xaxis.label, *axes.get_yticklabels())]:
        assert 0.0 <= text.get_window_extent().x0 <= text.get_window_extent().x1 <= figure.bbox.x1, text.get_text()


def test_other_grids():
    """A solver without a rule and a bound, one seed and no floor, nothing finished."""
    lone = results(row(None, (9.0,), solver="euler", eta=None), floor=())
    (axes,) = FIGURES["quality"](lone).axes
    assert not axes.collections and not axes.patches, "neither an error bar nor a floor"
    assert entries(FIGURES["quality"](lone)) == ["euler", "even"]
    assert {name for name, build in FIGURES.items() if build(lone) is None} == {"bound_terms"}
    assert all(build(results()) is None for build in FIGURES.values())
    assert [name for name, build in FIGURES.items() if build(results(row(steps=2)))] == ["quality"]


def test_files_are_the_same_twice_and_those_of_nothing_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr("adpm.run.compare.figures.DPI", 50)
    found = results(*cells(names=("vp",), rules=("small",), chosen=SETTINGS[:1], steps=(4,)))
    assert list(save_figures(found, tmp_path / "a")) == list(save_figures(found, tmp_path / "b")) == list(FIGURES)
    names = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes(), name
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml") and b"<dc:date>" not in data
    assert set(save_figures(results(row(eta=0.0)), tmp_path / "a")) == set(FIGURES) - {"bound_terms"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names - {"bound_terms.png", "bound_terms.svg"}
