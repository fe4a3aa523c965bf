"""Graders as JSON, in the shapes of OpenAI's: read strictly, with the field that is wrong as ``param``.

Beyond OpenAI's there is the type ``reward``, a reward function of an installed package, and every grader may have a
``pass_threshold``, as graders of OpenAI's evaluations do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.learning.graders import reward_plugins
from graftwork.adapters.learning.graders.formulas import FUNCTIONS, Formula
from graftwork.adapters.learning.graders.grader import (
    UNIT,
    Grader,
    GraderMessage,
    LabelModel,
    Multi,
    Operation,
    Python,
    Range,
    Reward,
    ScoreModel,
    SimilarityMetric,
    SimpleGrader,
    StringCheck,
    TextSimilarity,
    parts_of,
)
from graftwork.adapters.learning.graders.templates import Template
from graftwork.adapters.names import quoted

MAX_GRADERS: Final = 32
MAX_MESSAGES: Final = 64
MAX_LABELS: Final = 256
MAX_SOURCE_CHARS: Final = 256 << 10

UNSUPPORTED_METRICS: Final[Mapping[str, str]] = {
    "cosine": "it needs a model of embeddings that was trained for it",
    "fuzzy_match": "its library is not part of this server",
    "meteor": "it needs a dictionary that is not part of this server",
}
"""Metrics of OpenAI's that are refused, and why."""

_NAME: Final = re.compile(r"[A-Za-z_]\w{0,63}")


@dataclass(frozen=True, kw_only=True)
class GraderRules:
    """What the graders of a server may use.

    Attributes:
        allows_python: Whether they may be programs.
        resolve_model: From a model's name in requests to the id that stays the same: the base's, or a version's.
            Raises NotFound or InvalidRequest.
    """

    allows_python: bool = False
    resolve_model: Callable[[str], str] = lambda model: model


def checked_grader(given: Any, param: str, rules: GraderRules) -> dict[str, Any]:
    """Check a grader that was sent.

    Args:
        given: What was sent, of whatever type.
        param: Its path in the body, for messages.
        rules: What it may use.

    Returns:
        The same, with the versions that its models are at the moment: an alias may move while a job runs.

    Raises:
        InvalidRequest: Something of it is wrong; ``param`` names it.
    """
    grader = read_grader(given, param)
    pinned = dict(given)
    if isinstance(grader, Multi):
        graders = _several(given["graders"])
        pinned["graders"] = {
            key: _pinned(wire, part, f"{param}.graders.{key}", rules)
            for (key, wire), part in zip(graders.items(), parts_of(grader).values(), strict=True)
        }
        return pinned
    return _pinned(pinned, grader, param, rules)


def read_grader(given: Any, param: str = "grader") -> Grader:
    """Read a grader.

    Raises:
        InvalidRequest: It is none; ``param`` names what is wrong.
    """
    fields = _Fields(given, param)
    kind = fields.choice("type", (*_READERS, "multi"))
    if kind != "multi":
        grader = _READERS[kind](fields)
        fields.end()
        return grader
    graders = _several(fields.mapping("graders"))
    if not 1 <= len(graders) <= MAX_GRADERS:
        raise InvalidRequest(f"{param}.graders must have 1 to {MAX_GRADERS} graders", param=f"{param}.graders")
    parts: dict[str, SimpleGrader] = {}
    for key, wire in graders.items():
        place = f"{param}.graders.{key[:64]}"
        if _NAME.fullmatch(key) is None or key in FUNCTIONS:
            raise InvalidRequest(
                f"{quoted(key)} cannot stand in a formula: use letters, digits and underscores, and no function's name",
                param=place,
            )
        if isinstance(wire, dict) and wire.get("type") == "multi":
            raise InvalidRequest(f"{place} is made of several graders, too: put them all into one", param=place)
        part = read_grader(wire, place)
        assert not isinstance(part, Multi)
        parts[key] = part
    formula = Formula.parse(fields.text("calculate_output"), f"{param}.calculate_output")
    if strange := sorted(formula.names - parts.keys()):
        raise InvalidRequest(
            f"{quoted(strange[0])} is none of the graders: {', '.join(parts)}", param=f"{param}.calculate_output"
        )
    multi = Multi(
        name=fields.text("name"), pass_threshold=fields.number("pass_threshold", 0.5), graders=parts, formula=formula
    )
    fields.end()
    return multi


