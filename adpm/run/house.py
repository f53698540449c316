"""What a run can choose from: families by name, and the table of the fields that a config has with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from adpm.families import Families, merged
from adpm.run.table import Table


@dataclass(frozen=True)
class House:
    """What a run can choose from.

    Attributes:
        families: every family by name.
        added: those of its members that a user's file brought.
    """

    families: Families
    added: Families = field(default_factory=dict)

    @cached_property
    def table(self) -> Table:
        """The fields that a config has with these families."""
        return Table(self.families)

    def with_members(self, members: Families) -> House:
        """The house with a user's members.

        Raises:
            ValueError: for a family that there is not, or a name that is taken.
        """
        if unknown := members.keys() - self.families.keys():
            raise ValueError(f"{sorted(unknown)} are no families; there are: {', '.join(self.families)}")
        return House(merged(self.families, members), members)
