"""Metrics: how a unit's requests, and the feedback on their answers, become numbers.

A unit (a user, a session, or a single request) counts once, with its requests within its window. Its outcome has a
number for every metric, or ``None`` where there is nothing to measure, such as a thumb that was not given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Literal

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.feedback import Feedback

Goal = Literal["up", "down"]

GOALS: Final[dict[str, Goal]] = {
    "thumb": "up",
    "score": "up",
    "correction_rate": "down",
    "feedback_rate": "up",
    "error_rate": "down",
    "latency": "down",
    "tokens": "down",
}
"""The metrics that have names of their own, and whether more is better."""

METADATA_PREFIX: Final = "metadata."
"""It is followed by a key of feedback's metadata, whose values are the metric."""

RATED: Final = frozenset({"thumb", "score"})
"""Metrics, beside those from metadata, that a unit has only if there is feedback."""

_UNBOUNDED: Final = frozenset({"latency", "tokens"})
_TRUTH: Final = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is measured.

    Attributes:
        name: One of ``GOALS``, or ``metadata.KEY``.
        over: Turns ``latency`` or ``tokens`` into the share of answers above this many seconds or tokens.
        range: The lowest and highest value of a metadata key; others are clipped.
        goal: Whether more or less is better.
    """

    name: str
    over: float | None = None
    range: tuple[float, float] | None = None
    goal: Goal = "up"

    @classmethod
    def of(
        cls,
        name: str,
        *,
        over: float | None = None,
        range: tuple[float, float] | None = None,
        goal: Goal | None = None,
        param: str = "metric",
    ) -> Metric:
        """Check and build a metric.

        Raises:
            InvalidRequest: There is no such metric, or an option does not fit it; ``param`` names the field.
        """
        key = name.removeprefix(METADATA_PREFIX) if name.startswith(METADATA_PREFIX) else None
        if name not in GOALS and not key:
            known = ", ".join(GOALS)
            raise InvalidRequest(f"{name!r} is no metric: use {known}, or metadata.KEY", param=param)
        if over is not None and (name not in _UNBOUNDED or over <= 0):
            raise InvalidRequest("over is a number of seconds or tokens, for latency and tokens alone", param=param)
        if range is not None and (key is None or not range[0] < range[1]):
            raise InvalidRequest("range is [lowest, highest], for metrics from metadata alone", param=param)
        if goal is not None and name in GOALS and name != "tokens" and goal != GOALS[name]:
            raise InvalidRequest(f"of {name} {_more_or_less(GOALS[name])} is better: leave the goal out", param=param)
        return cls(name=name, over=over, range=range, goal=goal or GOALS.get(name, "up"))

    @property
    def label(self) -> str:
        """Its name in outcomes and readings: ``latency>2``."""
        return self.name if self.over is None else f"{self.name}>{self.over:g}"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and highest possible value; ``None`` if there are none."""
        if self.range is not None:
            return self.range
        unbounded = (self.name in _UNBOUNDED and self.over is None) or self.name.startswith(METADATA_PREFIX)
        return None if unbounded else (0.0, 1.0)

    @property
    def rated(self) -> bool:
        """Whether a unit has it only if there is feedback."""
        return self.name in RATED or self.name.startswith(METADATA_PREFIX)

    @property
    def is_per_request(self) -> bool:
        """Whether a single request already decides it."""
        return self.name in ("error_rate", "latency", "tokens")

    def scaled(self, value: float) -> float:
        """A value scaled from the bounds to 0 … 1, and clipped."""
        low, high = self.bounds or (0.0, 1.0)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def to_json(self) -> dict[str, Any]:
        """The fields, as they are stored."""
        return {
            "name": self.name,
            "over": self.over,
            "range": list(self.range) if self.range else None,
            "goal": self.goal,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Metric:
        """The inverse of ``to_json``."""
        bounds = stored["range"]
        return cls(**{**stored, "range": None if bounds is None else (bounds[0], bounds[1])})


#: Metrics that every unit's outcome has, whatever the plan says.
STANDARD_METRICS: Final = tuple(Metric(name=name, goal=goal) for name, goal in GOALS.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredRequest:
    """One request that an arm answered, or failed to.

    Attributes:
        interaction_id: Its answer's id.
        status: ``ok``, ``error`` or ``cancelled``.
        total_ms: Its latency in milliseconds.
        completion_tokens: Generated tokens.
    """

    interaction_id: str
    status: str
    total_ms: float
    completion_tokens: int

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.status == "error"


def request_value(metric: Metric, answer: AnsweredRequest) -> float | None:
    """The value of a per-request metric with bounds, of one request; ``None`` if it has none."""
    if metric.name == "error_rate":
        return float(answer.failed)
    if answer.status != "ok" or metric.over is None:
        return None
    return float(_amount(metric, answer) > metric.over)


def unit_value(metric: Metric, answers: Sequence[AnsweredRequest], feedback: Iterable[Feedback]) -> float | None:
    """A metric over a unit's requests and all feedback on them, in order; ``None`` if there is nothing to measure.

    ``latency`` without bounds is the mean of logarithms of seconds.
    """
    if metric.is_per_request:
        if metric.bounds is not None:
            return _mean([value for answer in answers if (value := request_value(metric, answer)) is not None])
        amounts = [_amount(metric, answer) for answer in answers if answer.status == "ok"]
        return _mean([math.log(max(amount, 1e-3)) for amount in amounts] if metric.name == "latency" else amounts)
    feedback = list(feedback)
    if metric.name in ("correction_rate", "feedback_rate"):
        about = {f.interaction_id for f in feedback if metric.name == "feedback_rate" or f.correction is not None}
        return _mean([float(answer.interaction_id in about) for answer in answers])
    # Feedback may be corrected by sending it again: on the same choice, the last counts.
    latest: dict[tuple[str, int], float] = {}
    for judgement in feedback:
        if (value := _judged(metric, judgement)) is not None:
            latest[judgement.interaction_id, judgement.choice] = value
    return _mean(list(latest.values()))


def unit_metrics(
    metrics: Iterable[Metric],
    answers: Sequence[AnsweredRequest],
    feedback: Sequence[Feedback],
    *,
    asked: Collection[str] | None = None,
) -> dict[str, float | None]:
    """Every one of these metrics and of the standard ones, by label.

    Args:
        metrics: Beside the standard ones.
        answers: The unit's requests.
        feedback: All feedback on them, in order.
        asked: The ids of the only answers that count for metrics about feedback; ``None``: all of them. Without any of
            these a unit has no such metric.
    """
    wanted = {metric.label: metric for metric in (*STANDARD_METRICS, *metrics)}
    judged = [answer for answer in answers if asked is None or answer.interaction_id in asked]
    said = [judgement for judgement in feedback if asked is None or judgement.interaction_id in asked]
    return {
        label: unit_value(metric, answers if metric.is_per_request else judged, said)
        for label, metric in wanted.items()
    }


def _amount(metric: Metric, answer: AnsweredRequest) -> float:
    return answer.total_ms / 1000 if metric.name == "latency" else float(answer.completion_tokens)


def _judged(metric: Metric, judgement: Feedback) -> float | None:
    if metric.name == "thumb":
        return None if judgement.thumb is None else float(judgement.thumb == "up")
    if metric.name == "score":
        return judgement.score
    text = (judgement.metadata or {}).get(metric.name.removeprefix(METADATA_PREFIX))
    if text is None:
        return None
    try:
        value = _TRUTH[text.lower()] if text.lower() in _TRUTH else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _more_or_less(goal: Goal) -> str:
    return "more" if goal == "up" else "less"
