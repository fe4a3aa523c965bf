"""Experiment trackers of a run: their defaults, the end of their runs, and their errors. transformers' callbacks report
the metrics.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.learning import trackers

PROJECT: Final = "graftwork"
"""Name of the project or experiment in trackers, unless the environment sets one."""

SILENT: Final[Mapping[str, str]] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""Environment variables that disable telemetry of libraries. They must be set before the libraries are imported."""

_DEFAULTS: Final[Mapping[str, str]] = {
    "WANDB_PROJECT": PROJECT,
    "WANDB_SILENT": "true",
    "MLFLOW_EXPERIMENT_NAME": PROJECT,
}
_ENDS: Final[Mapping[str, str]] = {"wandb": "finish", "mlflow": "end_run", "trackio": "finish"}


_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_IN_ADDRESS: Final = re.compile(r"//[^/@\s]+@")
_CALLBACKS_MODULE: Final = "transformers.integrations"


@contextlib.contextmanager
def tracked(names: Sequence[str]) -> Iterator[None]:
    """Enable trackers for the block. At its end their runs end, too, so that another trial or attempt in this process
    is a new run.

    Args:
        names: names of trackers.

    Raises:
        InvalidRequest: if a tracker is unknown or not installed.
        GraftworkError: with code ``tracker_failed`` for an error of a tracker, without secrets in its message.
    """
    trackers.check(names)
    if not names:
        yield
        return
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    try:
        yield
    except Exception as error:
        if not _is_from_tracker(error):
            raise
        # Without its cause: the messages of the libraries contain addresses and keys.
        raise _failed(names, error) from None
    finally:
        for name in names:
            with contextlib.suppress(RuntimeError):  # raised by trackio if no run is active
                getattr(importlib.import_module(name), _ENDS[name])()


def _is_from_tracker(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__")).startswith(_CALLBACKS_MODULE) for frame, _ in frames)


def _failed(names: Sequence[str], error: Exception) -> GraftworkError:
    reason = redacted(f"{type(error).__name__}: {error}")
    return GraftworkError(
        f"The measurements could not be told to {' and '.join(names)} ({reason}). "
        "Set it up in the environment of runs, or leave it out of report_to.",
        param="report_to",
        code="tracker_failed",
    )


def redacted(text: str) -> str:
    """Remove the values of environment variables that look like secrets, and the user names and passwords in URLs."""
    for variable, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(variable):
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("//***@", text)
