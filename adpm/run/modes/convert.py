"""--mode=convert: a checkpoint in another layout, ours or one of others, whole or not at all."""

from __future__ import annotations

from adpm.errors import UserError, lookup
from adpm.progress import say
from adpm.run.config import Job
from adpm.run.modes.inspect import lacking, of_job
from adpm.run.recognised import require_usable
from adpm.run.store import check_writable


def convert(job: Job) -> None:
    """Write config.network.pretrained into the workdir, in the layout config.network.save_as.

    Raises:
        UserError: if it is of no network here, not whole, or not for that layout.
    """
    families, found = job.house.families, of_job(job)
    kind = lookup(families["layout"], job.config.network.save_as, "config.network.save_as")
    shape = require_usable(found, families["network"])
    if told := lacking(found, job.house):
        raise UserError(f"weights '{found.path}' are not those of {shape} ({told}); nothing was written.")
    check_writable(job.workdir)
    written = kind.build(found, shape, job.workdir)
    say(f"{shape}; {found.checkpoint.chosen}.")
    say(f"written: {written}")
