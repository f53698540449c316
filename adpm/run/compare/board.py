"""TensorBoard of a comparison: discrete and continuous models under the same tags.

A run is a formulation and a rule (or a solver that has none). What else a method has, trajectory and eta, is its
setting, at the end of a tag: "quality/frechet_distance, even, eta 1" is one chart, in which all formulations and rules
meet. A run per method would be too many: of more than 40 runs, most tabs of TensorBoard select none of them.

Groups of tags are sorted by name and the first two are open: overview and quality.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from adpm.run.compare.method import Method
from adpm.run.compare.results import Bound, Results, Row
from adpm.run.report import Report, image_grid

OVERVIEW, REAL = "_overview", "_real_images"
"""The runs of what is about all methods, and of what as many real images score; they sort first."""

VIEW = "?smoothing=0#text&_smoothingWeight=0"
"""Behind TensorBoard's address: texts first, and curves in all tabs as they are, where the default smooths them."""

GUIDE = "how to read this board"
EVENTS = "events.out.tfevents.*"
GRID_COLUMNS, STRIP_ROWS, PIXELS = 6, 4, 32  # an image is enlarged to about so many pixels

Point = tuple[str, int, float | None]
"""Tag, step, value."""

Curves = dict[str, dict[int, float]]
"""Tag -> step -> value."""


@dataclass(frozen=True)
class Scalar:
    """A figure of a row.

    Attributes:
        told: what it is.
        of: None where there is none.
    """

    told: str
    of: Callable[[Row], float | None]


@dataclass(frozen=True)
class Curve:
    """A figure of every step of a row.

    Attributes:
        told: what it is.
        of: one value for each of row.log_snr, not finite where there is none; or empty.
    """

    told: str
    of: Callable[[Row], Sequence[float]]


def _log10(values: Iterable[float]) -> list[float]:
    return [math.log10(value) if value > 0.0 else math.nan for value in values]


def _bound(read: Callable[[Bound], float | None]) -> Callable[[Row], float | None]:
    return lambda row: None if row.bound is None else read(row.bound)


def _terms(row: Row) -> list[float]:
    return [] if row.bound is None else [float(term) for term in row.bound.terms[:-1]]


SCALARS: dict[str, Scalar] = {
    "quality/frechet_distance": Scalar("of the samples to the real images, mean over seeds", lambda row: row.distance),
    "quality/bits_per_dim": Scalar("the variational bound, mean over images", _bound(lambda b: b.total.mean)),
    "quality/frechet_distance_log10": Scalar("its logarithm: 1 is 10", lambda row: _log10([row.distance])[0]),
    "quality/bits_per_dim_log10": Scalar("its logarithm: 1 is 10", _bound(lambda b: _log10([b.total.mean])[0])),
    "quality, more/frechet_distance_spread": Scalar("standard deviation over seeds", lambda row: row.spread),
    "quality, more/bits_per_dim_error": Scalar("standard error over images", _bound(lambda b: b.total.error)),
    "quality, more/bits_per_dim_prior": Scalar("the bound's term that no step has", _bound(lambda b: b.terms[-1])),
    "quality, more/clipped_share": Scalar(
        "share of the reverse variances that the rule's bounds changed, mean over steps",
        lambda row: float(row.clipped.mean()),
    ),
}
CURVES: dict[str, Curve] = {
    "reverse_variance": Curve("mean variance of the step from here", lambda row: row.variance.tolist()),
    "reverse_variance_log10": Curve("its logarithm; none where it is 0", lambda row: _log10(row.variance)),
    "bound_terms": Curve("bits/dim that the step costs; at the largest log-SNR those of the decoder", _terms),
    "bound_terms_log10": Curve("its logarithm", lambda row: _log10(_terms(row))),
    "clipped_share": Curve(
        "share of the step's variances that the rule's bounds changed", lambda r: r.clipped.tolist()
    ),
}
METRICS = {"frechet_distance": "Frechet distance", "bits_per_dim": "bits/dim"}
"""Columns of the HParams tab, with their titles."""


def run_name(method: Method) -> str:
    return f"{method.formulation}-{method.sampler}"


def setting(method: Method) -> str:
    """What the run does not tell."""
    return method.trajectory if method.eta is None else f"{method.trajectory}, eta {method.eta:g}"


