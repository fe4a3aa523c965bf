"""Metrics: how requests and feedback become the value of a unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from graftwork.adapters.experiments.metrics import AnsweredRequest, Metric, request_value, unit_metrics, unit_value
from graftwork.adapters.feedback.feedback import Feedback


def answer(id: str = "a", status: str = "ok", seconds: float = 1.0, tokens: int = 10) -> AnsweredRequest:
    return AnsweredRequest(interaction_id=id, status=status, total_ms=1000 * seconds, completion_tokens=tokens)


def said(id: str = "a", **more: Any) -> Feedback:
    now = datetime.now(UTC)
    of_the_row = {"id": 1, "at": now, "interaction_at": now, "adapter": None, "experiment": "e", "arm": "b"}
    return Feedback(interaction_id=id, probability=0.5, unit=None, key_id="local", **of_the_row, **more)


A, B, FAILED, LEFT = answer(), answer("b", seconds=4.0, tokens=30), answer("c", "error"), answer("d", "cancelled")

CASES: list[tuple[Metric, list[AnsweredRequest], list[Feedback], float | None]] = [
    (Metric.of("thumb"), [A], [], None),
    (Metric.of("thumb"), [A, B], [said(thumb="up"), said("b", thumb="down")], 0.5),
    (Metric.of("thumb"), [A], [said(thumb="down"), said(thumb="up")], 1.0),  # who changed their mind
    (Metric.of("thumb"), [A], [said(thumb="down"), said(thumb="up", choice=1)], 0.5),
    (Metric.of("score"), [A, B], [said(score=0.25), said("b", score=0.75), said("b", comment="hm")], 0.5),
    (Metric.of("correction_rate"), [A, B], [said(correction="x"), said(correction="y")], 0.5),
    (Metric.of("correction_rate"), [A, B], [said(thumb="up")], 0.0),
    (Metric.of("feedback_rate"), [A, B, FAILED, LEFT], [said(comment="hm")], 0.25),
    (Metric.of("error_rate"), [A, B, FAILED, LEFT], [], 0.25),
    (Metric.of("latency"), [A, B, FAILED], [], math.log(2.0)),
    (Metric.of("latency"), [FAILED], [], None),
    (Metric.of("latency", over=2.0), [A, B, FAILED], [], 0.5),
    (Metric.of("tokens"), [A, B, FAILED], [], 20.0),
    (Metric.of("tokens", over=20), [A, B], [], 0.5),
    (
        Metric.of("metadata.solved"),
        [A, B],
        [said(metadata={"solved": "true"}), said("b", metadata={"solved": "No"})],
        0.5,
    ),
    (Metric.of("metadata.minutes"), [A], [said(metadata={"minutes": "12.5"})], 12.5),
    (Metric.of("metadata.minutes"), [A], [said(metadata={"minutes": "many"}), said(metadata={"other": "1"})], None),
    (Metric.of("metadata.minutes"), [A], [said(metadata={"minutes": "inf"})], None),
]


@pytest.mark.parametrize(("metric", "answers", "judgements", "value"), CASES)
def test_what_a_unit_comes_to(
    metric: Metric, answers: list[AnsweredRequest], judgements: list[Feedback], value: float | None
) -> None:
    assert unit_value(metric, answers, judgements) == (None if value is None else pytest.approx(value))


def test_an_outcome_has_all_standard_metrics_and_those_that_are_judged() -> None:
    found = unit_metrics([Metric.of("latency", over=0.5)], [A], [said(thumb="up")])
    assert found["latency>0.5"] == 1.0
    assert found == {
        "thumb": 1.0,
        "score": None,
        "correction_rate": 0.0,
        "feedback_rate": 1.0,
        "error_rate": 0.0,
        "latency": 0.0,
        "tokens": 10.0,
        "latency>0.5": 1.0,
    }


def test_only_what_was_asked_for_may_count() -> None:
    rated = [said(thumb="up"), said("b", thumb="down", correction="x")]
    found = unit_metrics([], [A, B, FAILED], rated, asked={"b"})
    assert (found["thumb"], found["correction_rate"], found["feedback_rate"]) == (0.0, 1.0, 1.0)
    assert (found["error_rate"], found["tokens"]) == (pytest.approx(1 / 3), 20.0), "these are of all requests"
    silent = unit_metrics([], [A, B], rated[:1], asked={"b"})
    assert (silent["thumb"], silent["feedback_rate"]) == (None, 0.0)
    unasked = unit_metrics([], [A, B], rated, asked=())
    assert (unasked["thumb"], unasked["correction_rate"], unasked["feedback_rate"]) == (None, None, None)


def test_what_an_answer_shows_at_once() -> None:
    slow = Metric.of("latency", over=2.0)
    assert [request_value(slow, answer) for answer in (A, B, FAILED)] == [0.0, 1.0, None]
    assert [request_value(Metric.of("error_rate"), answer) for answer in (A, FAILED, LEFT)] == [0.0, 1.0, 0.0]


def test_values_are_parts_of_their_bounds() -> None:
    minutes = Metric.of("metadata.minutes", range=(10, 20), goal="down")
    assert [minutes.scaled(value) for value in (5, 10, 15, 40)] == [0.0, 0.0, 0.5, 1.0]
    assert (minutes.bounds, minutes.label, minutes.goal) == ((10, 20), "metadata.minutes", "down")
    assert Metric.of("latency").bounds is None
    assert Metric.of("metadata.minutes").bounds is None
    assert Metric.from_json(minutes.to_json()) == minutes
