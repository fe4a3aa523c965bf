"""Requests for structured output over a scripted engine: what reaches it, and what is told and logged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.server.generation import service
from tests.server.scripted_engine import GatewayHarness, connected_harness

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["x", None]}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with connected_harness(tmp_path) as harness:
        yield harness


async def test_every_choice_takes_the_grammar_along(harness: GatewayHarness) -> None:
    requests = harness.engine.asked
    assert (await harness.ask(response_format=FORMAT, n=2)).status_code == 200
    assert (await harness.ask(response_format=FORMAT, stream=True)).status_code == 200
    body = {"model": "intents", "prompt": ["a", "b"], "structured_outputs": {"choice": ["yes", "no"]}}
    assert (await harness.http.post("/v1/completions", json=body)).status_code == 200
    assert (await harness.ask(response_format={"type": "text"})).status_code == 200
    grammars = [request.sampling.grammar for request in requests]
    schema, choice = str(grammars[0]), str(grammars[3])
    assert grammars == [schema, schema, schema, choice, choice, None]
    assert schema.index('"b"') < schema.index('"a"'), "properties stay in their order"
    assert '"yes" | "no"' in choice.replace("\\", "")


async def test_what_an_answer_was_held_to_is_logged_as_it_was_asked(harness: GatewayHarness) -> None:
    await harness.ask(response_format=FORMAT)
    await harness.ask(structured_outputs={"regex": "a+"})
    logged = {name: value for row in harness.logged() for name, value in row.sampling.items()}
    assert logged["response_format"] == FORMAT
    assert logged["structured_outputs"] == {"regex": "a+"}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_followed_reaches_no_engine(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    requests = harness.engine.asked
    refused: list[dict[str, Any]] = [
        {"guided_json": {"uniqueItems": True}},
        {"response_format": FORMAT | {"json_schema": {"name": "a", "schema": {"not": {}}}}},
        {"structured_outputs": {"choice": ["x" * (1 << 18)]}},
    ]
    for fields in refused:
        answer = await harness.ask(stream=stream, **fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"].startswith(next(iter(fields)))
    monkeypatch.setattr(service, "MAX_GRAMMAR_BYTES", 500)
    answer = await harness.ask(response_format=FORMAT, n=8)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert not requests
