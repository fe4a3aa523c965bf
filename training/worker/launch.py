"""The launcher of a run: ``python -m graftwork.training.worker.launch FOLDER PARENT NICE THREADS COMMAND…``

It ties the process to its worker, sets its niceness and number of threads, locks the folder, and replaces itself by the
command, which inherits the lock. The exit code is `EXIT_FOLDER_BUSY` if another run holds the lock.
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
    """Replace this process by the command; returns only if the folder is busy.

    Args:
        folder: the folder of the run.
        parent: process id of the worker.
        nice: increment of the niceness.
        threads: number of CPU threads; 0 for the default of the libraries.
        command: path and arguments of the program.
    """
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
