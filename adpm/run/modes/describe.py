"""--mode=describe: every field of a config, and what its members are."""

from __future__ import annotations

from adpm.progress import say
from adpm.run.cli import Job


def describe(job: Job) -> None:
    """Print the table of fields, a user's own members included."""
    say(job.house.table.describe())
