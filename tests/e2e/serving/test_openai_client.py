"""The official client against a real server: its features, and its errors."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.e2e.server_process import BASE, Server

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "How do I get my money back for a card payment?"},
]
GREEDY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8}

pytestmark = pytest.mark.usefixtures("adapters")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module")
def lenient(server: Server) -> Iterator[openai.OpenAI]:
    """Without the strictness: the client's types for completions forbid the nulls that OpenAI itself sends.

    They are the score of a prompt's first token, which nothing predicts, and the finish_reason of a chunk before the
    last one.
    """
    with openai.OpenAI(**{**server.openai_options(), "_strict_response_validation": False}) as client:
        yield client


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**server.openai_options()) as client:
        yield client


def chat(client: openai.OpenAI, model: str = "intents", **options: Any) -> Any:
    return client.chat.completions.create(model=model, **{**GREEDY, **options})


# ------------------------------------------------------------------------------------------------------------ models


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert next(iter(models)) == BASE
    assert {"intents", "intents@1", "cards"} <= models.keys()
    base = client.models.retrieve(BASE)
    assert (base.object, base.owned_by) == ("model", "graftwork")
    assert base.model_extra is not None
    assert base.model_extra["graftwork"].keys() >= {"digest", "quantize", "dtype", "device", "memory_bytes"}
    live = {"parent": BASE, "root": "intents@1", "max_model_len": base.model_extra["max_model_len"]}
    assert client.models.retrieve("intents@live").model_extra == models["intents@live"].model_extra == live
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


async def test_models_async(aclient: openai.AsyncOpenAI) -> None:
    assert BASE in [model.id async for model in aclient.models.list()]


# -------------------------------------------------------------------------------------------------------------- chat


def test_chat(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert (answer.object, answer.model) == ("chat.completion", "intents")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.model_extra["graftwork"] == {"adapter": "intents@1"}
    assert answer.system_fingerprint.startswith("gw-")


def test_every_name_of_a_version(client: openai.OpenAI) -> None:
    names = ("intents", "intents@live", "intents@1")
    texts = {chat(client, model, max_tokens=24).choices[0].message.content for model in names}
    assert len(texts) == 1
    assert chat(client, BASE, max_tokens=24).choices[0].message.content not in texts


async def test_chat_async(aclient: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    answer = await aclient.chat.completions.create(model="intents", **GREEDY)
    assert answer.choices[0].message.content == chat(client).choices[0].message.content


def test_an_answer_can_be_said_back(client: openai.OpenAI) -> None:
    said = chat(client).choices[0].message
    turns = [*MESSAGES, said, {"role": "user", "content": [{"type": "text", "text": "And if that fails?"}]}]
    assert chat(client, messages=turns).choices[0].message.content


def counts(usage: CompletionUsage | None) -> tuple[int, int, int]:
    """Without what was cached: the second time that is more."""
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_stream_with_usage(client: openai.OpenAI) -> None:
    stream = chat(client, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat(client).choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert counts(last.usage) == counts(chat(client).usage)
    assert {chunk.usage for chunk in chunks} == {None}


async def test_stream_async(aclient: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    stream = await aclient.chat.completions.create(model="intents", stream=True, **GREEDY)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == chat(client).choices[0].message.content


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="intents", messages=MESSAGES, temperature=0, stop=" ") as stream:
        kinds = {event.type for event in stream}
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert stream.get_final_completion().choices[0].message.content


def test_several_answers(exact_server: Server) -> None:
    """In float32: at this heat the last digits of the default mode, which neighbours may change, change words."""
    two: dict[str, Any] = {"n": 2, "temperature": 1.5, "seed": 3, "extra_body": {"ignore_eos": True}}
    with exact_server.openai() as client:
        answer = chat(client, **two)
        first, second = (choice.message.content for choice in answer.choices)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert first != second
        assert answer.usage.completion_tokens == 16
        streamed = {0: "", 1: ""}
        for chunk in chat(client, **two, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert streamed == {0: first, 1: second}


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "refund",
            "description": "Pay money back to a customer",
            "parameters": {
                "type": "object",
                "properties": {
                    "amount": {"type": "integer", "minimum": 1, "maximum": 500},
                    "card": {"enum": ["a", "b"]},
                },
                "required": ["amount", "card"],
            },
        },
    },
    {"type": "function", "function": {"name": "hang_up"}},
]
CALLS: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 96}
HANG_UP: Any = {"type": "function", "function": {"name": "hang_up"}}


@pytest.mark.parametrize("model", [BASE, "intents"])
def test_a_tool_is_called_and_its_result_goes_back(client: openai.OpenAI, model: str) -> None:
    answer = chat(client, model, **CALLS, parallel_tool_calls=False, temperature=1.0)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.id[:5], len(call.id)) == ("function", "call_", 29)
    if call.function.name == "refund":
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"amount", "card"}
        assert 1 <= arguments["amount"] <= 500
    else:
        assert (call.function.name, call.function.arguments) == ("hang_up", "{}")
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    history = [*MESSAGES, choice.message, result]
    after = chat(client, model, messages=history, tools=TOOLS)
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens
    assert after.choices[0].finish_reason in ("stop", "length")


def test_tool_calls_are_streamed_as_they_are_made(client: openai.OpenAI) -> None:
    options = {**CALLS, "tool_choice": HANG_UP, "parallel_tool_calls": False}
    whole = chat(client, **options).choices[0].message.tool_calls
    chunks = [chunk.choices[0] for chunk in chat(client, **options, stream=True)]
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or ()]
    assert [delta.id is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert deltas[0].function is not None
    assert (deltas[0].index, deltas[0].type, deltas[0].function.name) == (0, "function", "hang_up")
    assert "".join(delta.function.arguments for delta in deltas) == whole[0].function.arguments == "{}"
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)


def test_the_clients_own_helper_reads_streamed_tool_calls(client: openai.OpenAI) -> None:
    tools: Any = [openai.pydantic_function_tool(Ticket)]
    with client.chat.completions.stream(
        model=BASE, messages=MESSAGES, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert isinstance((message.tool_calls or [])[0].function.parsed_arguments, Ticket)


def test_a_strict_tool_is_kept_to_where_it_may_be_called(client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    answer = chat(client, BASE, tools=[strict], tool_choice="auto")
    assert answer.choices[0].message.content


def test_tools_and_calls_are_logged(client: openai.OpenAI, server: Server) -> None:
    answer = chat(client, **CALLS, parallel_tool_calls=False)
    with server.client() as graftwork:
        logged = graftwork.interactions.get(answer.id)
    (call,) = answer.choices[0].message.tool_calls
    (completion,) = logged.completions
    assert [logged.id for logged in completion.tool_calls] == [call.id]
    assert completion.tool_calls[0].function.arguments == call.function.arguments
    assert completion.finish_reason == "tool_calls"
    assert [tool["function"]["name"] for tool in logged.tools] == ["refund", "hang_up"]


def test_logprobs(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 8
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    # Greedy: the token that was chosen is the likeliest.
    assert all(token.top_logprobs[0].token == token.token and token.logprob <= 0 for token in tokens)
    assert b"".join(bytes(token.bytes or ()) for token in tokens).decode() == answer.choices[0].message.content
    streamed = [
        token
        for chunk in chat(client, logprobs=True, top_logprobs=3, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [(token.token, token.logprob) for token in streamed] == [(token.token, token.logprob) for token in tokens]


def test_a_seed_makes_chance_repeatable(client: openai.OpenAI) -> None:
    def roll(seed: int) -> str:
        return str(chat(client, temperature=1.3, seed=seed).choices[0].message.content)

    assert roll(7) == roll(7)
    assert len({roll(seed) for seed in (7, 8, 9)}) == 3


def test_stop_strings(client: openai.OpenAI) -> None:
    whole = str(chat(client).choices[0].message.content)
    stop = whole[len(whole) // 2 :][:4]
    answer = chat(client, stop=[stop, "never said"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(client, stop=stop, stream=True)]
    assert "".join(pieces) == whole[: whole.index(stop)]


def test_both_names_for_the_longest_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="intents", messages=MESSAGES, temperature=0, max_completion_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_penalties_change_the_answer(client: openai.OpenAI) -> None:
    plain = chat(client, max_tokens=20).choices[0].message.content
    assert chat(client, max_tokens=20, frequency_penalty=2, presence_penalty=2).choices[0].message.content != plain


def test_tokens_can_be_favoured_forbidden_and_made_the_end(client: openai.OpenAI) -> None:
    plain = chat(client, BASE, max_tokens=6, logprobs=True)
    favoured = chat(client, BASE, max_tokens=6, logit_bias={"300": 100})
    repeated = chat(client, BASE, max_tokens=6, logit_bias={"300": 100}, extra_body={"repetition_penalty": 10.0})
    assert len({answer.choices[0].message.content for answer in (plain, favoured, repeated)}) == 3
    ended = chat(client, BASE, max_tokens=6, logit_bias={"300": 100}, extra_body={"stop_token_ids": [300]})
    assert (ended.choices[0].finish_reason, ended.choices[0].message.content) == ("stop", "")


def test_draws_of_few_tokens_are_the_greedy_answer(client: openai.OpenAI) -> None:
    plain = chat(client, max_tokens=12).choices[0].message.content
    for few in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        drawn = chat(client, max_tokens=12, temperature=1.5, seed=5, extra_body=few)
        assert drawn.choices[0].message.content == plain
    assert chat(client, max_tokens=12, temperature=1.5, seed=5).choices[0].message.content != plain


def test_what_only_describes_the_request_is_taken(client: openai.OpenAI) -> None:
    answer = chat(client, user="ann", metadata={"ticket": "7"}, store=False, response_format={"type": "text"})
    assert answer.choices[0].message.content == chat(client).choices[0].message.content


def test_extras_as_vllm_has_them(client: openai.OpenAI) -> None:
    short = [{"role": "user", "content": "What is the capital of France?"}]
    ended = chat(client, BASE, messages=short, max_tokens=40)
    assert ended.choices[0].finish_reason == "stop"
    assert "Paris" in ended.choices[0].message.content
    longer = ended.usage.completion_tokens + 4
    for extra in ({"ignore_eos": True}, {"min_tokens": longer}):
        on = chat(client, BASE, messages=short, max_tokens=longer, extra_body=extra)
        assert on.usage.completion_tokens == longer
        assert on.choices[0].message.content.startswith(ended.choices[0].message.content)


# -------------------------------------------------------------------------------------------------- structured output

FORMAT = "response_format.json_schema.schema"

CLOSED = {"additionalProperties": False}


def held_to(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


class Step(BaseModel):
    number: int = Field(ge=1, le=9)
    done: bool


class Ticket(BaseModel):
    topic: Literal["card", "transfer", "account"]
    amount: float | None = Field(ge=0, le=1000)
    note: str = Field(max_length=12)
    steps: list[Step] = Field(max_length=2)


def test_an_answer_is_an_object_of_a_pydantic_model(client: openai.OpenAI) -> None:
    for temperature in (0, 1.0):
        answer = client.chat.completions.parse(
            model="intents", messages=MESSAGES, response_format=Ticket, temperature=temperature, seed=1, max_tokens=200
        )
        assert isinstance(answer.choices[0].message.parsed, Ticket)
        assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="intents", messages=MESSAGES, response_format=Ticket, max_tokens=3)


async def test_a_streamed_answer_is_the_same_object(aclient: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "intents", "messages": MESSAGES, "temperature": 0, "max_tokens": 200}
    async with aclient.chat.completions.stream(**options, response_format=Ticket) as stream:
        kinds = {event.type async for event in stream}
        streamed = (await stream.get_final_completion()).choices[0].message.parsed
    assert "content.delta" in kinds
    assert streamed == client.chat.completions.parse(**options, response_format=Ticket).choices[0].message.parsed


def test_every_choice_keeps_to_the_schema(client: openai.OpenAI) -> None:
    short = held_to({"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], **CLOSED})
    answer = chat(client, n=4, temperature=1.5, seed=1, response_format=short, max_tokens=60)
    assert {json.loads(choice.message.content)["n"] for choice in answer.choices} <= {1, 2, 3}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_any_json_object(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": 'Say {"a": 1}'}]
    answer = chat(client, BASE, messages=messages, response_format={"type": "json_object"}, max_tokens=100)
    text = answer.choices[0].message.content
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    assert text.startswith("{")


@pytest.mark.parametrize("name", ["structured_outputs", "guided"])
def test_choices_expressions_and_grammars_as_vllm_has_them(client: openai.OpenAI, name: str) -> None:
    asked = {"choice": ["yes", "no"], "regex": "[a-c]{4}x", "grammar": 'root ::= "<" [0-9] ">"', "json": {"const": "k"}}
    matches = {"choice": "yes|no", "regex": "[a-c]{4}x", "grammar": "<[0-9]>", "json": '"k"'}
    for kind, value in asked.items():
        extra = {"structured_outputs": {kind: value}} if name == "structured_outputs" else {f"guided_{kind}": value}
        extra |= {"ignore_eos": True, "min_tokens": 15}  # the end of a grammar is the end
        answer = chat(client, temperature=1, seed=3, max_tokens=20, extra_body=extra)
        assert re.fullmatch(matches[kind], answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop"
        text = client.completions.create(model="intents", prompt="So:", max_tokens=20, seed=3, extra_body=extra)
        assert re.fullmatch(matches[kind], text.choices[0].text)


def test_scores_of_a_held_answer_are_the_models_own(client: openai.OpenAI) -> None:
    held = chat(client, logprobs=True, top_logprobs=1, extra_body={"structured_outputs": {"choice": ["xyzzy"]}})
    scores = held.choices[0].logprobs.content
    assert "".join(score.token for score in scores) == "xyzzy"
    assert scores[0].logprob < -5, "it would not have said that"


# ------------------------------------------------------------------------------------------------------- completions


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="intents", prompt="The capital of France is", max_tokens=6, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 6


def test_completion_of_token_ids(client: openai.OpenAI) -> None:
    text = client.completions.create(model=BASE, prompt="Once upon a time", max_tokens=4, temperature=0)
    ids = [6403, 1980, 253, 655]
    echoed = client.completions.create(model=BASE, prompt=ids, max_tokens=0, echo=True)
    assert echoed.choices[0].text == "Once upon a time"
    assert client.completions.create(model=BASE, prompt=ids, max_tokens=4, temperature=0).choices == text.choices
    both = client.completions.create(model=BASE, prompt=[ids, ids[:2]], max_tokens=4, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == text.choices[0].text


def test_scores_of_a_prompt(lenient: openai.OpenAI) -> None:
    """What evaluation harnesses and gates ask: echo with logprobs, nothing written."""
    likely, unlikely = (
        lenient.completions.create(model="intents", prompt=prompt, max_tokens=0, echo=True, logprobs=2).choices[0]
        for prompt in ("The cat sat on the mat.", "The cat sat on the senate.")
    )
    assert likely.text == "The cat sat on the mat."
    assert likely.logprobs is not None
    assert unlikely.logprobs is not None
    assert likely.logprobs.tokens is not None
    assert likely.logprobs.token_logprobs is not None
    assert likely.logprobs.text_offset is not None
    assert unlikely.logprobs.token_logprobs is not None
    first, *scores = likely.logprobs.token_logprobs
    assert first is None
    assert all(score < 0 for score in scores)
    assert "".join(likely.logprobs.tokens) == likely.text
    for offset, token in zip(likely.logprobs.text_offset, likely.logprobs.tokens, strict=True):
        assert likely.text.startswith(token, offset)
    assert sum(scores) > sum(unlikely.logprobs.token_logprobs[1:])


def test_streamed_completion(lenient: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "cards", "prompt": "Dear Sir or Madam,", "max_tokens": 8, "temperature": 0}
    whole = lenient.completions.create(**options)
    chunks = list(lenient.completions.create(**options, stream=True, logprobs=1))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert sum(len(chunk.choices[0].logprobs.tokens) for chunk in chunks if chunk.choices[0].logprobs) == 8


# -------------------------------------------------------------------------------------------------- headers, errors


def test_headers_say_who_answered(client: openai.OpenAI) -> None:
    for model, adapter in (("intents", "intents@1"), ("cards@live", "cards@1"), (BASE, BASE)):
        raw = client.chat.completions.with_raw_response.create(model=model, **GREEDY)
        assert raw.headers["x-graftwork-adapter"] == adapter
        assert raw.headers["x-request-id"] == raw.parse()._request_id
    with client.chat.completions.with_streaming_response.create(model="intents", stream=True, **GREEDY) as streamed:
        assert streamed.headers["x-graftwork-adapter"] == "intents@1"
        assert streamed.headers["content-type"].startswith("text/event-stream")
    named = chat(client, extra_headers={"x-request-id": "mine-1"})
    assert named._request_id == "mine-1"


def test_unknown_models(client: openai.OpenAI) -> None:
    for model in ("nobody", "intents@99", "intents@candidate", "intents@", "INTENTS"):
        with pytest.raises(openai.NotFoundError) as raised:
            chat(client, model)
        assert (raised.value.param, raised.value.code) == ("model", "model_not_found")
        assert raised.value.request_id
    with pytest.raises(openai.NotFoundError, match="intents"):
        chat(client, "intent")


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
        ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": held_to({"uniqueItems": True})}, FORMAT, "unsupported_parameter"),
        ({"response_format": held_to({"type": "strng"})}, FORMAT, "invalid_value"),
        ({"extra_body": {"guided_regex": "(?=a)"}}, "guided_regex", "unsupported_parameter"),
        ({"logit_bias": {"999999": 10}}, "logit_bias", "invalid_value"),
        ({"max_tokens": 100_000}, "max_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "context_length_exceeded"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_requests(client: openai.OpenAI, options: dict[str, Any], param: str, code: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            chat(client, stream=stream, **options)
        assert (raised.value.param, raised.value.code) == (param, code)
        assert raised.value.type == "invalid_request_error"
        assert len(raised.value.message.split()) > 5


def test_text_that_is_no_text(client: openai.OpenAI) -> None:
    """What JSON can spell and nobody should have to store or print."""
    for body in ('{"model": "intents", "messages": [{"role": "user", "content": "\\ud800"}]}', "[]", "{", ""):
        with pytest.raises(openai.BadRequestError):
            client.post("/chat/completions", cast_to=object, content=body.encode())
    emoji = json.loads('"\\ud83d\\ude00 e\\u0301"')
    assert chat(client, messages=[{"role": "user", "content": emoji}]).choices[0].message.content is not None