def write_board(results: Results, pictures: Mapping[str, Figure], texts: Mapping[str, str], folder: Path) -> None:
    """Replace the board in a folder.

    Args:
        results: the comparison.
        pictures: the overview's, in the order in which they are shown.
        texts: the overview's, in Markdown, in the order in which they are shown.
        folder: of the runs; events of runs that are no longer there are removed.
    """
    rows: dict[str, list[Row]] = {}
    for row in results.rows:
        rows.setdefault(run_name(row.method), []).append(row)
    _forget(folder, {OVERVIEW, REAL, *rows})
    curves = {name: curves_of(map(_points, of)) for name, of in rows.items()}
    tags = sorted({tag for of in curves.values() for tag in of})
    _write_overview(results, tags, pictures, texts, Report(folder / OVERVIEW))
    real = Report(folder / REAL)
    _write_curves(curves_of(_floor(row, results.floor) for row in results.rows), real)
    real.close()
    for name, of in rows.items():
        _write_run(of, curves[name], Report(folder / name))


def _forget(folder: Path, kept: set[str]) -> None:
    """Remove the events of other runs, and their folders when nothing else is in them."""
    for old in folder.glob(f"*/{EVENTS}"):
        if old.parent.name not in kept:
            old.unlink()
            if not any(old.parent.iterdir()):
                old.parent.rmdir()


def curves_of(points: Iterable[Iterable[Point]]) -> Curves:
    """All scalars of a run; what is not finite is left out."""
    out: Curves = {}
    for tag, step, value in itertools.chain.from_iterable(points):
        if value is not None and math.isfinite(value):
            out.setdefault(tag, {})[step] = value
    return out


def _points(row: Row) -> Iterator[Point]:
    of = setting(row.method)
    for name, scalar in SCALARS.items():
        yield f"{name}, {of}", row.nfe, scalar.of(row)
    for name in METRICS:
        yield metric(row.steps, name, of), row.nfe, SCALARS[f"quality/{name}"].of(row)
    steps = [round(100.0 * value) for value in row.log_snr]
    for name, curve in CURVES.items():
        for step, value in zip(steps, curve.of(row), strict=False):
            yield f"{group(row.steps)}/{name}, {of}", step, value


def _floor(row: Row, distances: Sequence[float]) -> Iterator[Point]:
    """The distance of real images, beside a row's. Charts cut off outermost values; this keeps the best in sight."""
    mean, of = float(np.mean(distances)), setting(row.method)
    yield f"quality/frechet_distance, {of}", row.nfe, mean
    yield f"quality/frechet_distance_log10, {of}", row.nfe, _log10([mean])[0]


def group(steps: int) -> str:
    """Of the curves at K = steps. A step of TensorBoard is a whole number; brackets in a tag confuse Custom Scalars."""
    return f"steps K={steps}, x = 100 log-SNR"


def metric(steps: int, name: str, of: str) -> str:
    """Tag of a column of the HParams tab, which shows a tag's last value and no other."""
    return f"table K={steps}/{name}, {of}"