def _several(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Graders by name. OpenAI's client is typed for a single one there, which then goes by its own name."""
    return {str(given.get("name")): given} if isinstance(given.get("type"), str) else given


def _pinned(wire: Mapping[str, Any], grader: SimpleGrader, param: str, rules: GraderRules) -> dict[str, Any]:
    """The JSON of a grader with its model's version; what is not allowed is refused."""
    if isinstance(grader, Python) and not rules.allows_python:
        raise InvalidRequest(
            "graders of the type python are programs, which this server does not run: it would have to be started "
            "with --allow-python-graders. Use string_check, text_similarity, score_model or multi",
            param=f"{param}.type",
            code="python_graders_not_allowed",
        )
    if isinstance(grader, Reward):
        reward_plugins.check([grader.function], param=f"{param}.function")
    if not isinstance(grader, ScoreModel | LabelModel):
        return dict(wire)
    try:
        return {**wire, "model": rules.resolve_model(grader.model)}
    except (NotFound, InvalidRequest) as error:
        raise InvalidRequest(error.message, param=f"{param}.model", code=error.code) from None


# --- each type --------------------------------------------------------------------------------------------------------


def _string_check(fields: _Fields) -> StringCheck:
    return StringCheck(
        name=fields.text("name"),
        pass_threshold=fields.number("pass_threshold", 1.0),
        operation=fields.choice("operation", get_args(Operation)),
        input=fields.template("input"),
        reference=fields.template("reference"),
    )


def _text_similarity(fields: _Fields) -> TextSimilarity:
    place = f"{fields.param}.evaluation_metric"
    metric = fields.choice("evaluation_metric", (*get_args(SimilarityMetric), *UNSUPPORTED_METRICS))
    if metric in UNSUPPORTED_METRICS:
        raise InvalidRequest(
            f"{place}: {metric} is not supported, as {UNSUPPORTED_METRICS[metric]}: choose among "
            f"{', '.join(get_args(SimilarityMetric))}",
            param=place,
            code="unsupported_parameter",
        )
    return TextSimilarity(
        name=fields.text("name"),
        pass_threshold=fields.number("pass_threshold", 0.5),
        metric=metric,
        input=fields.template("input"),
        reference=fields.template("reference"),
    )


def _score_model(fields: _Fields) -> ScoreModel:
    _check_sampling(fields.mapping("sampling_params", {}), f"{fields.param}.sampling_params")
    low, high = limits = fields.range("range")
    return ScoreModel(
        name=fields.text("name"),
        range=limits,
        pass_threshold=fields.number("pass_threshold", (low + high) / 2),
        model=fields.text("model"),
        input=fields.messages("input"),
    )


def _label_model(fields: _Fields) -> LabelModel:
    _check_sampling(fields.mapping("sampling_params", {}), f"{fields.param}.sampling_params")
    labels, passing = fields.texts("labels"), fields.texts("passing_labels")
    if strange := [label for label in passing if label not in labels]:
        raise InvalidRequest(
            f"{quoted(strange[0])} is none of the labels: {', '.join(labels[:20])}",
            param=f"{fields.param}.passing_labels",
        )
    return LabelModel(
        name=fields.text("name"),
        pass_threshold=fields.number("pass_threshold", 1.0),
        model=fields.text("model"),
        input=fields.messages("input"),
        labels=labels,
        passing_labels=passing,
    )


def _python(fields: _Fields) -> Python:
    source = fields.text("source")
    place = f"{fields.param}.source"
    if len(source) > MAX_SOURCE_CHARS:
        raise InvalidRequest(f"{place} has more than {MAX_SOURCE_CHARS:,} characters", param=place)
    try:
        compile(source, "grader.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidRequest(f"{place} is no Python program: {error}", param=place) from None
    fields.text("image_tag", "")  # of OpenAI's sandbox: here it is the server's own Python
    return Python(name=fields.text("name"), pass_threshold=fields.number("pass_threshold", 0.5), source=source)


def _reward(fields: _Fields) -> Reward:
    return Reward(
        name=fields.text("name"), pass_threshold=fields.number("pass_threshold", 0.5), function=fields.text("function")
    )


def _check_sampling(given: Mapping[str, Any], param: str) -> None:
    """A model grades greedily, so that a run that goes on after a kill gets the same grades."""
    fields = _Fields(given, param)
    for name in ("seed", "top_p", "max_completions_tokens"):
        fields.number(name, None)  # of a greedy answer of a fixed shape they say nothing
    if fields.number("temperature", None):
        raise InvalidRequest(
            f"{param}.temperature must be 0, or left out: a model here grades the same answer always alike",
            param=f"{param}.temperature",
            code="unsupported_parameter",
        )
    if (
        fields.choice("reasoning_effort", ("none", "minimal", "low", "medium", "high", "xhigh", "max"), "none")
        != "none"
    ):
        raise InvalidRequest(
            f"{param}.reasoning_effort is not supported: leave it out",
            param=f"{param}.reasoning_effort",
            code="unsupported_parameter",
        )
    fields.end()


_READERS: Final[Mapping[str, Callable[[_Fields], SimpleGrader]]] = {
    "string_check": _string_check,
    "text_similarity": _text_similarity,
    "score_model": _score_model,
    "label_model": _label_model,
    "python": _python,
    "reward": _reward,
}


# --- fields -----------------------------------------------------------------------------------------------------------

_REQUIRED: Final[Any] = object()
_TEXT_PARTS: Final = ("input_text", "output_text")


class _Fields:
    """The fields of one object, each read once.

    Args:
        given: The object, of whatever type.
        param: Its path in the body.

    Raises:
        InvalidRequest: It is no object.
    """

    def __init__(self, given: Any, param: str) -> None:
        if not isinstance(given, dict):
            raise InvalidRequest(f"{param} must be an object", param=param, code="invalid_type")
        self.param = param
        self._given = given
        self._read: set[str] = set()

    def end(self) -> None:
        """Refuse what was not read."""
        if strange := sorted(map(str, self._given.keys() - self._read)):
            place = f"{self.param}.{strange[0][:64]}"
            raise InvalidRequest(f"{place} is no field of it: leave it out", param=place, code="unknown_parameter")

    def _value(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._given.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            place = f"{self.param}.{name}"
            raise InvalidRequest(f"{place} is missing", param=place, code="missing_required_parameter")
        return default

    def _wrong(self, name: str, expected: str) -> InvalidRequest:
        place = f"{self.param}.{name}"
        return InvalidRequest(f"{place} must be {expected}", param=place, code="invalid_type")

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        value = self._value(name, default)
        if not isinstance(value, str) or (not value and default is _REQUIRED):
            raise self._wrong(name, "a text")
        return value

    def template(self, name: str) -> Template:
        value = self._value(name, _REQUIRED)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return Template.parse(value, f"{self.param}.{name}")

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._value(name, _REQUIRED)
        good = isinstance(value, list) and 1 <= len(value) <= MAX_LABELS
        if not good or not all(isinstance(text, str) and text for text in value) or len(set(value)) < len(value):
            raise self._wrong(name, f"a list of 1 to {MAX_LABELS} different texts")
        return tuple(value)

    def choice(self, name: str, choices: Sequence[str], default: Any = _REQUIRED) -> Any:
        value = self._value(name, default)
        if value not in choices:
            place = f"{self.param}.{name}"
            raise InvalidRequest(f"{place} must be one of {', '.join(choices)}, got {quoted(str(value))}", param=place)
        return value

    def mapping(self, name: str, default: Any = _REQUIRED) -> Mapping[str, Any]:
        value = self._value(name, default)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def number(self, name: str, default: float | None) -> Any:
        value = self._value(name, default)
        if value is not default and not _is_number(value):
            raise self._wrong(name, "a number")
        return value

    def range(self, name: str) -> Range:
        value = self._value(name, list(UNIT))
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)) or value[0] >= value[1]:
            raise self._wrong(name, "two numbers, the worst score and the best")
        return float(value[0]), float(value[1])

    def messages(self, name: str) -> tuple[GraderMessage, ...]:
        value = self._value(name, _REQUIRED)
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
            raise self._wrong(name, f"a list of 1 to {MAX_MESSAGES} messages")
        return tuple(_message(each, f"{self.param}.{name}[{index}]") for index, each in enumerate(value))


def _message(given: Any, param: str) -> GraderMessage:
    fields = _Fields(given, param)
    fields.choice("type", ("message",), "message")
    role = fields.choice("role", ("user", "assistant", "system", "developer"))
    content = given.get("content")
    fields._read.add("content")
    fields.end()
    return GraderMessage(role=role, content=Template.parse(_content(content, f"{param}.content"), f"{param}.content"))


def _content(given: Any, param: str) -> str:
    parts = given if isinstance(given, list) else [given]
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("type") not in _TEXT_PARTS:
            raise InvalidRequest(
                f"{param} has a part of the type {quoted(str(part.get('type')))}: graders read texts alone",
                param=param,
                code="unsupported_parameter",
            )
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise InvalidRequest(f"{param} must be a text, or a list of texts", param=param, code="invalid_type")
        texts.append(text)
    return "".join(texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
