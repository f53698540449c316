"""What a start that jumps leaves to walk of a path."""

from __future__ import annotations

from collections.abc import Callable

from adpm.errors import UserError
from adpm.paths import Path
from adpm.process import Process
from adpm.start import Start


def after(start: Start, process: Process, path: Path, again: Callable[[int], Path]) -> Path:
    """What a start leaves to walk of a path: its own last steps, or as many steps from where the jump lands.

    Args:
        start: where sampling begins.
        process: gives the reference times.
        path: from the beginning.
        again: index of a reference time -> the path found anew up to there.

    Raises:
        UserError: if there is no such path.
    """
    last = start.landing(path.indices)
    if last == path.indices[-1]:
        return path
    if not start.respend:
        kept = path.indices[path.indices <= last]
        return Path(kept, process.times[kept])
    found = again(last)
    if found.indices[-1] != last:
        raise UserError(
            f"a path from t = {process.times[last]:g}, where the jump lands, begins at t = {found.times[-1]:g} by "
            "`trajectory.name`, which stops short of its end; use another, or `start_respend` = False."
        )
    return found
