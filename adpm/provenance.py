"""What measured numbers depend on, and whether that is what is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpm.errors import UserError


def unlike(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The entries of a provenance that differ from what is asked for, told in a few words; "" if none does."""
    old, new = (leaves(json.loads(json.dumps(dict(p)))) for p in (there, now))
    changed = [k for k in sorted(new) if new[k] != old.get(k)]
    return "; ".join(f"{k}: {old.get(k)!r} there, {new[k]!r} now" for k in changed[:4])


def require_own(there: Mapping[str, Any], now: Mapping[str, Any], path: Path, what: str, field: str) -> None:
    """Check that a file is about what is asked for: what it depends on agrees with every entry of `now`.

    Raises:
        UserError: naming the differing entries, and the field of config.moments that names such files.
    """
    if told := unlike(there, now):
        raise UserError(
            f"{what} file '{path}' belongs to something else ({told}); remove it to measure again, or name another in "
            f"`moments.{field}`."
        )


def leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= leaves(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return out
