"""OpenAI's method ``reinforcement``, as hyperparameters of GRPO and back.

A batch is counted in questions there and in answers here, and ``compute_multiplier`` is how many answers each question
gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from graftwork.adapters.errors import InvalidRequest

METHOD: Final = "reinforcement"

GENERATIONS: Final = 8
"""Answers to each question for a ``compute_multiplier`` of 1."""

LEAST_GENERATIONS, MOST_GENERATIONS = 2, 64
QUESTIONS: Final = 4
"""Questions in a batch where no size is given."""

MOST_QUESTIONS: Final = 512

AUTO: Final = "auto"

DETAILS: Final = ("grader", "response_format")
"""What stands beside the hyperparameters there, and among them here."""


def is_graded(hyperparameters: Mapping[str, Any]) -> bool:
    """Whether a job of these hyperparameters learns from a grader, so that its rows are questions for it."""
    return isinstance(hyperparameters.get("grader"), Mapping)


def to_grpo(details: Mapping[str, Any], param: str) -> dict[str, Any]:
    """Return the hyperparameters of GRPO for the details of a reinforcement job, which are checked further there.

    Args:
        details: ``grader``, ``response_format`` and ``hyperparameters``.
        param: Their path in the body, for messages.

    Raises:
        InvalidRequest: Something is missing, unknown or not supported; ``param`` names it.
    """
    if strange := sorted(details.keys() - {*DETAILS, "hyperparameters"}):
        place = f"{param}.{strange[0][:64]}"
        raise InvalidRequest(f"{place} is no field of it: leave it out", param=place, code="unknown_parameter")
    if details.get("grader") is None:
        raise InvalidRequest(
            f"{param}.grader is missing: it says how good an answer is",
            param=f"{param}.grader",
            code="missing_required_parameter",
        )
    place = f"{param}.hyperparameters"
    given = details.get("hyperparameters") or {}
    if not isinstance(given, dict):
        raise InvalidRequest(f"{place} must be an object", param=place, code="invalid_type")
    if named := [name for name in DETAILS if name in given]:
        raise InvalidRequest(f"{place}.{named[0]} belongs beside the hyperparameters", param=f"{place}.{named[0]}")
    given = {name: value for name, value in given.items() if value not in (None, AUTO)}
    _refuse(given, place, "reasoning_effort", "default", "answers have no reasoning of their own")
    _refuse(given, place, "eval_samples", 1, "a held-out question is answered once")
    found = {name: details[name] for name in DETAILS if details.get(name) is not None}
    found |= {name: value for name, value in given.items() if name not in ("reasoning_effort", "eval_samples")}
    multiplier = _number(given, place, "compute_multiplier", 0.25, MOST_GENERATIONS / GENERATIONS)
    questions = _number(given, place, "batch_size", 1, MOST_QUESTIONS, whole=True)
    generations = found.get("generations", GENERATIONS)
    if multiplier is not None:
        if "generations" in found:
            raise InvalidRequest(
                f"{place}.compute_multiplier is how many generations there are: give one of the two",
                param=f"{place}.compute_multiplier",
            )
        del found["compute_multiplier"]
        generations = found["generations"] = max(LEAST_GENERATIONS, round(GENERATIONS * multiplier))
    if isinstance(generations, int):  # else GRPO's own check says what is wrong with it
        found["batch_size"] = (questions or QUESTIONS) * generations
    return found


def from_grpo(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of a reinforcement job in OpenAI's shape: the reverse of `to_grpo`."""
    generations = hyperparameters.get("generations", GENERATIONS)
    size = hyperparameters.get("batch_size", AUTO)
    shown = {name: hyperparameters.get(name, AUTO) for name in ("n_epochs", "learning_rate_multiplier")}
    shown |= {
        "batch_size": size if size == AUTO else size // generations,
        "compute_multiplier": generations / GENERATIONS,
        "eval_interval": hyperparameters.get("eval_interval", AUTO),
        "eval_samples": 1,
        "reasoning_effort": "default",
    }
    others = {name: value for name, value in hyperparameters.items() if name not in (*DETAILS, *shown, "generations")}
    details = {name: hyperparameters[name] for name in DETAILS if name in hyperparameters}
    return {**details, "hyperparameters": {**shown, **others}}


def _refuse(given: Mapping[str, Any], place: str, name: str, usual: Any, why: str) -> None:
    if given.get(name, usual) != usual or isinstance(given.get(name), bool):
        param = f"{place}.{name}"
        raise InvalidRequest(
            f"{param} is not supported, since {why}: leave it out", param=param, code="unsupported_parameter"
        )


def _number(given: Mapping[str, Any], place: str, name: str, least: float, most: float, *, whole: bool = False) -> Any:
    value = given.get(name)
    if value is None:
        return None
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= most
    if not good:
        param = f"{place}.{name}"
        raise InvalidRequest(
            f'{param} must be "auto" or {"a whole number" if whole else "a number"} from {least:g} to {most:g}',
            param=param,
        )
    return value
