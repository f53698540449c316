"""What is measured of a session's network and kept: the file that the config names, the cache's, or a new one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from adpm.errors import UserError
from adpm.run.assembly import Session
from adpm.run.measure import cache
from adpm.run.naming import naming
from adpm.run.store import digest, kept


class Statistics(Protocol):
    """Numbers with their provenance, and the shape of the data that they are about."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def save(self, path: Path) -> None: ...

    def require(self, provenance: Mapping[str, Any], path: Path) -> None: ...


T = TypeVar("T", bound=Statistics)


@dataclass(frozen=True)
class Kept(Generic[T]):
    """Statistics of one kind.

    Attributes:
        name: the member of the family `statistics` whose options these are.
        product: what fields are part of that they depend on.
        file: the field of config.moments that names a file of them.
        stem: what files in the cache begin with.
        load: reads such a file.
    """

    name: str
    product: str
    file: str
    stem: str
    load: Callable[[Path], T]

    def of(self, session: Session, measure: Callable[[Path], T]) -> T:
        """The session's own; `measure` is given the path that they will have.

        Raises:
            UserError: if a named file is about another model (the differing entries are named), or other data.
        """
        with naming(session.house.table, "moments"):
            if named := self._named(session):
                found = self.load(named)
                found.require(session.identity, named)
                if found.shape != session.data.shape:
                    raise UserError(
                        f"config.moments.{self.file} = '{named}' is about data of shape {found.shape}, not of "
                        f"{session.data.shape}."
                    )
                return found
            path = self.path(session)
            return kept(path, self.stem, self.load, lambda: measure(path), lambda found: found.save)

    def options(self, session: Session) -> dict[str, Any]:
        """What they are measured with."""
        return session.house.table.options(session.config, "moments.statistics", self.name)

    def provenance(self, session: Session) -> dict[str, Any]:
        """What those measured by this config depend on."""
        kind = ("moments", session.house.families["statistics"][self.name])
        own = session.house.table.part(session.config, self.product, kind)
        files = {n: Path(v) for n, v in self.options(session).items() if n.endswith("_file") and Path(v).is_file()}
        contents = {name: _sha(file) for name, file in files.items()}
        return {**session.identity, "split": "train", "own": own, **({"contents": contents} if contents else {})}

    def key(self, session: Session) -> str:
        """What tells this session's from others: a named file's contents, or what its own are measured with."""
        if named := self._named(session):
            return _sha(named)
        return digest(self.provenance(session))

    def path(self, session: Session) -> Path:
        """The cache's file for this model and these settings."""
        return cache(session) / f"{self.stem}-{self.key(session)}.npz"

    def _named(self, session: Session) -> Path | None:
        named = session.config.moments[self.file]
        return Path(named) if named else None


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
