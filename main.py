"""Train, estimate, sample and measure: see README.md, or run `python main.py --help`."""

from __future__ import annotations

import sys


def main() -> int:
    try:  # the imports take seconds, and Ctrl-C may come in any of them
        from adpm.run.cli import run
        from adpm.run.core import CORE
        from adpm.run.modes import MODES
        from covariance.tables import COVARIANCE_TABLES
        from sde.tables import SDE_TABLES

        return run(sys.argv, CORE.merged(SDE_TABLES).merged(COVARIANCE_TABLES), MODES)
    except KeyboardInterrupt:
        print("\ninterrupted before anything began.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
