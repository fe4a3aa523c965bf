"""How a run tells trackers: which run of theirs it is, what they may do of their own accord, and that it ends.

transformers' callbacks do the telling. Knows nothing of a run's numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from graftwork.adapters import trackers

PROJECT: Final = "graftwork"
"""What runs stand under, where the environment does not say."""

SILENT: Final[Mapping[str, str]] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""No library reports to its makers. Read once, when each is imported, so it must be in the environment before."""

_DEFAULTS: Final[Mapping[str, str]] = {
    "WANDB_PROJECT": PROJECT,
    "WANDB_SILENT": "true",
    "MLFLOW_EXPERIMENT_NAME": PROJECT,
}
_ENDS: Final[Mapping[str, str]] = {"wandb": "finish", "mlflow": "end_run", "trackio": "finish"}


@contextlib.contextmanager
def tracked(names: Sequence[str]) -> Iterator[None]:
    """A block in which these trackers are told. Whatever ends it ends their run as well: what follows in this process,
    another trial or another attempt, is another run of theirs."""
    trackers.check(names)
    if names:
        for variable, value in _DEFAULTS.items():
            os.environ.setdefault(variable, value)
    try:
        yield
    finally:
        for name in names:
            with contextlib.suppress(RuntimeError):  # trackio's, when no run of its is under way
                getattr(importlib.import_module(name), _ENDS[name])()
