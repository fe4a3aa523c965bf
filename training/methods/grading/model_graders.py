"""Grades by a model of the server, asked over HTTP as any other client asks. Its answers are greedy and held to a
shape, so that the same answer always gets the same grade. Nothing is logged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from graftwork.adapters.learning.graders.grader import LabelModel, ScoreModel
from graftwork.adapters.learning.graders.templates import NotThere
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkAPIError, GraftworkClientError, GraftworkConnectionError
from graftwork.training.methods.grading.failures import grader_failed

AT_ONCE: Final = 8
"""Number of concurrent requests."""

MAX_TOKENS: Final = 64
"""Of a grade. A number or a label takes less."""

PATIENCE_SECONDS: Final = 300.0
"""How long a server that restarts or is busy is waited for."""

PAUSE_SECONDS: Final = 2.0
TRANSIENT: Final = frozenset({429, 502, 503, 504})

Message = tuple[str, str]
"""The role and the text of a message."""


def grade(client: Client, grader: ScoreModel | LabelModel, told: Sequence[Mapping[str, Any]]) -> list[float]:
    """Grade answers.

    Args:
        client: the client of the server.
        grader: the grader.
        told: ``item`` and ``sample`` of each answer.

    Raises:
        GraftworkError: with code ``reward_failed`` if the model cannot be asked.
    """
    asked = [_messages(grader, values) for values in told]
    questions = list(dict.fromkeys(messages for messages in asked if messages is not None))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        grades = dict(zip(questions, pool.map(lambda messages: _ask(client, grader, messages), questions), strict=True))
    return [grader.range[0] if messages is None else grades[messages] for messages in asked]


def _messages(grader: ScoreModel | LabelModel, values: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """The messages about one answer; None if it lacks something that they name."""
    try:
        return tuple((message.role, message.content.render(values)) for message in grader.input)
    except NotThere:
        return None


def _ask(client: Client, grader: ScoreModel | LabelModel, messages: Sequence[Message]) -> float:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "store": False}
    if isinstance(grader, LabelModel):
        options["structured_outputs"] = {"choice": list(grader.labels)}
    else:
        options["response_format"] = _score_format(grader)
    text = _patiently(client, grader, [{"role": role, "content": text} for role, text in messages], options)
    if isinstance(grader, LabelModel):
        return float(text in grader.passing_labels)
    low, high = grader.range
    try:
        return min(max(float(json.loads(text)["result"]), low), high)
    except (ValueError, KeyError, TypeError):
        return low  # it was cut off before it was a number


def _score_format(grader: ScoreModel) -> dict[str, Any]:
    low, high = grader.range
    schema = {
        "type": "object",
        "properties": {"result": {"type": "number", "minimum": low, "maximum": high}},
        "required": ["result"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "score", "schema": schema, "strict": True}}


def _patiently(
    client: Client, grader: ScoreModel | LabelModel, messages: list[dict[str, str]], options: dict[str, Any]
) -> str:
    """The model's answer. A server that restarts or is busy is asked again for a while."""
    began = time.monotonic()
    while True:
        try:
            return client.chat(grader.model, messages, **options).choices[0].message.content or ""
        except GraftworkClientError as error:
            passing = isinstance(error, GraftworkConnectionError) or (
                isinstance(error, GraftworkAPIError) and error.status in TRANSIENT
            )
            if not passing or time.monotonic() - began > PATIENCE_SECONDS:
                raise grader_failed(grader.name, f"{grader.model} cannot be asked: {error}") from error
        time.sleep(PAUSE_SECONDS)
