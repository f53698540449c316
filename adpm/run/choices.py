"""Which members a config chooses, and how they are built with their own options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import FrozenConfigDict

from adpm.errors import UserError
from adpm.families import Kind, built
from adpm.run.house import House
from adpm.run.naming import naming


@dataclass(frozen=True)
class Choices:
    """A config's choices.

    Attributes:
        config: the fields.
        house: the families to choose from.
    """

    config: FrozenConfigDict
    house: House

    def kind(self, choice: str) -> Kind:
        """The member that a field chooses."""
        found = self.house.table.field(choice)
        (name,) = (r.value for r in self.house.table.walk(self.config, [choice]) if r.name == choice)
        return self.house.families[found.choices][name]

    def build(self, choice: str, *first: Any, protocol: Mapping[str, Any] | None = None) -> Any:
        """The member that a field chooses, built with its own options.

        Raises:
            UserError: naming the fields.
        """
        table, section = self.house.table, choice.partition(".")[0]
        found, options = table.field(choice), table.options(self.config, choice)
        name = dict((r.name, r.value) for r in table.walk(self.config, [choice]))[choice]
        with naming(table, section):
            try:
                return built(
                    self.house.families[found.choices], name, f"`{choice}`", *first, protocol=protocol, **options
                )
            except UserError:
                raise
            except (ValueError, TypeError, ArithmeticError, IndexError, RuntimeError, MemoryError) as error:
                told = ", ".join(f"{key} = {value!r}" for key, value in options.items())
                raise UserError(
                    f"config.{section} cannot be built from {told}: {type(error).__name__}: {error}."
                ) from error
