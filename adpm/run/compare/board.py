"""TensorBoard of a comparison: a run per method, the same tags in all of them, K as the step.

The palette has seven colours, which runs take in the order in which they began. So methods are written best first, and
Custom Scalars shows them GROUP at a time: each group has charts of its own, by tags that begin with its name, in which
no colour comes twice. What real images score is the seventh of the first group.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import torch
from matplotlib.figure import Figure

from adpm.process import Array
from adpm.ranks import ranks
from adpm.run.compare.figures import strip
from adpm.run.compare.merit import BITS, DISTANCE, ranked
from adpm.run.compare.method import Method
from adpm.run.compare.results import Results, Row, mean_and_spread
from adpm.run.compare.tables import sheets, table
from adpm.run.compare.verdict import sections
from adpm.run.report import Report, image_grid

OVERVIEW, REAL = "_overview", "_real_images"
"""The runs of what is about all methods, and of what as many real images score."""
GROUP = 6
MOST = 40
"""Of more runs, most tabs of TensorBoard select none."""
GRID_COLUMNS, PIXELS = 6, 32  # an image is enlarged to about so many pixels
METRICS = {"frechet_distance": "Frechet distance", "bits_per_dim": "bits/dim"}
"""Columns of the HParams tab, with their titles."""
TOLD = {
    "quality/frechet_distance": "of the samples to the real images, mean over seeds",
    "quality/bits_per_dim": "the variational bound, mean over images",
    "quality/bits_above_best": "the same less the least of all methods with this K: 0 is the best",
    "steps K=.../reverse_variance": "mean variance of the step from here",
    "steps K=.../bound_terms": "bits/dim that the step costs; at the largest log-SNR those of the decoder",
    "steps K=.../clipped_share": "share of the step's variances that the rule's bounds changed",
    "samples/grid": "samples of the first seed; all methods start from the same noise",
    "samples/x0_along_the_path": "what the network takes the image to be, with the log-SNR of the call",
    "methods .../...": "the charts of Custom Scalars",
    "table K=.../...": "columns of the HParams tab",
}

Curves = dict[str, dict[int, float]]
"""Tag -> step -> value."""


def view(results: Results) -> str:
    """Behind TensorBoard's address: Custom Scalars as they are, and of too many runs the best few."""
    best = "|".join([OVERVIEW, REAL, *(method.name for method in in_order(results)[:GROUP])])
    chosen = f"&regexInput={quote(best)}" if len(results.methods) + 2 > MOST else ""
    return f"?smoothing=0#custom_scalars&_smoothingWeight=0{chosen}"


def in_order(results: Results) -> list[Method]:
    """The methods, best first at the shown K: by samples and by bits/dim in turn, then those that have no row there."""
    rows = results.at(results.shown)
    turns = itertools.zip_longest(ranked(rows, DISTANCE), ranked(rows, BITS))
    best = [row.method for pair in turns for row in pair if row is not None]
    return list(dict.fromkeys([*best, *results.methods]))


