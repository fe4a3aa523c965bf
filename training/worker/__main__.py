"""The training worker as a process: claims jobs, has each carried out by a process of its own, tells what happens,
publishes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.parent_death import die_with_parent
from graftwork.training.worker.process import KEY_VARIABLE
from graftwork.training.worker.worker import TrainingWorker, TrainingWorkerConfig

log = logging.getLogger(__name__)


def follow_server(worker: TrainingWorker, line: BinaryIO) -> None:
    """Read the server's state from its pipe: ``1`` while it serves requests, ``0`` otherwise. The worker stops at the
    end of the pipe."""
    while data := os.read(line.fileno(), 64):
        worker.busy = data.endswith(b"1")
    worker.stopping.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the training worker with command-line arguments, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m graftwork.training.worker", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--home", type=Path, required=True, help="the server's home")
    parser.add_argument("--base", type=Path, required=True, help="what the server serves, as base.json in HOME/jobs")
    parser.add_argument("--artifacts", help="the bucket of the server's adapters and files; default: the home")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    parser.add_argument("--nice", type=int, default=19, help="of a run, 0 to 19")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a run; 0: torch's choice")
    parser.add_argument("--share", type=float, default=0.5, help="of the time that a run goes on beside requests")
    parser.add_argument("--allow-python-graders", action="store_true", help="run graders that are programs")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--parent", type=int, help="the server's process: this one dies with it, and reads from it")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if given.parent is not None:
        die_with_parent(given.parent)
    config = TrainingWorkerConfig(
        home=given.home,
        base=BaseInfo.from_json(given.base.read_text(encoding="utf-8")),
        artifacts=given.artifacts,
        url=given.url,
        database=os.environ.pop("GRAFTWORK_DATABASE", None),  # runs inherit the environment, and do without
        key=os.environ.get(KEY_VARIABLE),
        nice=given.nice,
        threads=given.threads,
        share=given.share,
        allow_python_graders=given.allow_python_graders,
    )
    return serve(config, line=sys.stdin.buffer if given.parent is not None else None)


def serve(config: TrainingWorkerConfig, *, line: BinaryIO | None = None) -> int:
    """Run a worker until SIGTERM, or until ``line`` ends.

    Args:
        config: the configuration of the worker.
        line: the pipe on which the server reports whether it is busy.

    Returns:
        The exit code: 0, or 1 if the worker could not run.
    """
    worker = TrainingWorker(config)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C: it drains, then stops the worker
    if line is not None:
        threading.Thread(target=follow_server, args=(worker, line), name="line", daemon=True).start()
    try:
        worker.run()
    except GraftworkError as error:
        log.error("%s", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
