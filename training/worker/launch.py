"""Starts a run as it has to be: ``python -m graftwork.training.worker.launch FOLDER PARENT NICE THREADS COMMAND…``

The run dies with its worker, is nice to everybody else, keeps to its threads, and nobody else runs in its folder: the
lock goes with the process that this one becomes. Exit code `EXIT_FOLDER_BUSY`: another one still does.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import Final

from graftwork.adapters.parent_death import die_with_parent

EXIT_FOLDER_BUSY: Final = 75
LOCK: Final = "run.lock"


def main(folder: str, parent: str, nice: str, threads: str, *command: str) -> int:
    die_with_parent(int(parent))
    lock = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_FOLDER_BUSY
    os.set_inheritable(lock, True)
    os.nice(int(nice))
    if int(threads):
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads))
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
