"""Train, estimate, sample and measure: see README.md, or run `python main.py --help`."""

from __future__ import annotations

import sys

from adpm.run.assembly import CORE
from adpm.run.cli import run
from adpm.run.modes import MODES

if __name__ == "__main__":
    sys.exit(run(sys.argv, CORE, MODES))