def write_board(results: Results, pictures: Mapping[str, Figure], folder: Path) -> None:
    """Replace the board in a folder.

    Args:
        results: the comparison.
        pictures: the overview's, in the order in which they are shown.
        folder: of the runs; events of runs that are no longer there are removed.
    """
    for old in folder.glob("*/events.out.tfevents.*") if ranks().first else ():
        old.unlink()
        with contextlib.suppress(OSError):  # something else is in it, too
            old.parent.rmdir()
    curves = curves_of(results)
    for name, of in curves.items():
        report = Report(folder / name)
        for tag, points in of.items():
            for step in sorted(points):  # TensorBoard forgets a tag's points when a step is not larger than the last
                report.scalars({tag: points[step]}, step)
        for method in (method for method in results.methods if method.name == name):
            report.trial(name, choices(method))
        for row in (row for row in results.rows if row.method.name == name):
            grid = image_grid(torch.as_tensor(row.images), columns=GRID_COLUMNS)
            report.picture("samples/grid", grid, row.steps, max(1, PIXELS // row.images.shape[-1]))
            if row.steps == results.shown:
                report.figure("samples/x0_along_the_path", strip(row), row.steps)
        report.close()
    _write_overview(results, {tag for of in curves.values() for tag in of}, pictures, Report(folder / OVERVIEW))


def curves_of(results: Results) -> dict[str, Curves]:
    """Run -> its scalars, in the order of writing; what is not finite is left out."""
    out: dict[str, Curves] = {name: {} for names in groups(results).values() for name in names}
    if REAL in out:
        floor = mean_and_spread(results.floor)[0]
        out[REAL] = {"quality/frechet_distance": dict.fromkeys(results.budgets, floor)}
    least = {k: BITS.of(best[0]) for k in results.budgets if (best := ranked(results.at(k), BITS))}
    for row in results.rows:
        for tag, step, value in _points(row, least.get(row.steps, math.nan)):
            if math.isfinite(value):
                out[row.method.name].setdefault(tag, {})[step] = value
    for group, names in groups(results).items():
        for own in (out[name] for name in names):
            own |= {copied(tag, group): own[tag] for tag in charts(results).values() if tag in own}
    return out


def _points(row: Row, least: float) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of all scalars of a row; `least` are the best bits/dim of its K."""
    k, bits = row.steps, BITS.value(row)
    for name, value in {"frechet_distance": row.distance, "bits_per_dim": math.nan if bits is None else bits}.items():
        yield f"quality/{name}", k, value
        yield f"table K={k}/{name}", k, value  # HParams shows a tag's last value and no other
    yield "quality/bits_above_best", k, math.nan if bits is None else bits - least
    terms = () if row.bound is None else row.bound.terms[:-1]
    for name, values in {"reverse_variance": row.variance, "bound_terms": terms, "clipped_share": row.clipped}.items():
        for step, value in zip(places(row.log_snr), values[::-1], strict=False):
            yield f"{along(k)}/{name}", step, float(value)


def places(log_snr: Array) -> list[int]:
    """1000 log-SNR, from noise to data, as whole and rising numbers: what would fall together moves on by one."""
    out: list[int] = []
    for value in log_snr[::-1]:
        step = round(1000.0 * value)
        out.append(max(step, out[-1] + 1) if out else step)
    return out


def along(steps: int) -> str:
    """Group of the curves at K = steps. A step of TensorBoard is a whole number; brackets confuse Custom Scalars."""
    return f"steps K={steps}, x = 1000 log-SNR"


def groups(results: Results) -> dict[str, list[str]]:
    """Name -> the runs that have charts in common; in the first of them are the real images, too."""
    names, out = [method.name for method in in_order(results)], dict[str, list[str]]()
    for i in range(0, len(names), GROUP):
        part = names[i : i + GROUP]
        out[f"methods {i + 1} to {i + len(part)}"] = part if i or not results.floor else [*part, REAL]
    return out


def charts(results: Results) -> dict[str, str]:
    """Title -> tag of the charts of every group."""
    steps = along(results.shown)
    return {
        "Frechet distance against K": "quality/frechet_distance",
        "bits/dim above the best, against K": "quality/bits_above_best",
        f"K = {results.shown}: reverse variance against 1000 log-SNR": f"{steps}/reverse_variance",
        f"K = {results.shown}: bound terms in bits/dim against 1000 log-SNR": f"{steps}/bound_terms",
    }


def copied(tag: str, group: str) -> str:
    """The tag of a group's chart."""
    return f"{group}/{tag.rpartition('/')[2]}"


def choices(method: Method) -> dict[str, str]:
    """A run's row of the HParams tab."""
    eta = "none" if method.eta is None else f"{method.eta:g}"
    told = {"formulation": method.formulation, "rule": method.rule or "none", "path": method.trajectory, "eta": eta}
    return {**told, "solver": method.solver}


def _write_overview(results: Results, tags: set[str], pictures: Mapping[str, Figure], report: Report) -> None:
    texts = {**sections(results), **{name: sheet.markdown() for name, sheet in sheets(results) if sheet is not None}}
    for i, (name, text) in enumerate({**texts, "how to read this board": guide(results)}.items(), start=1):
        report.text(f"texts/{i} {name}", text)
    for i, (name, picture) in enumerate(pictures.items(), start=1):
        report.figure(f"overview/{i} {name}", picture)
    shown = {group: {title: copied(tag, group) for title, tag in charts(results).items()} for group in groups(results)}
    report.layout(
        {
            group: {title: f"^{re.escape(tag)}$" for title, tag in of.items() if tag in tags}
            for group, of in shown.items()
        }
    )
    chosen = [choices(method) for method in results.methods]
    domains = {name: sorted({choice[name] for choice in chosen}) for name in (chosen[0] if chosen else ())}
    budgets = sorted(results.budgets, key=lambda steps: (steps != results.shown, steps))
    titles = {f"table K={k}/{name}": f"{title}, K = {k}" for k in budgets for name, title in METRICS.items()}
    report.experiment(
        {name: values for name, values in domains.items() if len(values) > 1},  # others say nothing
        {tag: title for tag, title in titles.items() if tag in tags},
    )
    report.close()


def guide(results: Results) -> str:
    """What runs and tags are, in Markdown."""
    return (
        f"A run is a method; `{OVERVIEW}` is about all of them, and `{REAL}` is what as many real images, drawn with "
        "replacement, score. Tags are the same in every run. The horizontal axis is K, the number of steps; under "
        "`steps` it is 1000 times the log-SNR of the state that a step begins with, from noise to data.\n\n"
        f"The methods are ranked at K = {results.shown}, by samples and by bits/dim in turn. Custom Scalars shows the "
        f"first {GROUP} of them, then the next. A chart has a button for a logarithmic axis. Tabs that select no run "
        f"of more than {MOST} have a field for a part of their names.\n\n" + table(["tag", "what it is"], TOLD.items())
    )
