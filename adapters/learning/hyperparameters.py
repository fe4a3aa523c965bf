"""What a job's hyperparameters may be: by name, and within which bounds. Refused by name, before anything is queued.

Which of them suit each other is decided where the run is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.learning import reward_plugins, teachers, trackers
from graftwork.adapters.learning.job import Method

AUTO: Final = "auto"

NUMBER_BOUNDS: Final[Mapping[str, tuple[type, float, float]]] = {
    "n_epochs": (int, 1, 1000),
    "batch_size": (int, 1, 4096),
    "learning_rate_multiplier": (float, 1e-6, 1e6),
    "learning_rate": (float, 1e-12, 1.0),
    "beta": (float, 0.0, 100.0),
    "rank": (int, 1, 256),
    "alpha": (int, 1, 4096),
    "max_length": (int, 2, 1 << 20),
    "warmup": (float, 0.0, 0.99),
    "weight_decay": (float, 0.0, 10.0),
    "max_grad_norm": (float, 1e-6, 1e6),
    "dropout": (float, 0.0, 0.99),
    "anchor": (float, 0.0, 100.0),
    "sft_share": (float, 0.0, 100.0),
    "replay": (float, 0.0, 0.99),
    "forgetting": (float, 0.0, 100.0),
    "validation": (float, 0.0, 0.9),
    "micro_batch_tokens": (int, 1, 1 << 20),
    "checkpoint_steps": (int, 1, 1_000_000),
    "search": (int, 2, 100),
    "augment": (int, 0, 8),
    "generations": (int, 2, 64),
    "answer_tokens": (int, 1, 1 << 16),
}
"""By name: the type, the least and the largest value. Each may also be ``"auto"``."""

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "balance": ("none", "sqrt", "full"),
    "curriculum": ("none", "short_first", "easy_first"),
    "variant": ("lora", "rslora", "dora"),
    "quantization": ("none", "nf4"),
    "precision": ("bfloat16", "float32"),
    "reference": ("parent", "base"),
}
"""Hyperparameters that are words: by name, which ones. Each may also be ``"auto"``."""

AUGMENTABLE_METHODS: Final = frozenset({"sft", "weighted_sft", "auto"})
"""Methods that learn from other wordings of a question; with auto the run looks."""

LAYERS: Final = "layers"
"""Numbers of the layers that get an adapter, from 0."""

MAX_LAYERS: Final = 1000

REPORT_TO: Final = "report_to"
"""The trackers that the measurements are reported to, one or a list."""

TEACHER: Final = "teacher"
"""The folder of the larger model that a distillation learns from."""

REWARDS: Final = "rewards"
"""The reward functions that grpo learns from, one or a list."""

REQUIRED_BY_METHOD: Final[Mapping[Method, str]] = {"distillation": TEACHER, "grpo": REWARDS}
"""What a method cannot do without, and no other has."""

_WHAT: Final = {
    TEACHER: "the folder of the larger model to learn from",
    REWARDS: "the reward functions to learn from, such as exact",
}


def validate_hyperparameters(given: Any, place: str, *, method: Method, roots: Sequence[Path]) -> dict[str, Any]:
    """Those that a job of the method may have, each in its bounds; ``place`` is where they stood, ``roots`` where a
    teacher may be."""
    if not isinstance(given, dict):
        raise InvalidRequest(f"{place} must be an object", param=place, code="invalid_type")
    if (needed := REQUIRED_BY_METHOD.get(method)) is not None and given.get(needed) in (None, [], AUTO):
        raise InvalidRequest(f"{method} needs the hyperparameter {needed}: {_WHAT[needed]}", param=f"{place}.{needed}")
    checked = dict(given)
    if given.get("augment", AUTO) not in (AUTO, 0) and method not in AUGMENTABLE_METHODS:
        param = f"{place}.augment"
        raise InvalidRequest(
            f"{param} is for supervised methods alone, and this is {method}: leave it out", param=param
        )
    for name, value in given.items():
        param = f"{place}.{name[:64]}"
        if name in _WHAT and name != needed:
            whose = next(whose for whose, what in REQUIRED_BY_METHOD.items() if what == name)
            raise InvalidRequest(f"{param} belongs to the method {whose}: leave it out", param=param)
        if name == REPORT_TO:
            checked[name] = _listed(value, param, "tracker")
            trackers.check(checked[name], param=param)
            continue
        if name == REWARDS:
            checked[name] = _listed(value, param, "reward function")
            reward_plugins.check(checked[name], param=param)
            continue
        if name == TEACHER:
            if not isinstance(value, str):
                raise InvalidRequest(f"{param} must be a folder's path", param=param, code="invalid_type")
            teachers.check(value, roots, param=param)
            continue
        if name == LAYERS:
            checked[name] = _layers(value, param)
            continue
        if name in CHOICES:
            if value != AUTO and value not in CHOICES[name]:
                raise InvalidRequest(
                    f'{param} must be "auto" or one of {", ".join(CHOICES[name])}, got {names.quoted(str(value))}',
                    param=param,
                )
            continue
        if name not in NUMBER_BOUNDS:
            there = ", ".join((*NUMBER_BOUNDS, *CHOICES, LAYERS, REPORT_TO, *_WHAT))
            raise InvalidRequest(
                f"{names.quoted(name)} is no hyperparameter: choose among {there}",
                param=param,
                code="unknown_parameter",
            )
        kind, least, most = NUMBER_BOUNDS[name]
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if value != AUTO and not (number and least <= value <= most):
            raise InvalidRequest(
                f'{param} must be "auto" or {"a whole number" if kind is int else "a number"} from {least:g} to '
                f"{most:g}, got {names.quoted(str(value))}",
                param=param,
            )
    return checked


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
    """One name or several, as a list; of "auto", none."""
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise InvalidRequest(f"{param} must be a {noun}'s name, or a list of them", param=param, code="invalid_type")
    return [] if wanted == [AUTO] else wanted
