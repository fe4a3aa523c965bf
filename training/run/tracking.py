"""How a run tells trackers: which run of theirs it is, what they may do of their own accord, and that it ends.

transformers' callbacks do the telling.
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


_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_IN_ADDRESS: Final = re.compile(r"//[^/@\s]+@")
_THEIR_CALLBACKS: Final = "transformers.integrations"


@contextlib.contextmanager
def tracked(names: Sequence[str]) -> Iterator[None]:
    """A block in which these trackers are told. Whatever ends it ends their run as well: what follows in this process,
    another trial or another attempt, is another run of theirs.

    Raises GraftworkError with code ``tracker_failed`` for what they raise, without secrets of the environment.
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
        if not _is_theirs(error):
            raise
        # Without its cause: the libraries write addresses and keys into their messages.
        raise _failed(names, error) from None
    finally:
        for name in names:
            with contextlib.suppress(RuntimeError):  # trackio's, when no run of its is under way
                getattr(importlib.import_module(name), _ENDS[name])()


def _is_theirs(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__")).startswith(_THEIR_CALLBACKS) for frame, _ in frames)


def _failed(names: Sequence[str], error: Exception) -> GraftworkError:
    reason = redacted(f"{type(error).__name__}: {error}")
    return GraftworkError(
        f"The measurements could not be told to {' and '.join(names)} ({reason}). "
        "Set it up in the environment of runs, or leave it out of report_to.",
        param="report_to",
        code="tracker_failed",
    )


def redacted(text: str) -> str:
    """The text without the environment's secrets, and without names and passwords in addresses."""
    for variable, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(variable):
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("//***@", text)
