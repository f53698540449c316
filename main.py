"""Train, estimate, sample, measure and compare: see README.md, or run `python main.py --help`."""

from __future__ import annotations

import sys


def main() -> int:
    try:  # the imports take seconds, and Ctrl-C may come in any of them
        from adpm.run.cli import run
        from adpm.run.commands import MODES

        return run(sys.argv, MODES)
    except KeyboardInterrupt:
        print("\ninterrupted before anything began.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
