"""LaTeX tables for the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    }
)


def escaped(text: str) -> str:
    """Plain text as LaTeX sets it."""
    return text.translate(_ESCAPES)


def figure(text: str, bold: bool) -> str:
    """A number with its ±, in mathematics."""
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def table(name: str, caption: str, head: Sequence[str], lines: Sequence[Sequence[str]], names: int) -> str:
    r"""A table with its caption.

    Args:
        name: its label.
        caption: as LaTeX.
        head, lines: cells as LaTeX.
        names: how many columns are names, set to the left; wherever the first of them changes stands a \midrule.
    """
    rows, group = [], None
    for line in lines:
        if line[0] != group:
            rows.append(r"\midrule")
        group = line[0]
        rows.append(f"{' & '.join(line)} \\\\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(head) - names)}}}",
            r"\toprule",
            f"{' & '.join(head)} \\\\",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
