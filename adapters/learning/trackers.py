"""Experiment trackers that a run may report its measurements to: which there are, and whether their packages are
installed. Off unless a job names one. Keys and addresses are the
environment's (``WANDB_API_KEY``, ``MLFLOW_TRACKING_URI``, …), never a job's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted

TRACKERS: Final = ("wandb", "mlflow", "trackio")
"""Each is named like its package."""


def check(names: Iterable[str], *, param: str = "report_to") -> None:
    """InvalidRequest for a tracker that there is not, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InvalidRequest(f"{quoted(name)} is no tracker: choose among {', '.join(TRACKERS)}", param=param)
        found = importlib.util.find_spec(name)
        # Without an origin it is a mere folder of that name: wandb makes one wherever it runs.
        if found is None or found.origin is None:
            raise InvalidRequest(
                f"{name} is not installed where runs are carried out: pip install {name} there, or leave it out of "
                "report_to",
                param=param,
                code="tracker_not_installed",
            )
