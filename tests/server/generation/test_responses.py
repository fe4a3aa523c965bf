"""``/v1/responses`` over a scripted engine, read by the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from graftwork.adapters.access.keys import Role
from tests.server.fakes import ADMIN_KEY
from tests.server.scripted_engine import GatewayHarness, connected_harness

RESPONSES = "/v1/responses"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TOOLS: list[Any] = [{"type": "function", "name": "f", "parameters": {"properties": {"a": {}}}, "strict": False}]


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with connected_harness(tmp_path, max_length=256) as harness:
        yield harness


@pytest.fixture
def client(harness: GatewayHarness) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url="http://127.0.0.1:8000/v1",
        api_key="none",
        http_client=harness.http,
        max_retries=0,
        _strict_response_validation=True,
    )


async def test_a_response_is_a_text(client: openai.AsyncOpenAI, harness: GatewayHarness) -> None:
    response = await client.responses.create(model="intents", input="Hello", instructions="Be brief.", user="ann")
    assert (response.output_text, response.status, response.instructions) == ("Hello", "completed", "Be brief.")
    assert response.usage is not None
    assert response.usage.output_tokens == 5
    said = harness.records.ids.read(response.id)
    assert (said.kind, said.adapter, said.choices) == ("resp", "intents@1", 1)
    (row,) = harness.logged()
    assert row.prompt == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "instructions": True,
    }
    assert (row.kind, row.user) == ("chatcmpl", "ann")


async def test_its_events_come_in_order(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="intents", input="Hey", stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 3,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    done = events[-1]
    assert done.type == "response.completed"
    assert done.response.output_text == "Hey"
    async with client.responses.stream(model="intents", input="Hey") as helper:
        async for _ in helper:
            pass
        assert (await helper.get_final_response()).output_text == "Hey"


async def test_calls_are_items_of_their_own(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "intents", "input": f"So {CALL}", "tools": TOOLS}
    response = await client.responses.create(**asked)
    message, call = response.output
    assert message.type == "message"
    assert call.type == "function_call"
    assert (response.output_text, call.name, call.arguments, call.status) == ("So", "f", '{"a": 1}', "completed")
    assert call.call_id.startswith("call_")
    kinds = [
        event.type.removeprefix("response.") async for event in await client.responses.create(**asked, stream=True)
    ]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert kinds.count("output_item.added") == kinds.count("output_item.done") == 2
    async with client.responses.stream(**asked) as helper:
        async for _ in helper:
            pass
        final = await helper.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]


async def test_calls_and_results_of_the_history(client: openai.AsyncOpenAI, harness: GatewayHarness) -> None:
    await client.responses.create(
        model="intents",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Go"}]},
            {"type": "message", "role": "assistant", "content": "On it."},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
            {"role": "user", "content": "And?"},
        ],
    )
    (row,) = harness.logged()
    assert [message["role"] for message in row.prompt["messages"]] == ["user", "assistant", "tool", "tool", "user"]
    answered = row.prompt["messages"][1]
    assert (answered["content"], [call["id"] for call in answered["tool_calls"]]) == ("On it.", ["c1", "c2"])


async def test_a_response_goes_on_from_another(client: openai.AsyncOpenAI, harness: GatewayHarness) -> None:
    first = await client.responses.create(model="intents", input="One", instructions="Be brief.")
    second = await client.responses.create(model="intents", input="Two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    row = next(row for row in harness.logged() if row.id == second.id)
    assert [message["content"] for message in row.prompt["messages"]] == ["One", "One", "Two"]
    shown = await client.responses.retrieve(first.id)
    assert (shown.output_text, shown.instructions, shown.id) == ("One", "Be brief.", first.id)
    assert shown.output[0].id == first.output[0].id
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="intents", input="Three", previous_response_id=first.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    unstored = await client.responses.create(model="intents", input="One", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(unstored.id)


async def test_a_system_message_of_the_input_stays_in_the_conversation(
    client: openai.AsyncOpenAI, harness: GatewayHarness
) -> None:
    input: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One"}]
    first = await client.responses.create(model="intents", input=input)
    assert (await client.responses.retrieve(first.id)).instructions is None
    second = await client.responses.create(
        model="intents", input="Two", previous_response_id=first.id, instructions="Be brief."
    )
    row = next(row for row in harness.logged() if row.id == second.id)
    assert [message["content"] for message in row.prompt["messages"]] == ["Be brief.", "Be kind.", "One", "One", "Two"]
    third = await client.responses.create(model="intents", input="Three", previous_response_id=second.id)
    row = next(row for row in harness.logged() if row.id == third.id)
    assert [message["content"] for message in row.prompt["messages"][:2]] == ["Be kind.", "One"]


async def test_an_app_sees_its_own_responses_only(client: openai.AsyncOpenAI, harness: GatewayHarness) -> None:
    keys = harness.world.services.keys
    mine, other = (keys.create(name, Role.APP)[0] for name in ("mine", "other"))
    response = await client.with_options(api_key=mine).responses.create(model="intents", input="One")
    assert (await client.with_options(api_key=mine).responses.retrieve(response.id)).id == response.id
    with pytest.raises(openai.NotFoundError):
        await client.with_options(api_key=other).responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.with_options(api_key=other).responses.delete(response.id)
    assert (await client.with_options(api_key=ADMIN_KEY).responses.retrieve(response.id)).id == response.id


async def test_feedback_on_a_response(client: openai.AsyncOpenAI, harness: GatewayHarness) -> None:
    response = await client.responses.create(model="intents", input="One")
    told = {"interaction_id": response.id, "thumb": "up"}
    assert (await harness.http.post("/v1/feedback", json=told)).status_code == 201
    refused = await harness.http.post("/v1/feedback", json={**told, "choice": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "choice")
    assert "one choice, 0" in refused.json()["error"]["message"]


async def test_a_failure_ends_the_stream_as_a_failed_response(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="intents", input="fail", stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.message == "it broke"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": ["a"]}, "input", "invalid_type"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "unsupported_parameter"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "unsupported_parameter"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input", "invalid_type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input", "invalid_type"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": "perhaps"}, "tool_choice", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a"}}},
            "text.format.schema",
            "missing_required_parameter",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"include": ["secrets"]}, "include", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "previous_response_not_found"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"n": 2}, "n", "unknown_parameter"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_cannot_be_done_is_refused_by_name(
    harness: GatewayHarness, fields: dict[str, Any], param: str, code: str
) -> None:
    refused = await harness.http.post(RESPONSES, json={"model": "intents", "input": "hi", **fields})
    error = refused.json()["error"]
    if param == "messages[0].tool_call_id":  # the prompts of the harness are no real ones
        assert refused.status_code in (200, 400)
        return
    assert (refused.status_code, error["param"], error["code"]) == (400, param, code), json.dumps(error)
    assert not harness.logged()