def _write_run(rows: Sequence[Row], curves: Curves, report: Report) -> None:
    method = rows[0].method
    report.trial(run_name(method), choices(method))
    _write_curves(curves, report)
    for row in sorted(rows, key=lambda row: row.nfe):
        factor = max(1, PIXELS // row.images.shape[-1])
        of, strip = setting(row.method), torch.as_tensor(row.strip[:STRIP_ROWS])
        grid = image_grid(torch.as_tensor(row.images), columns=GRID_COLUMNS)
        report.picture(f"samples/grid, {of}", grid, row.nfe, factor)
        path = image_grid(strip.flatten(0, 1), columns=strip.shape[1])
        report.picture(f"samples/x0_along_the_path, {of}", path, row.nfe, factor)
    report.close()


def _write_curves(curves: Curves, report: Report) -> None:
    for tag, points in curves.items():
        for step in sorted(points):  # TensorBoard forgets a tag's points when a step is not larger than the last
            report.scalars({tag: points[step]}, step)


def choices(method: Method) -> dict[str, str]:
    """A run's row of the HParams tab."""
    return {"formulation": method.formulation, "rule": method.rule or "none", "solver": method.solver}


def _write_overview(
    results: Results, tags: Sequence[str], pictures: Mapping[str, Figure], texts: Mapping[str, str], report: Report
) -> None:
    for i, (name, text) in enumerate({**texts, GUIDE: guide(results)}.items(), start=1):
        report.text(f"texts/{i} {name}", text)
    for i, (name, picture) in enumerate(pictures.items(), start=1):
        report.figure(f"overview/{i} {name}", picture)
    report.layout(layout(results, tags))
    chosen = [choices(method) for method in results.methods]
    names = dict.fromkeys(name for choice in chosen for name in choice)
    domains = {name: sorted({choice[name] for choice in chosen}) for name in names}
    domains = {name: values for name, values in domains.items() if len(values) > 1}  # else a column that says nothing
    report.experiment(domains, _metrics(results, tags))
    report.close()


def _metrics(results: Results, tags: Sequence[str]) -> dict[str, str]:
    """Columns of the HParams tab that have values, those at the shown K first."""
    settings = sorted({setting(method) for method in results.methods})
    budgets = sorted(results.budgets, key=lambda steps: (steps != results.shown, steps))
    wanted = [(k, name, of) for k in budgets for name in METRICS for of in settings]
    titles = {metric(k, name, of): f"{METRICS[name]}, K = {k}, {of}" for k, name, of in wanted}
    return {tag: title for tag, title in titles.items() if tag in tags}


def layout(results: Results, tags: Sequence[str]) -> dict[str, dict[str, str]]:
    """The Custom Scalars tab: category -> setting -> regular expression of a tag, where there is one."""
    steps = group(results.shown)
    titles = {
        "Frechet distance (log10: 1 is 10) against network calls": "quality/frechet_distance_log10",
        "bits/dim (log10: 1 is 10) against network calls": "quality/bits_per_dim_log10",
        f"K = {results.shown}: reverse variance (log10) against 100 log-SNR": f"{steps}/reverse_variance_log10",
        f"K = {results.shown}: bound terms (log10 of bits/dim) against 100 log-SNR": f"{steps}/bound_terms_log10",
        f"K = {results.shown}: share clipped by the bounds against 100 log-SNR": f"{steps}/clipped_share",
    }
    settings = sorted({setting(method) for method in results.methods})
    charts = {
        title: {of: f"^{re.escape(f'{name}, {of}')}$" for of in settings if f"{name}, {of}" in tags}
        for title, name in titles.items()
    }
    return {title: of for title, of in charts.items() if of}


def guide(results: Results) -> str:
    """What the tags mean, in Markdown."""
    settings = "; ".join(f"`{of}`" for of in sorted({setting(method) for method in results.methods}))
    rows = [(f"`{name}`", scalar.told) for name, scalar in SCALARS.items()]
    rows += [(f"`steps K=.../{name}`", curve.told) for name, curve in CURVES.items()]
    rows += [
        ("`samples/grid`", "samples of the first seed; all methods start from the same noise"),
        ("`samples/x0_along_the_path`", "what the network takes the image to be, from noise (left) to data"),
        ("`table K=...`", "columns of the HParams tab"),
    ]
    table = "\n".join(f"| {name} | {told} |" for name, told in rows)
    paragraphs = (
        f"A run is a formulation and a variance rule; `{OVERVIEW}` is about all of them, and `{REAL}` is what as "
        "many real images, drawn with replacement, score. The end of a tag says how the steps were chosen, and eta "
        f"(1 is DDPM, 0 is DDIM): {settings}. A tag means the same in every run.",
        "The horizontal axis is the number of network calls per sample; under `steps` it is 100 times the log-SNR of "
        "the state that a step begins with, so that sampling runs from left (noise) to right (data).",
        "Set smoothing to 0. In Time Series, the table below a chart is about the step that the dotted line is at: "
        f"drag it to {results.shown} and sort by value. Charts cut off the outermost values until they are fitted to "
        "the data, by the button with the dashed frame.",
        f"| tag | what it is |\n|---|---|\n{table}",
        f"Distances: features `{results.features}`, {results.samples} samples a seed, {len(results.seeds)} seed(s). "
        f"Bits/dim: split `{results.split}`, decoder variance `{results.decoder}`; methods with eta 0 have none.",
    )
    return "\n\n".join(paragraphs)
