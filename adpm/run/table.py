"""The table of fields: what every field of a config is, who reads it, and what it is part of.

A field counts where it is *read*: by walking from the fields that a product starts with to the members that they
choose, to these members' own fields and to the fields of others that they read. From this follow a config's defaults,
the checks of names and ranges, the refusal of what nobody reads, the keys of everything that is kept, and
`--mode=describe`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from adpm.errors import UserError, lookup
from adpm.families import Families, Field, Kind
from adpm.run.fields import SECTIONS


@dataclass(frozen=True)
class Read:
    """A field that is read: its dotted name, what it means, and its value (the reader's default where unset)."""

    name: str
    field: Field
    value: Any


class Table:
    """The fields of a config with these families.

    Args:
        families: every family by name.
        sections: shared fields by section.
    """

    def __init__(self, families: Families, sections: Mapping[str, Mapping[str, Field]] = SECTIONS) -> None:
        self.families, self.sections = families, sections
        self._owners: dict[str, list[tuple[str, Kind]]] = {}
        for section, choice in self._choices():
            for name, kind in families[choice.choices].items():
                for key in kind.fields:
                    self._owners.setdefault(_dotted(section, key), []).append((name, kind))

    def _choices(self) -> Iterator[tuple[str, Field]]:
        """(section, field) of every field that chooses a member, members' own included."""
        for section, fields in self.sections.items():
            todo = list(fields.values())
            seen: set[str] = set()
            while todo:
                choice = todo.pop(0)
                if choice.choices and choice.choices not in seen:
                    seen.add(choice.choices)
                    yield section, choice
                    todo += [own for kind in self.families[choice.choices].values() for own in kind.fields.values()]

    @property
    def names(self) -> list[str]:
        """All fields, section by section, shared ones first."""
        out = []
        for section, fields in self.sections.items():
            out += [_dotted(section, key) for key in fields]
            out += [n for n in self._owners if _split(n)[0] == section and _split(n)[1] not in fields]
        return out

    def field(self, name: str) -> Field:
        """A field by its dotted name; of one that several members have, the first member's."""
        section, key = _split(name)
        shared = self.sections.get(section, {}).get(key)
        return shared if shared is not None else self._owners[name][0][1].fields[key]

    def default(self, name: str) -> Any:
        """What a config has where nothing is said: None where members differ in their defaults."""
        owners = self._owners.get(name)
        if owners is None:
            return self.field(name).default
        defaults = [kind.fields[_split(name)[1]].default for _, kind in owners]
        return defaults[0] if all(value == defaults[0] for value in defaults) else None

    def config(self, names: Iterable[str] | None = None) -> ConfigDict:
        """A config of these fields (all, unless given) with their defaults."""
        out = ConfigDict()
        for name in self.names if names is None else names:
            section, key = _split(name)
            if section and section not in out:
                out[section] = ConfigDict()
            value = self.default(name)
            (out[section] if section else out)[key] = placeholder(self.field(name).kind) if value is None else value
        return out

    def complete(self, config: ConfigDict) -> None:
        """Give a config the fields of members that came after it was made."""
        for name in self.names:
            section, key = _split(name)
            inside = config.get(section) if section else config
            if inside is not None and key not in inside:
                value = self.default(name)
                with config.unlocked():
                    inside[key] = placeholder(self.field(name).kind) if value is None else value

    # Walking

    def walk(
        self, config: Mapping[str, Any], start: Iterable[str], kinds: Iterable[tuple[str, Kind]] = ()
    ) -> list[Read]:
        """What is read, from the fields `start` and from members (section, kind) on, each once."""
        todo = [(name, self.field(name)) for name in start]
        for section, kind in kinds:
            todo += self._of_kind(section, kind)
        out: dict[str, Read] = {}
        while todo:
            name, found = todo.pop(0)
            if name in out and (found.of is not None or out[name].field.of is None):
                continue
            given = _value(config, name)
            value = found.default if given is None else given
            out[name] = Read(name, found, value)
            for chosen in _chosen(found, value):
                member = self.families[found.choices].get(chosen)
                todo += self._of_kind(_split(name)[0], member) if member is not None else []
            todo += [(other, self.field(other)) for other in found.reads] if value else []
        return list(out.values())

    def _of_kind(self, section: str, kind: Kind) -> list[tuple[str, Field]]:
        own = [(_dotted(section, key), found) for key, found in kind.fields.items()]
        # whatever else it is part of, it is part of what the member is part of
        return own + [(name, replace(found, of=None)) for read in kind.reads for name, found in self.named(read)]

    def named(self, read: str) -> list[tuple[str, Field]]:
        """A field by its dotted name; by "choice=member" all fields of a member of what the field `choice` chooses."""
        choice, _, member = read.partition("=")
        if not member:
            return [(read, self.field(read))]
        return self._of_kind(_split(choice)[0], self.families[self.field(choice).choices][member])

    def starting(self, *products: str) -> list[str]:
        """The shared fields that products start with."""
        return [
            _dotted(section, key)
            for section, fields in self.sections.items()
            for key, found in fields.items()
            if found.of is not None and set(found.of) & set(products)
        ]

    def part(self, config: Mapping[str, Any], product: str, *kinds: tuple[str, Kind]) -> dict[str, Any]:
        """The fields that a product depends on, as JSON has them; `kinds` are members that it makes use of besides."""
        read = self.walk(config, self.starting(product), kinds)
        return {r.name: _plain(r.value) for r in read if r.field.of is None or product in r.field.of}

    def options(self, config: Mapping[str, Any], choice: str, name: str | None = None) -> dict[str, Any]:
        """What the member that the field `choice` names is given: its own fields, less those that are unset.

        Members that an option chooses give their own options along.
        """
        section, found = _split(choice)[0], self.field(choice)
        kind = self.families[found.choices][name or str(_value(config, choice) or found.default)]
        out: dict[str, Any] = {}
        for key, own in kind.fields.items():
            value = _value(config, _dotted(section, key))
            value = own.default if value is None else value
            if own.given and value is not None:
                out[key] = value
            if own.choices and value is not None:
                out |= self.options(config, _dotted(section, key))
        return out

    # Checking

    def check(self, config: ConfigDict, start: Collection[str] | None = None) -> None:
        """Refuse unknown names, numbers out of range, and fields that nobody reads.

        Raises:
            UserError: naming the field, its value and what would be right.
        """
        read = self.walk(config, self._roots() if start is None else start)
        for item in read:
            for chosen in _chosen(item.field, item.value):
                lookup(self.families[item.field.choices], chosen, f"config.{item.name}")
            if item.value is not None:
                item.field.check(f"config.{item.name}", item.value)
        known = {item.name for item in read}
        for name in self.unread(config, known):
            raise UserError(self._does_nothing(config, name))

    def unread(self, config: Mapping[str, Any], read: Collection[str]) -> list[str]:
        """Fields that are set, but none of those that are read."""
        return [
            name
            for name in self.names
            if name not in read
            and (value := _value(config, name)) is not None
            and _plain(value) != _plain(self.default(name))
        ]

    def update(self, config: ConfigDict, fields: Mapping[str, Any]) -> None:
        """Set fields by their dotted names, and unset what nobody reads then."""
        _set(config, fields)
        self.prune(config)

    def set(self, config: ConfigDict, fields: Mapping[str, Any]) -> None:
        """Set fields by their dotted names, whatever they have been."""
        _set(config, fields)

    def unset(self, config: ConfigDict, names: Iterable[str]) -> None:
        """Leave fields open: whoever completes the config says them."""
        _set(config, {name: placeholder(self.field(name).kind) for name in names})

    def prune(self, config: ConfigDict) -> None:
        """Unset what nobody reads: fields that several configs share are for those that read them."""
        _set(config, {name: self.default(name) for name in self.idle(config)})

    def idle(self, config: Mapping[str, Any]) -> list[str]:
        """Fields that are set, and that nobody reads."""
        return self.unread(config, {item.name for item in self.walk(config, self._roots())})

    def _roots(self) -> list[str]:
        return [_dotted(s, k) for s, fields in self.sections.items() for k, f in fields.items() if f.of is not None]

    def _does_nothing(self, config: Mapping[str, Any], name: str) -> str:
        section, key = _split(name)
        told = f"config.{name} = {_value(config, name)!r} does not go with "
        for reader, found in self.sections[section].items():
            if name in found.reads:
                return f"{told}config.{_dotted(section, reader)} = {_value(config, _dotted(section, reader))!r}."
        for choice in (n for n in self.names if _split(n)[0] == section and self.field(n).choices):
            family, chosen = self.families[self.field(choice).choices], _value(config, choice)
            who = ", ".join(member for member, kind in family.items() if key in kind.fields or name in kind.reads)
            if who:
                kind = family.get(str(chosen))
                takes = ", ".join(kind.fields) if kind is not None and kind.fields else "none"
                return f"{told}config.{choice} = {chosen!r}, which takes: {takes}; it is an option of {who}."
        return f"{told}the members that this config chooses; nobody reads it."

    # Words

    def describe(self) -> str:
        """Every field with its type, default, range and meaning, and whose option it is."""
        lines = []
        for section in self.sections:
            lines.append(f"\nconfig.{section}" if section else "config")
            for name in (n for n in self.names if _split(n)[0] == section):
                shared = _split(name)[1] in self.sections[section]
                found, owners = self.field(name), [] if shared else self._owners.get(name, [])
                whose = f" [{', '.join(n for n, _ in owners)}]" if owners else ""
                default = self.default(name)
                shown = "unset" if default is None else repr(default)
                ranged = f" ({found.range})" if found.range else ""
                lines.append(f"  {_split(name)[1]} = {shown}{ranged}{whose}: {found.about}")
                if found.choices and not owners:
                    lines += [f"      {n}: {k.about}" for n, k in self.families[found.choices].items()]
        return "\n".join(lines)

    def translated(self, message: str, section: str = "") -> str:
        """A message of the mathematics, its parameters in backquotes, with the config fields that they are.

        Args:
            message: as it was raised.
            section: of the config whose fields come first.
        """
        fields: dict[str, list[str]] = {}
        for name in self.names:
            fields.setdefault(_split(name)[1], []).append(name)
            if arg := self.field(name).arg:
                fields.setdefault(arg, []).append(name)

        def named(match: re.Match[str]) -> str:
            word = match.group(1)
            if word in self.names:
                return f"config.{word}"
            found = fields.get(word, [])
            own = [name for name in found if section and _split(name)[0] == section]
            chosen = own or found
            return f"config.{chosen[0]}" if len(chosen) == 1 else match.group(0)

        return re.sub(r"`([\w.]+)`", named, message)


def _dotted(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _split(name: str) -> tuple[str, str]:
    section, _, key = name.rpartition(".")
    return section, key


def _value(config: Mapping[str, Any], name: str) -> Any:
    """A field of a config or of what a file says of one; None where it is unset or not there."""
    section, key = _split(name)
    inside = config.get(section) if section else config
    return None if inside is None else inside.get(key)


def _set(config: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Set fields by their dotted names, whatever types they have had."""
    with config.unlocked(), config.ignore_type():  # once for all: entering walks through the whole config
        for name, value in fields.items():
            section, key = _split(name)
            (config[section] if section else config)[key] = value


def _chosen(found: Field, value: Any) -> list[str]:
    if not found.choices or value is None:
        return []
    return str(value).split("+") if found.many else [str(value)]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
