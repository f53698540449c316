"""The one exception for a user's mistake, and the lookup that raises it.

`UserError` carries one sentence that names the field, the value got and what would be right; `main.py` prints it
and exits with code 2. Programming mistakes keep their own exceptions and tracebacks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in the request, said in one sentence: field, value got, what would be right."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known name, `""` when nothing is close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def lookup(table: Mapping[str, T], name: str, field: str) -> T:
    """The member `name` of a family's table.

    Raises:
        UserError: naming `field`, the name got, the nearest and all known names.
    """
    if name not in table:
        known = ", ".join(sorted(table))
        raise UserError(f"{field} = '{name}' is unknown{nearest(str(name), table)}; known: {known}.")
    return table[name]
