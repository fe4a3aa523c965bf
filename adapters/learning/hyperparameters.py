"""Validates a job's hyperparameters by name and bounds, as the table of knobs has them, before the job is queued.

Whether they suit each other is checked when the run is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.learning import teachers, trackers
from graftwork.adapters.learning.graders import reward_plugins
from graftwork.adapters.learning.graders.reading import GraderRules, checked_grader
from graftwork.adapters.learning.graders.response_format import ResponseFormat
from graftwork.adapters.learning.job import Method
from graftwork.adapters.learning.knobs import HYPERPARAMETERS, Hyperparameter, Knob
from graftwork.adapters.learning.methods import SUPERVISED

AUTO: Final = "auto"

AUGMENTABLE_METHODS: Final = SUPERVISED | {AUTO}
"""Methods that can train on other wordings of a question; with ``auto`` the run decides."""

MAX_LAYERS: Final = 1000


def validate_hyperparameters(
    given: Any,
    place: str,
    *,
    method: Method,
    roots: Sequence[Path],
    rules: GraderRules = GraderRules(),
    elsewhere: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Validate the hyperparameters of a job.

    Args:
        given: What was sent, of whatever type.
        place: Its path in the body, for messages.
        method: Of the job.
        roots: Folders below which a teacher may be.
        rules: What graders may use.
        elsewhere: The paths of those that stand elsewhere in the body, by name.

    Returns:
        The same, with single names as lists, and with the versions of the models that grade.

    Raises:
        InvalidRequest: For the first that is wrong; ``param`` names it.
    """
    if not isinstance(given, dict):
        raise InvalidRequest(f"{place} must be an object", param=place, code="invalid_type")
    for knob in HYPERPARAMETERS.values():
        if knob.method == method:
            _check_there(knob, given, place)
    if given.get("augment", AUTO) not in (AUTO, 0) and method not in AUGMENTABLE_METHODS:
        param = f"{place}.augment"
        raise InvalidRequest(
            f"{param} is for supervised methods alone, and this is {method}: leave it out", param=param
        )
    places = elsewhere or {}
    return {
        name: _validate(name, value, places.get(name, f"{place}.{name[:64]}"), method=method, roots=roots, rules=rules)
        for name, value in given.items()
    }


def _check_there(knob: Knob, given: Mapping[str, Any], place: str) -> None:
    """Check that a knob that its method requires is given, or the one instead of it."""
    names_there = [name for name in (knob.job_name, knob.instead) if name and given.get(name) not in (None, [], AUTO)]
    if not names_there:
        raise InvalidRequest(
            f"{knob.method} needs the hyperparameter {knob.job_name}: {knob.needs}", param=f"{place}.{knob.job_name}"
        )
    if len(names_there) > 1:
        raise InvalidRequest(
            f"{' and '.join(names_there)} are two ways to say what is good: give one of them",
            param=f"{place}.{names_there[-1]}",
        )


def _validate(name: str, value: Any, param: str, *, method: Method, roots: Sequence[Path], rules: GraderRules) -> Any:
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
        case "grader":
            return value if value == AUTO else checked_grader(value, param, rules)
        case "response_format":
            if value != AUTO:
                ResponseFormat.read(value, param)
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
