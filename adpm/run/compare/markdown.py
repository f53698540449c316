"""Markdown that people and TensorBoard can read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; it wants an empty line on either side."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list; it wants an empty line on either side, too."""
    return "\n".join(f"* {line}" for line in lines)


def bold(text: str) -> str:
    return f"**{text}**"


def short(value: float | None) -> str:
    """A ratio: two digits after the point, but no more than two in all for what is far from 1."""
    if value is None or math.isnan(value):
        return NONE
    size = abs(value)
    if size and not 0.005 <= size < 9999.5:
        told = f"{value:.2g}"
        return f"{float(told):.0f}" if 1.0 < size < 1e7 else told
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"


def bits(value: float) -> str:
    """Bits/dim: two digits after the point, none from 100 on."""
    return f"{round(value, 2) + 0.0:.{2 if abs(value) < 99.995 else 0}f}"


def span(values: Sequence[float], told: Sequence[str]) -> str:
    """The least to the largest of some values, as they are told; one text where they read alike."""
    low, high = (told[values.index(end)] for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def listed(names: Sequence[str], most: int = 4, mark: str = "`") -> str:
    """Names in a row, the first `most` of them."""
    shown = ", ".join(f"{mark}{name}{mark}" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
