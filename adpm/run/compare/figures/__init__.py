"""The figures of a comparison by name, drawn and saved."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from adpm.run.compare.figures.curves import quality_bits, quality_distance
from adpm.run.compare.figures.pictures import samples, strips
from adpm.run.compare.figures.shown import quality_shown, trajectories
from adpm.run.compare.figures.style import Builder, styled
from adpm.run.compare.figures.summary import quality
from adpm.run.compare.figures.terms import bound_terms
from adpm.run.compare.figures.variances import excess_precision, reverse_variance
from adpm.run.compare.results import Results
from adpm.run.figures import save_figure

FORMATS = ("png", "svg")
DPI = 150


def save_figures(results: Results, folder: Path) -> dict[str, Figure]:
    """Draw and write every figure that the results have something for, as folder/NAME.png and .svg.

    Returns:
        The figures by name. Files of a figure that has nothing to show are removed: they would be of other results.
    """
    drawn: dict[str, Figure] = {}
    for name, build in FIGURES.items():
        figure = build(results)
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            save_figure(path, figure, DPI)
            drawn[name] = figure
    return drawn


FIGURES: dict[str, Builder] = {
    "quality_shown": styled(quality_shown),
    "quality": styled(quality),
    "quality_distance": styled(quality_distance),
    "quality_bits": styled(quality_bits),
    "trajectories": styled(trajectories),
    "bound_terms": styled(bound_terms),
    "reverse_variance": styled(reverse_variance),
    "excess_precision": styled(excess_precision),
    "strips": styled(strips),
    "samples": styled(samples),
}
"""Name -> results -> figure; None when the results have nothing to show in it."""
