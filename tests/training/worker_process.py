"""A training worker in a process of its own, which may be killed: ``python -m tests.training.worker_process HOME URL``.

The true worker with short leases; runs are stand-ins.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from graftwork.adapters.base import BaseInfo
from graftwork.training.worker.__main__ import serve
from graftwork.training.worker.worker import TrainingWorkerConfig

RUN = (sys.executable, str(Path(__file__).with_name("stand_in_run.py")))


def config(home: Path, url: str) -> TrainingWorkerConfig:
    base = BaseInfo.from_json((home / "base.json").read_text())
    return TrainingWorkerConfig(home=home, base=base, url=url, command=RUN, nice=0, lease_seconds=5.0, stop_seconds=5.0)


if __name__ == "__main__":
    logging.basicConfig(level="INFO", stream=sys.stderr)
    sys.exit(serve(config(Path(sys.argv[1]), sys.argv[2])))
