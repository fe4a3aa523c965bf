"""Validates a job's hyperparameters by name and bounds, as the table of knobs has them, before the job is queued.

Whether they suit each other is checked when the run is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.learning import reward_plugins, teachers, trackers
from graftwork.adapters.learning.job import Method
from graftwork.adapters.learning.knobs import HYPERPARAMETERS, Hyperparameter, Knob
from graftwork.adapters.learning.methods import SUPERVISED

AUTO: Final = "auto"

AUGMENTABLE_METHODS: Final = SUPERVISED | {AUTO}
"""Methods that can train on other wordings of a question; with ``auto`` the run decides."""

MAX_LAYERS: Final = 1000


def validate_hyperparameters(given: Any, place: str, *, method: Method, roots: Sequence[Path]) -> dict[str, Any]:
    """Validate the hyperparameters of a job.

    Args:
        given: What was sent, of whatever type.
        place: Its path in the body, for messages.
        method: Of the job.
        roots: Folders below which a teacher may be.

    Returns:
        The same, with single names as lists.

    Raises:
        InvalidRequest: For the first that is wrong; ``param`` names it.
    """
    if not isinstance(given, dict):
        raise InvalidRequest(f"{place} must be an object", param=place, code="invalid_type")
    for name, knob in HYPERPARAMETERS.items():
        if knob.method == method and given.get(name) in (None, [], AUTO):
            raise InvalidRequest(f"{method} needs the hyperparameter {name}: {knob.needs}", param=f"{place}.{name}")
    if given.get("augment", AUTO) not in (AUTO, 0) and method not in AUGMENTABLE_METHODS:
        param = f"{place}.augment"
        raise InvalidRequest(
            f"{param} is for supervised methods alone, and this is {method}: leave it out", param=param
        )
    return {
        name: _validate(name, value, f"{place}.{name[:64]}", method=method, roots=roots)
        for name, value in given.items()
    }


def _validate(name: str, value: Any, param: str, *, method: Method, roots: Sequence[Path]) -> Any:
    knob = HYPERPARAMETERS.get(name)
    if knob is None or knob.job is None:
        raise InvalidRequest(
            f"{names.quoted(name)} is no hyperparameter: choose among {', '.join(HYPERPARAMETERS)}",
            param=param,
            code="unknown_parameter",
        )
    if knob.method is not None and knob.method != method:
        raise InvalidRequest(f"{param} belongs to the method {knob.method}: leave it out", param=param)
    match knob.kind:
        case "names":
            return _names(knob, value, param)
        case "folder":
            if not isinstance(value, str):
                raise InvalidRequest(f"{param} must be a folder's path", param=param, code="invalid_type")
            teachers.check(value, roots, param=param)
        case "numbers":
            return _layers(value, param)
        case "choice":
            _check_choice(knob.job, value, param)
        case _:
            _check_number(knob.job, value, param, whole=knob.job.whole or knob.kind == "integer")
    return value


def _check_choice(job: Hyperparameter, value: Any, param: str) -> None:
    if value != AUTO and value not in job.choices:
        raise InvalidRequest(
            f'{param} must be "auto" or one of {", ".join(job.choices)}, got {names.quoted(str(value))}', param=param
        )


def _check_number(job: Hyperparameter, value: Any, param: str, *, whole: bool) -> None:
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if value != AUTO and not (number and job.least <= value <= job.most):
        raise InvalidRequest(
            f'{param} must be "auto" or {"a whole number" if whole else "a number"} from {job.least:g} to '
            f"{job.most:g}, got {names.quoted(str(value))}",
            param=param,
        )


def _names(knob: Knob, value: Any, param: str) -> list[str]:
    """Names of installed plugins, one or several, as a list."""
    if knob.name == "rewards":
        found = _listed(value, param, "reward function")
        reward_plugins.check(found, param=param)
    else:
        found = _listed(value, param, "tracker")
        trackers.check(found, param=param)
    return found


def _layers(value: Any, param: str) -> Any:
    if value == AUTO:
        return value
    numbers = value if isinstance(value, list) else []
    whole = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < MAX_LAYERS for each in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise InvalidRequest(
            f'{param} must be "auto" or a list of different layers\' numbers, from 0, such as [20, 21, 22]',
            param=param,
            code="invalid_type",
        )
    return numbers


def _listed(value: Any, param: str, noun: str) -> list[str]:
    """One name or several, as a list; ``auto`` is none."""
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise InvalidRequest(f"{param} must be a {noun}'s name, or a list of them", param=param, code="invalid_type")
    return [] if wanted == [AUTO] else wanted
