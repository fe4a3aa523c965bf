"""Anthropic's ``/v1/messages`` over a scripted engine: bodies, events and errors in Anthropic's shapes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.server.scripted_engine import GatewayHarness, connected_harness

MESSAGES = "/v1/messages"
ASK = {"model": "intents", "max_tokens": 60, "messages": [{"role": "user", "content": "Hey"}]}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TOOLS = [{"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with connected_harness(tmp_path, max_length=256) as harness:
        yield harness


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The names and the data of a stream's events."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


async def test_a_message(harness: GatewayHarness) -> None:
    system = [
        {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "brief."},
    ]
    asked = {**ASK, "system": system, "metadata": {"user_id": "ann"}, "temperature": 0.5, "top_k": 5}
    answer = await harness.http.post(MESSAGES, json=asked)
    message = answer.json()
    assert answer.headers["x-graftwork-adapter"] == "intents@1"
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "intents")
    assert message["content"] == [{"type": "text", "text": "Hey"}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 3
    assert message["usage"]["output_tokens"] == 3
    assert harness.records.ids.read(message["id"]).kind == "msg"
    (row,) = harness.logged()
    assert row.prompt["messages"][0] == {"role": "system", "content": "Be\nbrief."}
    assert (row.user, row.sampling["temperature"], row.sampling["top_k"]) == ("ann", 0.5, 5)
    told = {"interaction_id": message["id"], "thumb": "up"}
    assert (await harness.http.post("/v1/feedback", json=told)).status_code == 201


async def test_its_events(harness: GatewayHarness) -> None:
    streamed = events((await harness.http.post(MESSAGES, json={**ASK, "stream": True})).text)
    assert all(name == data["type"] for name, data in streamed)
    assert [name for name, _ in streamed] == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * 3,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert streamed[0][1]["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}
    assert streamed[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert streamed[-2][1]["usage"]["output_tokens"] == 3


async def test_tools_are_used(harness: GatewayHarness) -> None:
    asked = {**ASK, "tools": TOOLS, "messages": [{"role": "user", "content": f"So {CALL}"}]}
    message = (await harness.http.post(MESSAGES, json=asked)).json()
    text, use = message["content"]
    assert (text["text"], use["type"], use["name"], use["input"]) == ("So", "tool_use", "f", {"a": 1})
    assert message["stop_reason"] == "tool_use"
    streamed = events((await harness.http.post(MESSAGES, json={**asked, "stream": True})).text)
    parts = [data["delta"]["partial_json"] for name, data in streamed if "partial_json" in data.get("delta", {})]
    assert json.loads("".join(parts)) == {"a": 1}
    starts = [data["content_block"]["type"] for name, data in streamed if name == "content_block_start"]
    assert starts == ["text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "done"}]}
    history = [
        *asked["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "Go on"}]},
    ]
    again = await harness.http.post(MESSAGES, json={**asked, "messages": history})
    assert again.status_code == 200
    row = next(row for row in harness.logged() if row.id == again.json()["id"])
    roles = [(message["role"], message["content"]) for message in row.prompt["messages"]]
    assert roles[1:] == [("assistant", "So"), ("tool", "done"), ("user", "Go on")]


async def test_a_stop_sequence_is_named(harness: GatewayHarness) -> None:
    message = (await harness.http.post(MESSAGES, json={**ASK, "stop_sequences": ["x", "y"]})).json()
    assert (message["content"][0]["text"], message["stop_reason"], message["stop_sequence"]) == (
        *("He", "stop_sequence", "y"),
    )


async def test_tokens_are_counted(harness: GatewayHarness) -> None:
    asked = {key: value for key, value in ASK.items() if key != "max_tokens"}
    assert (await harness.http.post(f"{MESSAGES}/count_tokens", json=asked)).json() == {"input_tokens": 3}
    missing = await harness.http.post(f"{MESSAGES}/count_tokens", json={**asked, "model": "nobody"})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_failure_ends_the_stream_as_an_error(harness: GatewayHarness) -> None:
    asked = {**ASK, "messages": [{"role": "user", "content": "fail"}], "stream": True}
    name, data = events((await harness.http.post(MESSAGES, json=asked)).text)[-1]
    assert (name, data["error"]) == ("error", {"type": "api_error", "message": "it broke"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"messages": []}, "messages must have 1 to"),
        ({"messages": "Hey"}, "messages must be a list"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role must be user or assistant"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "must end with the user",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content[0] is of type 'image'"),
        ({"messages": [{"role": "user", "content": 5}]}, "content must be a string or a list of blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "text must be a string"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "an object with role and content"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": 1}]}]},
            "input must be an object",
        ),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name must have 1 to 128"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type is 'bash_20250124': only functions"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "names 'g'"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tool_choice": "any"}, "tool_choice must be an object"),
        ({"temperature": 1.5}, "temperature must be at most 1"),
        ({"stop_sequences": ["a"] * 5}, "at most 4 strings"),
        ({"thinking": {"type": "enabled"}}, "do not think apart"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "not a field"),
        ({"service_tier": "priority"}, "one tier"),
        ({"mcp_servers": [{}]}, "call them yourself"),
        ({"n": 2}, "not a field"),
        ({"system": 5}, "system"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_cannot_be_done_is_refused_by_name(
    harness: GatewayHarness, fields: dict[str, Any], says: str
) -> None:
    refused = await harness.http.post(MESSAGES, json={**ASK, **fields})
    error = refused.json()
    assert (refused.status_code, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert says in error["error"]["message"]
    assert not harness.logged()


async def test_all_errors_of_these_routes_have_anthropics_shape(harness: GatewayHarness) -> None:
    wrong = await harness.http.post(MESSAGES, content="{")
    assert wrong.json()["error"]["type"] == "invalid_request_error"
    unknown = await harness.http.post(MESSAGES, json={**ASK, "model": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    method = await harness.http.get(MESSAGES)
    assert (method.status_code, method.json()["type"]) == (405, "error")
    nowhere = await harness.http.post(f"{MESSAGES}/batches", json={})
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "not_found_error")
    large = await harness.http.post(MESSAGES, json={**ASK, "system": "x" * (9 << 20)})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


async def test_models_are_shown_in_anthropics_shape_to_its_clients(harness: GatewayHarness) -> None:
    theirs = {"anthropic-version": "2023-06-01"}
    page = (await harness.http.get("/v1/models", headers=theirs, params={"limit": 20})).json()
    usual = (await harness.http.get("/v1/models")).json()
    assert (page.keys() - usual.keys(), page["has_more"]) == ({"first_id", "last_id"}, False)
    assert [model["id"] for model in page["data"]] == [model["id"] for model in usual["data"]]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (
        False,
        page["data"][0]["id"],
        page["data"][-1]["id"],
    )
    for model in page["data"]:
        assert (await harness.http.get(f"/v1/models/{model['id']}", headers=theirs)).json() == model
        assert (model["type"], model["display_name"]) == ("model", model["id"])
        assert datetime.fromisoformat(model["created_at"]).tzinfo is UTC
