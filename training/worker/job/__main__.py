"""The run of one job as a process: ``python -m graftwork.training.worker.job FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from graftwork.training.worker.job.runner import JobRunner


def main() -> int:
    """Carry out the run, and return the exit code: 0 if it succeeded, 1 if it failed, 2 for a wrong command line, and
    143 if it was terminated."""
    if len(sys.argv) != 2:
        print("usage: python -m graftwork.training.worker.job FOLDER", file=sys.stderr)
        return 2
    return JobRunner(Path(sys.argv[1])).run()


if __name__ == "__main__":
    sys.exit(main())
