"""The run of one job as a process: ``python -m graftwork.training.worker.job FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from graftwork.training.worker.job.runner import JobRunner


def main() -> int:
    """The process: 0 with a result that succeeded, 1 with one that failed, 143 when it was asked to end."""
    if len(sys.argv) != 2:
        print("usage: python -m graftwork.training.worker.job FOLDER", file=sys.stderr)
        return 2
    return JobRunner(Path(sys.argv[1])).run()


if __name__ == "__main__":
    sys.exit(main())
