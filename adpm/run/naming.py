"""The border's words: parameters of the mathematics, told as the config fields that they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adpm.errors import UserError
from adpm.run.table import Table


@contextmanager
def naming(table: Table, section: str = "") -> Iterator[None]:
    """Messages raised inside name config fields, those of `section` first."""
    try:
        yield
    except UserError as error:
        told = table.translated(str(error), section)
        if told == str(error):
            raise
        raise UserError(told) from error
