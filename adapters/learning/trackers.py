"""Experiment trackers that a run may report its measurements to.

None is used unless a job names it. Keys and addresses come from the environment (``WANDB_API_KEY``,
``MLFLOW_TRACKING_URI``, …), never from a job.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted

TRACKERS: Final = ("wandb", "mlflow", "trackio")
"""Trackers, named like their packages."""


def check(names: Iterable[str], *, param: str = "report_to") -> None:
    """Check that trackers are known and installed.

    Raises:
        InvalidRequest: One is not.
    """
    for name in names:
        if name not in TRACKERS:
            raise InvalidRequest(f"{quoted(name)} is no tracker: choose among {', '.join(TRACKERS)}", param=param)
        found = importlib.util.find_spec(name)
        # Without an origin it is only a folder of that name: wandb creates one wherever it runs.
        if found is None or found.origin is None:
            raise InvalidRequest(
                f"{name} is not installed where runs are carried out: pip install {name} there, or leave it out of "
                "report_to",
                param=param,
                code="tracker_not_installed",
            )
