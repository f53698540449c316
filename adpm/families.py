"""One shape for every family of the project, and what an option of a member means.

A family is a plain dict of name -> `Kind` at the foot of its file. A kind is how a member is built, the one sentence
that help, tables and TensorBoard show of it, facts that may be asked without building it, and its own options as
`Field`s. An option stands beside the member that has it; what a config offers, checks, documents and keys follows from
here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adpm.errors import UserError, lookup


@dataclass(frozen=True)
class Field:
    """A field of a config, or an option of a member.

    Attributes:
        default: its value where nothing is said; None: unset, and the builder's own default holds.
        about: its unit and meaning, in a sentence.
        type: of its values; the default's unless given.
        low, high: the range of a number, ends included (of every number, for a tuple).
        above, below: the same, ends excluded.
        choices: the family whose members are its values.
        many: whether several members may be named, joined by '+'.
        of: what it is part of. None: of everything that reads it; else the products named here, and no others;
            () is what changes no result: places, speed, display, amounts.
        reads: other fields ("section.name") that are read where this one is set to something true.
        arg: the builder's argument, where it has another name.
        given: whether the builder takes it; else whoever uses the member reads it.
    """

    default: Any
    about: str
    type: Callable[..., Any] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: str = ""
    many: bool = False
    of: tuple[str, ...] | None = None
    reads: tuple[str, ...] = ()
    arg: str = ""
    given: bool = True

    @property
    def kind(self) -> Callable[..., Any]:
        return self.type or self.default.__class__

    @property
    def range(self) -> str:
        """The range in words; "" where there is none."""
        ends = (("of at least", self.low), ("above", self.above), ("of at most", self.high), ("below", self.below))
        return " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)

    def check(self, name: str, value: Any) -> None:
        """Refuse a number outside the range, or one that is not finite.

        Raises:
            UserError: naming the field, its value and the range.
        """
        numbers = value if isinstance(value, (tuple, list)) else (value,)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            inside = (
                (self.low is None or number >= self.low)
                and (self.high is None or number <= self.high)
                and (self.above is None or number > self.above)
                and (self.below is None or number < self.below)
            )
            told = [] if math.isfinite(number) else ["that is finite"]
            if told or not inside:
                raise UserError(f"{name} = {value} must be a number {' '.join([self.range, *told]).strip()}.")


@dataclass(frozen=True)
class Kind:
    """A member of a family.

    Attributes:
        build: makes it; what it is given first depends on the family, then its own options by keyword.
        about: what it is, in one sentence.
        facts: what may be asked of it without building it; a record of the family's own.
        fields: its own options by name.
        reads: fields of others ("section.name") that have a part in what it does; "section.name=member" stands for all
            fields of a member that such a field might choose.
    """

    build: Callable[..., Any]
    about: str
    facts: Any = None
    fields: Mapping[str, Field] = field(default_factory=dict)
    reads: tuple[str, ...] = ()


Family = Mapping[str, Kind]
Families = Mapping[str, Family]


def built(
    family: Family, name: str, parameter: str, *first: Any, protocol: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """The member `name` of a family, built.

    Args:
        family: the members by name.
        name: of one.
        parameter: what named it, for messages.
        first, protocol: what the family's builders are given, by position and by keyword.
        options: the member's own; None: unset.

    Raises:
        UserError: naming `parameter`, or an option that the member does not take.
    """
    kind = lookup(family, name, parameter)
    unknown = sorted(options.keys() - kind.fields.keys())
    if unknown and not _passes_on(kind.build):
        takes = ", ".join(kind.fields) or "none"
        raise UserError(f"{parameter} '{name}' has no option `{unknown[0]}`; its options: {takes}.")
    given = dict(protocol or {})
    for option, value in options.items():
        if value is None:
            continue
        own = kind.fields.get(option)
        if own is not None:
            own.check(f"`{option}`", value)
        given[own.arg if own is not None and own.arg else option] = value
    return kind.build(*first, **given)


def _passes_on(build: Callable[..., Any]) -> bool:
    """Whether a builder takes any keyword, for a member of another family that it builds."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values())


def merged(*all_families: Families) -> dict[str, dict[str, Kind]]:
    """The families with all members.

    Raises:
        ValueError: if a family has two members of one name.
    """
    out: dict[str, dict[str, Kind]] = {}
    for families in all_families:
        for family, members in families.items():
            own = out.setdefault(family, {})
            if twice := own.keys() & members.keys():
                raise ValueError(f"family {family}: {sorted(twice)} registered twice")
            own.update(members)
    return out
