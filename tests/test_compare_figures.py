"""Figures of a comparison, of results made by hand: what is in the axes, which figures there are, and their files."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from scipy.stats import t as student_t

from adpm.moments import Draws, MomentTable
from adpm.process import DiscreteProcess
from adpm.run.compare.figures import FIGURES, save_figures
from adpm.run.compare.figures.pictures import MOST, selected, tiled
from adpm.run.compare.method import Method
from adpm.run.compare.results import Bound, Formulation, Results, Row
from adpm.run.tables import BitsPerDim

BETAS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
ALPHA2 = np.concatenate([[1.0], np.cumprod(1.0 - BETAS)])
VARIANCE = 0.3
SETTINGS = [("even", 1.0), ("even", 0.0), ("planned", 1.0)]
RULES = ("small", "large", "head")
PATHS = {
    2: {"even": [3.0, 6.0], "small": [2.0, 6.0], "large": [4.0, 6.0], "head": [2.0, 6.0]},
    3: {"even": [2.0, 4.0, 6.0], "small": [1.0, 3.0, 6.0], "large": [3.0, 5.0, 6.0], "head": [1.0, 3.0, 6.0]},
}


def formulation(data_variance=VARIANCE):
    """Residuals 0.01, 0.02 ... of Var_t with controls of no use, so that estimates are plain means."""
    rows = []
    for k in range(1, 7):
        mean, scatter = np.zeros(6), np.zeros((6, 6))
        mean[0], scatter[0, 0] = 0.01 * k, 1e-4 * k
        rows.append(Draws(20, mean, scatter))
    return Formulation(DiscreteProcess(BETAS), MomentTable(np.arange(1.0, 7.0), tuple(rows), data_variance, {}), 1.0)


def row(name, rule, trajectory, eta, steps, number, solver="gaussian", **changes):
    """A cell whose figures follow from its number."""
    times = np.array(PATHS[steps].get(trajectory) or PATHS[steps][rule])
    alpha2 = ALPHA2[times.astype(int)]
    rng = np.random.default_rng(number)
    terms = np.concatenate([[0.5], 0.1 * np.arange(1.0, steps), [1e-5]]) + 0.001 * number
    total = BitsPerDim(float(terms.sum()), 0.01 + 0.001 * number)
    made = Row(
        method=Method(name, rule, trajectory, solver, eta),
        steps=steps,
        nfe=steps,
        distances=(10.0 + number, 14.0 + number),
        times=times,
        log_snr=np.log(alpha2 / (1.0 - alpha2)),
        variance=0.05 * np.arange(1.0, steps + 1) + 0.001 * number,
        clipped=np.zeros(steps),
        images=rng.random((9, 1, 2, 2)),
        strip=rng.random((1, steps, 1, 2, 2)),
        bound=Bound(total, terms, np.full(5, total.mean)) if eta else None,
        seconds=1.0,
    )
    return dataclasses.replace(made, **changes)


def make(rows, names=("discrete", "vp"), **changes):
    given = {name: formulation() for name in names}
    made = Results(tuple(rows), given, (4.0, 6.0), 3, 100, (0, 1), "digits", "test", "optimal", "digits", 17)
    return dataclasses.replace(made, **changes)


def cells(names=("discrete", "vp"), rules=RULES, chosen=SETTINGS, **changes):
    axes = [(n, r, t, e, k) for n in names for t, e in chosen for r in rules for k in (2, 3)]
    return [row(*cell, number, **changes) for number, cell in enumerate(axes)]


@pytest.fixture(scope="module")
def results():
    return make(cells())


def panel(figure, title):
    (found,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return found


def curves(axes, length):
    """Lines with this many points, by colour; not the caps of error bars."""
    drawn = [line for line in axes.lines if line.get_linestyle() != "None"]
    return {to_hex(line.get_color()): line for line in drawn if len(line.get_xdata()) == length}


def dots(axes):
    """Markers of a rule with a single point, not the caps of error bars, nor carets."""
    return [line for line in axes.lines if line.get_marker() in set("s^oDv") and len(line.get_xdata()) == 1]


def segments(axes):
    """Both ends of all error bars, [bars, 2 (ends), 2 (x, y)]."""
    return np.concatenate([np.array(bars.get_segments()) for bars in axes.collections if hasattr(bars, "get_segments")])


def entries(legend):
    return [text.get_text() for text in legend.get_texts() if text.get_text().strip()]


def of(results, **wanted):
    return [r for r in results.rows if all(getattr(r.method, k) == v for k, v in wanted.items())]


def test_every_method_has_its_curve_in_its_panel(results):
    figure = FIGURES["quality_distance"](results)
    assert len(figure.axes) == 6
    axes = panel(figure, "vp: even, eta 0")
    drawn = curves(axes, 2)
    rules = entries(figure.legends[0])
    assert rules == [*RULES, "real images (bootstrap)"] and len(drawn) == 3
    for line, rule in zip(drawn.values(), RULES, strict=True):
        mine = of(results, formulation="vp", rule=rule, trajectory="even", eta=0.0)
        np.testing.assert_array_equal(line.get_xdata(), [2, 3])
        np.testing.assert_array_equal(line.get_ydata(), [np.mean(r.distances) for r in mine])
    bars = segments(axes)
    # the standard deviation of (a, a + 4) is sqrt(8)
    np.testing.assert_allclose(bars[:, 1, 1] - bars[:, 0, 1], 2.0 * math.sqrt(8.0))
    (band,) = [patch for patch in axes.patches if patch.get_label() == "real images (bootstrap)"]
    low, high = band.get_y(), band.get_y() + band.get_height()
    assert (low, high) == pytest.approx((5.0 - math.sqrt(2.0), 5.0 + math.sqrt(2.0)))


def test_bits_have_standard_errors_and_eta_0_no_panel(results):
    figure = FIGURES["quality_bits"](results)
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert titles == {f"{name}: {s}" for name in ("discrete", "vp") for s in ("even, eta 1", "planned, eta 1")}
    axes = panel(figure, "discrete: planned, eta 1")
    mine = of(results, formulation="discrete", trajectory="planned")
    want = [(r.nfe, r.bound.total.mean - r.bound.total.error, r.bound.total.mean + r.bound.total.error) for r in mine]
    bars = segments(axes)
    np.testing.assert_allclose(sorted(np.column_stack([bars[:, 0, 0], bars[:, :, 1]]).tolist()), sorted(want))
    assert "off scale" not in entries(figure.legends[0])
    assert FIGURES["quality_bits"](make(cells(chosen=[("even", 0.0)]))) is None


def spoiled(rows, rule, bits):
    """The same rows, those of a rule at K = 3 with this many bits/dim."""
    return [
        dataclasses.replace(r, bound=dataclasses.replace(r.bound, total=BitsPerDim(bits, 1.0)))
        if r.bound and r.method.rule == rule and r.steps == 3
        else r
        for r in rows
    ]


def test_what_is_off_scale_is_marked():
    results = make(spoiled(spoiled(cells(chosen=[("even", 1.0)]), "small", 20000.0), "head", 30000.0))
    least = min(r.bound.total.mean for r in results.rows)
    figure = FIGURES["quality_bits"](results)
    axes = figure.axes[0]
    assert axes.get_ylim()[1] == pytest.approx(10.0 * least)
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    curve_of = {len(line.get_xdata()): line for line in axes.lines}
    assert [line.get_xdata()[0] for line in marks] == [3, 3] and 2 in curve_of
    assert len({line.get_ydata()[0] for line in marks}) == 2, "carets of the same place stand below each other"
    assert to_hex(marks[0].get_color()) != to_hex(marks[1].get_color())
    assert "off scale" in entries(figure.legends[0])
    shown = FIGURES["quality_shown"](results).axes[1]
    assert shown.get_xlim()[1] == pytest.approx(10.0 * min(r.bound.total.mean for r in results.at(3)))
    # two of three dots are off scale, in both formulations
    assert sum(line.get_xdata()[0] > 0.9 for line in shown.lines if line.get_transform() != shown.transData) == 4
    summary = FIGURES["quality"](results)
    assert "off scale" in entries(summary.legends[1])
    for axes in summary.axes[2:]:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_transform() != axes.transData] == [3]


def test_the_summary_goes_through_the_best_and_shades_to_the_worst(results):
    figure = FIGURES["quality"](results)
    assert len(figure.axes) == 4
    assert entries(figure.legends[0]) == ["even, eta 1", "even, eta 0", "planned, eta 1", "all rules, even, eta 1"]
    distance = figure.axes[0]
    lines = [line for line in distance.lines if len(line.get_xdata()) == 2]
    for line, (trajectory, eta) in zip(lines, SETTINGS, strict=True):
        here = of(results, formulation="discrete", trajectory=trajectory, eta=eta)
        best = [min(np.mean(r.distances) for r in here if r.steps == k) for k in (2, 3)]
        np.testing.assert_array_equal(line.get_ydata(), best)
    assert len({line.get_linestyle() for line in lines}) == 3
    shade = distance.collections[0].get_paths()[0].vertices
    here = of(results, formulation="discrete", trajectory="even", eta=1.0)
    for k in (2, 3):
        values = [np.mean(r.distances) for r in here if r.steps == k]
        ys = shade[shade[:, 0] == k][:, 1]
        assert (ys.min(), ys.max()) == (min(values), max(values))
    # rules are numbered upwards, so the first is the best everywhere, and only it has a marker
    assert entries(figure.legends[1]) == ["small", "real images (bootstrap)"]


def test_all_methods_at_one_k(results):
    figure = FIGURES["quality_shown"](results)
    distance, bits = figure.axes
    labels = [text.get_text() for text in distance.get_yticklabels()]
    assert labels[:3] == ["discrete, even, eta 1", "discrete, even, eta 0", "discrete, planned, eta 1"]
    places = distance.get_yticks()
    found = {(line.get_ydata()[0], line.get_xdata()[0]) for line in dots(distance)}
    assert found == {
        (places[labels.index(f"{r.method.formulation}, {r.method.trajectory}, eta {r.method.eta:g}")], r.distance)
        for r in results.at(3)
    }
    assert sum(r.bound is not None for r in results.at(3)) == len(dots(bits))


def test_equal_paths_are_one_line(results):
    axes = FIGURES["trajectories"](results).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    one = ["{0}, even: all rules", "{0}, planned: small, head", "{0}, planned: large"]
    assert labels == [text.format(name) for name in ("discrete", "vp") for text in one]
    alpha2 = ALPHA2[[3, 5, 6]]
    np.testing.assert_allclose(axes.lines[2].get_xdata(), np.log(alpha2 / (1.0 - alpha2)))
    assert to_hex(axes.lines[2].get_color()) != to_hex(axes.lines[1].get_color()), "one rule has its colour"


def test_paths_that_depend_on_eta_say_which():
    rows = [row("vp", "head", "even", eta, 3, i) for i, eta in enumerate((1.0, 0.0))]
    other = dataclasses.replace(rows[1], times=np.array([1.0, 4.0, 6.0]))
    axes = FIGURES["trajectories"](make([rows[0], other], names=("vp",))).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["vp, even: head eta 1", "vp, even: head eta 0"]


def band_of(times, eta):
    """lambda2 and the upper bound from alpha and sigma alone, subtractions and all."""
    out = []
    for s, t in zip(times[:-1], times[1:], strict=True):
        at, as_ = ALPHA2[int(t)], ALPHA2[int(s)]
        st, ss = 1.0 - at, 1.0 - as_
        lam = eta**2 * (st - at / as_ * ss) * ss / st
        gain = math.sqrt(as_) - math.sqrt(at) * math.sqrt(ss - lam) / math.sqrt(st)
        # the best linear guess m + c (x_t - alpha_t m) has c = alpha_t V / (alpha_t^2 V + sigma_t^2)
        left = VARIANCE - at * VARIANCE**2 / (at * VARIANCE + st)
        assert 0.0 < left < min(VARIANCE, st / at)
        out.append((lam, lam + gain**2 * left))
    return np.array(out).T


def test_variances_lie_on_a_band_of_theory(results):
    figure = FIGURES["reverse_variance"](results)
    assert len(figure.axes) == 4
    above = panel(figure, "vp")
    below = figure.axes[3]
    times = np.array(PATHS[3]["even"])
    low, high = band_of(times, 1.0)
    (band,) = above.collections
    vertices = band.get_paths()[0].vertices
    for t, bottom, top in zip(times[1:], low, high, strict=True):
        ys = vertices[vertices[:, 0] == t][:, 1]
        assert (ys.min(), ys.max()) == pytest.approx((bottom, top), rel=1e-12)
    for line, place, mine in zip(
        curves(above, 2).values(),
        curves(below, 2).values(),
        [r for r in of(results, formulation="vp", trajectory="even", eta=1.0) if r.steps == 3],
        strict=True,
    ):
        np.testing.assert_array_equal(line.get_xdata(), times[1:])  # the step to the data is left out
        np.testing.assert_array_equal(line.get_ydata(), mine.variance[1:])
        np.testing.assert_allclose(place.get_ydata(), (mine.variance[1:] - low) / (high - low))


def test_the_largest_eta_of_a_path_that_rules_share_is_drawn():
    rows = cells(chosen=[("planned", 1.0), ("even", 0.5), ("even", 0.8)])
    figure = FIGURES["reverse_variance"](make(rows))
    assert "even, eta 0.8" in figure.get_suptitle() and "best single variance" in figure.get_suptitle()
    vertices = figure.axes[0].collections[0].get_paths()[0].vertices
    low, _ = band_of(np.array(PATHS[3]["even"]), 0.8)
    assert vertices[vertices[:, 0] == 4.0][:, 1].min() == pytest.approx(low[0], rel=1e-12)


def test_paths_that_differ_have_no_common_band():
    figure = FIGURES["reverse_variance"](make(cells(chosen=[("planned", 1.0)])))
    assert not figure.axes[0].collections and len(curves(figure.axes[0], 2)) == 3


def test_a_single_step_has_no_variance_to_show(results):
    one = [
        dataclasses.replace(r, steps=1, times=r.times[-1:], log_snr=r.log_snr[-1:], variance=r.variance[-1:])
        for r in of(results, trajectory="even", eta=1.0)
        if r.steps == 2
    ]
    assert FIGURES["reverse_variance"](make(one, shown=1)) is None


def test_terms_of_the_bound(results):
    figure = FIGURES["bound_terms"](results)
    assert len(figure.axes) == 4
    axes = panel(figure, "discrete: planned, eta 1")
    mine = [r for r in of(results, formulation="discrete", trajectory="planned") if r.steps == 3]
    for line, r in zip(curves(axes, 3).values(), mine, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), r.log_snr)
        np.testing.assert_array_equal(line.get_ydata(), r.bound.terms[:-1])
    told = [f"{r.method.rule} {r.bound.total.mean:.2f}" for r in mine]
    assert entries(axes.get_legend()) == told
    assert FIGURES["bound_terms"](make(cells(chosen=[("even", 0.0)]))) is None


def test_terms_that_are_nothing_are_marked():
    one = row("vp", "head", "even", 1.0, 3, 0)
    terms = np.array([-0.2, 1e-9, 0.7, 0.0])
    total = BitsPerDim(0.5, None)
    axes = FIGURES["bound_terms"](
        make([dataclasses.replace(one, bound=Bound(total, terms, np.full(5, total.mean)))], ["vp"])
    ).axes[0]
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_transform() != axes.transData]
    np.testing.assert_array_equal(sorted(marks), sorted(one.log_snr[:2]))


def test_excess_precision_is_in_units_of_the_data():
    known = make(cells(), formulations={"discrete": formulation(), "vp": formulation(0.5), "file": formulation(np.nan)})
    axes = FIGURES["excess_precision"](known).axes[0]
    kinds, k = axes.containers, np.arange(1.0, 7.0)
    assert [kind.get_label() for kind in kinds] == ["discrete", "vp"]
    snr = ALPHA2[1:] / (1.0 - ALPHA2[1:])
    half = student_t.ppf(0.975, 16) * np.sqrt(1e-4 * k / 16 / 20) / (0.01 * k) ** 2
    for kind, variance in zip(kinds, (VARIANCE, 0.5), strict=True):
        line, _, (bars,) = kind
        np.testing.assert_allclose(line.get_xdata(), np.log(snr * variance))
        np.testing.assert_allclose(line.get_ydata(), variance * (100.0 / k - snr))
        ends = np.array(bars.get_segments())[:, :, 1]
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2.0 * variance * half, rtol=1e-9)
    assert FIGURES["excess_precision"](make(cells(), formulations={"file": formulation(np.nan)})) is None


def test_pictures_show_who_stands_for_the_others(results):
    chosen = selected(results)
    assert len(chosen) <= MOST and {r.steps for r in chosen} == {3}
    for name in ("discrete", "vp"):
        here = [r for r in results.at(3) if r.method.formulation == name]
        mine = [r for r in chosen if r.method.formulation == name]
        for best in (min(here, key=lambda r: r.distance), max(here, key=lambda r: r.distance)):
            assert any(best is r for r in mine)
        assert [r.distance for r in mine] == sorted(r.distance for r in mine)
    many = make(cells(names=[f"f{i}" for i in range(12)]), names=[f"f{i}" for i in range(12)])
    assert len(selected(many)) == MOST and len({r.method.formulation for r in selected(many)}) == MOST


def test_pictures_are_the_images(results):
    chosen = selected(results)
    for name, lines in (("samples", [r.images[:8] for r in chosen]), ("strips", [r.strip[0] for r in chosen])):
        (axes,) = FIGURES[name](results).axes
        canvas = np.asarray(axes.images[0].get_array())
        assert canvas.shape == (len(chosen) * 3 - 1, len(lines[0]) * 3 - 1)  # 2 x 2 pixels and one between
        for i, line in enumerate(lines):
            for j, image in enumerate(line):
                np.testing.assert_array_equal(canvas[3 * i : 3 * i + 2, 3 * j : 3 * j + 2], image[0])
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels[0].startswith(chosen[0].method.title) and f"distance {chosen[0].distance:.1f} ± 2.8" in labels[0]


def test_tiles_of_colours_and_of_lines_that_differ():
    rng = np.random.default_rng(0)
    lines = [rng.random((2, 3, 4, 5)), rng.random((3, 3, 4, 5)) + 0.5]
    canvas, middles = tiled(lines, [False, True])
    assert canvas.shape == (4 + 1 + 1 + 4, 3 * 6 - 1, 3) and middles == [1.5, 7.5]
    np.testing.assert_array_equal(canvas[0:4, 6:11], lines[0][1].transpose(1, 2, 0))
    np.testing.assert_array_equal(canvas[6:10, 12:17], lines[1][2].transpose(1, 2, 0).clip(0, 1))
    assert (canvas[0:4, 11:] == 1.0).all(), "a shorter line ends in white"


def test_a_rule_has_one_colour_and_marker_everywhere(results):
    looks = {}
    for name in ("quality_distance", "quality_bits", "reverse_variance", "bound_terms", "quality_shown"):
        figure = FIGURES[name](results)
        for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
            for handle in legend.legend_handles:
                rule = handle.get_label().split()[0] if handle.get_label().strip() else ""
                if rule in RULES:
                    looks.setdefault(rule, set()).add((to_hex(handle.get_color()), handle.get_marker()))
    assert {rule: len(found) for rule, found in looks.items()} == dict.fromkeys(RULES, 1)
    assert len(set.union(*looks.values())) == len(RULES)


@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_large_and_stay_on_the_page(results, name):
    """Also with more rules, and longer names, than a line of a legend has room for."""
    many = make(cells(rules=("small", "large", "head", *(f"a_rule_of_a_long_name_{i}" for i in range(9)))))
    for case in (results, many):
        figure = FIGURES[name](case)
        figure.draw_without_rendering()
        assert figure.get_size_inches()[0] == pytest.approx(7.2)
        for text in figure.findobj(Text):
            if text.get_text().strip() and text.get_visible():
                assert text.get_fontsize() >= 8.0, text.get_text()
        page = figure.bbox
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        texts += [text for axes in figure.axes for text in (*axes.get_yticklabels(), axes.title)]
        for text in (text for text in texts if text.get_text().strip()):
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1, text.get_text()
        for box in (legend.get_window_extent() for legend in figure.legends):
            assert page.y0 <= box.y0 and box.y1 <= page.y1


# PATHS names the paths of rules that plan; others take those of `head`.
for _paths in PATHS.values():
    _paths.update({f"a_rule_of_a_long_name_{i}": _paths["head"] for i in range(9)})


def test_other_grids():
    """Solvers without a rule or eta, one formulation, one seed, no floor, one K, nothing finished."""
    rows = [
        row("vp", None, "even", None, 3, 0, solver="euler", distances=(9.0,), bound=None, nfe=6),
        row("vp", "small", "even", 1.0, 3, 1, distances=(8.0,)),
    ]
    lone = make(rows, names=("vp",), floor=(), seeds=(0,))
    drawn = {name: build(lone) for name, build in FIGURES.items()}
    assert all(drawn.values())
    assert {axes.get_title(loc="left") for axes in drawn["quality_distance"].axes} == {
        "vp: even, no eta",
        "vp: even, eta 1",
    }
    (line,) = panel(drawn["quality_distance"], "vp: even, no eta").lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([6], [9.0])
    assert not panel(drawn["quality_distance"], "vp: even, no eta").collections, "one seed has no error bar"
    half = make([*rows, row("ve", "small", "even", 1.0, 3, 2)], names=("vp", "ve"))
    (told,) = panel(FIGURES["quality_distance"](half), "ve: even, no eta").texts
    assert told.get_text() == "none"
    assert entries(drawn["quality_distance"].legends[0]) == ["euler", "small"]
    only = make(rows[:1], names=("vp",))
    assert {name for name, build in FIGURES.items() if build(only) is None} == {"quality_bits", "bound_terms"}
    empty = make([], names=())
    assert all(build(empty) is None for build in FIGURES.values())
    unfinished = make([r for r in cells() if r.steps == 2])
    assert FIGURES["samples"](unfinished) is None and FIGURES["quality"](unfinished) is not None


def test_bits_below_zero_have_an_axis_too():
    """Densities of continuous data may exceed 1."""
    rows = [
        dataclasses.replace(r, bound=dataclasses.replace(r.bound, total=BitsPerDim(bits, 0.1)))
        for r, bits in zip(cells(rules=("small",), chosen=[("even", 1.0)]), (-2.0, -3.0, 500.0, 1.0), strict=True)
    ]
    figure = FIGURES["quality_bits"](make(rows))
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "symlog" and low < -3.0 and high > 500.0
    assert FIGURES["quality"](make(rows)) is not None and FIGURES["quality_shown"](make(rows)) is not None


def test_files_are_the_same_twice_and_those_of_nothing_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr("adpm.run.compare.figures.DPI", 50)
    results = make(cells(names=("vp",), rules=("small", "head"), chosen=SETTINGS[:2]), names=("vp",))
    saved = save_figures(results, tmp_path / "a")
    again = save_figures(results, tmp_path / "b")
    assert list(saved) == list(again) == list(FIGURES)
    names = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes(), name
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        assert b"<dc:date>" not in data
    without = save_figures(make(of(results, eta=0.0), names=("vp",)), tmp_path / "a")
    gone = {f"{name}.{kind}" for name in ("quality_bits", "bound_terms") for kind in ("png", "svg")}
    assert set(without) == set(FIGURES) - {"quality_bits", "bound_terms"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names - gone
