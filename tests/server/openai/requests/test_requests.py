"""Request bodies: accepted and refused fields, error messages, and the engine's request."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.tool_calls import HERMES
from graftwork.server.bodies import parse
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.generation import GenerationRequest

HELLO = [{"role": "user", "content": "hello"}]
EOS = {2, 7}


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse(ChatCompletionRequest, json.dumps({"model": "intents", "messages": HELLO, **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"model": "intents", "prompt": "hello", **fields}).encode())


def says(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **fields}]}


def json_schema(**fields: Any) -> dict[str, Any]:
    described = {"name": "answer", "schema": {"type": "object"}, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def tools(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


# fields laid over a good body, the param that the error names, its code, a part of its message
BAD_CHATS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"messages": []}, "messages", "invalid_value", "must not be empty"),
    ({"messages": None}, "messages", "invalid_type", "must be a list, not null"),
    ({"messages": "hello"}, "messages", "invalid_type", "must be a list, not a string"),
    ({"messages": ["hello"]}, "messages[0]", "invalid_type", "must be an object, not a string"),
    ({"messages": [{"content": "hello"}]}, "messages[0].role", "missing_required_parameter", "is required"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "is required"),
    (
        {"messages": [{"role": "tool", "content": "4"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
        "where role is tool",
    ),
    (says("a", tool_call_id="x"), "messages[0].tool_call_id", "invalid_value", "whose role is tool"),
    ({"messages": [*HELLO, {"role": "robot", "content": ""}]}, "messages[1].role", "invalid_value", "got 'robot'"),
    (says(None), "messages[0].content", "invalid_type", "not null"),
    (says(7), "messages[0].content", "invalid_type", "not a number"),
    (says([]), "messages[0].content", "invalid_value", "empty list"),
    (says(["hi"]), "messages[0].content", "invalid_type", "content[0] must be an object"),
    (says([{"type": "text"}]), "messages[0].content", "invalid_type", "content[0].text must be a string"),
    (says([{"type": "image_url", "image_url": {}}]), "messages[0].content", "unsupported_parameter", "only text"),
    (says("a\0b"), "messages[0].content", "invalid_value", "NUL"),
    (says("a", tool_calls=[CALL]), "messages[0].tool_calls", "invalid_value", "messages of the assistant"),
    (says("a", tool_calls=CALL), "messages[0].tool_calls", "invalid_type", "must be a list"),
    (
        says("a", tool_calls=[{"id": "1"}]),
        "messages[0].tool_calls[0].function",
        "missing_required_parameter",
        "is required",
    ),
    (
        says("a", tool_calls=[{**CALL, "function": {"name": "f", "arguments": {}}}]),
        "messages[0].tool_calls[0].function.arguments",
        "invalid_type",
        "must be a string, not an object",
    ),
    (says("a", function_call={"name": "f"}), "messages[0].function_call", "unsupported_parameter", "use tools"),
    (says("a", audio={"id": "1"}), "messages[0].audio", "unsupported_parameter", "only text"),
    (says("a", refusal="no"), "messages[0].refusal", "unsupported_parameter", "into the content"),
    (says("a", contents="b"), "messages[0].contents", "unknown_parameter", "is not a field"),
    ({"model": None}, "model", "invalid_type", "must be a string, not null"),
    ({"model": ""}, "model", "invalid_value", "must not be empty"),
    ({"model": "m" * 257}, "model", "invalid_value", "at most 256 characters"),
    ({"model": ["intents"]}, "model", "invalid_type", "must be a string, not a list"),
    ({"temperature": 2.5}, "temperature", "invalid_value", "must be at most 2, got 2.5"),
    ({"temperature": -0.1}, "temperature", "invalid_value", "must be at least 0"),
    ({"temperature": "0.5"}, "temperature", "invalid_type", "must be a number, not a string"),
    ({"temperature": True}, "temperature", "invalid_type", "must be a number, not a boolean"),
    ({"temperature": float("nan")}, "temperature", "invalid_type", "finite number, not nan"),
    ({"temperature": float("inf")}, "temperature", "invalid_type", "finite number, not inf"),
    ({"temperature": 10**400}, "temperature", "invalid_type", "finite number"),
    ({"top_p": 0}, "top_p", "invalid_value", "must be greater than 0, got 0"),
    ({"top_p": 1.01}, "top_p", "invalid_value", "must be at most 1"),
    ({"presence_penalty": -2.1}, "presence_penalty", "invalid_value", "must be at least -2"),
    ({"frequency_penalty": []}, "frequency_penalty", "invalid_type", "must be a number, not a list"),
    ({"n": 0}, "n", "invalid_value", "must be at least 1"),
    ({"n": 9}, "n", "invalid_value", "must be at most 8"),
    ({"n": 1.0}, "n", "invalid_type", "must be a whole number"),
    ({"n": True}, "n", "invalid_type", "must be a whole number, not a boolean"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value", "at least 1"),
    ({"max_tokens": -5}, "max_tokens", "invalid_value", "at least 0"),
    ({"max_tokens": 10**30}, "max_tokens", "invalid_value", "at most 9223372036854775807"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value", "at least 1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value", "give one of the two"),
    ({"min_tokens": -1}, "min_tokens", "invalid_value", "at least 0"),
    ({"ignore_eos": "yes"}, "ignore_eos", "invalid_type", "true or false, not a string"),
    ({"seed": 1.5}, "seed", "invalid_type", "whole number"),
    ({"seed": 2**63}, "seed", "invalid_value", "at most 9223372036854775807"),
    ({"seed": 10**2000}, "seed", "invalid_value", "a number with very many digits"),
    ({"stop": ""}, "stop", "invalid_value", "1 to 256 characters"),
    ({"stop": ["a", ""]}, "stop", "invalid_value", "1 to 256 characters"),
    ({"stop": ["s" * 257]}, "stop", "invalid_value", "1 to 256 characters"),
    ({"stop": list("abcde")}, "stop", "invalid_value", "at most 4 strings, got 5"),
    ({"stop": [1]}, "stop", "invalid_type", "list of at most 4 strings"),
    ({"stop": {"a": 1}}, "stop", "invalid_type", "list of at most 4 strings"),
    ({"stop": "\0"}, "stop", "invalid_value", "NUL"),
    ({"stream": "true"}, "stream", "invalid_type", "true or false"),
    ({"stream_options": {}}, "stream_options", "invalid_value", "only for streams"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type", "must be an object"),
    ({"stream": True, "stream_options": {"usage": 1}}, "stream_options.usage", "unknown_parameter", "not a field"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "unsupported_parameter",
        "leave it out",
    ),
    ({"logprobs": 3}, "logprobs", "invalid_type", "true or false, not a number"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "at most 20"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value", "needs logprobs"),
    ({"user": 7}, "user", "invalid_type", "must be a string"),
    ({"user": "u\0"}, "user", "invalid_value", "NUL"),
    ({"metadata": []}, "metadata", "invalid_type", "object of strings"),
    ({"metadata": {"a": 1}}, "metadata", "invalid_type", "metadata['a'] must be a string"),
    ({"metadata": {"k" * 65: ""}}, "metadata", "invalid_value", "too long"),
    ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_value", "too long"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value", "at most 16 pairs, got 17"),
    ({"store": 1}, "store", "invalid_type", "true or false"),
    ({"tools": {}}, "tools", "invalid_type", "must be a list, not an object"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter", "is required"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter", "only functions are supported"),
    (tools(name="a b"), "tools[0].function.name", "invalid_value", "1 to 128 letters"),
    (tools(name="a" * 129), "tools[0].function.name", "invalid_value", "1 to 128 letters"),
    (tools(parameters=[]), "tools[0].function.parameters", "invalid_type", "an object, not a list"),
    (tools(parameters={"type": "string"}), "tools[0].function.parameters", "invalid_value", "must be of type object"),
    (tools(strict="yes"), "tools[0].function.strict", "invalid_type", "true or false"),
    (tools(returns={}), "tools[0].function.returns", "unknown_parameter", "not a field"),
    ({"tools": tools()["tools"] * 2}, "tools", "invalid_value", "two functions called 'f'"),
    ({"tools": tools()["tools"] * 129}, "tools", "invalid_value", "at most 128"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value", "needs tools"),
    ({**tools(), "tool_choice": "maybe"}, "tool_choice", "invalid_value", "none, auto, required or a function"),
    ({**tools(), "tool_choice": 3}, "tool_choice", "invalid_type", "a string or an object"),
    (
        {**tools(), "tool_choice": {"type": "custom"}},
        "tool_choice",
        "unsupported_parameter",
        "tool_choice[type] is 'cu",
    ),
    ({**tools(), "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "invalid_value", "must be like"),
    (
        {**tools(), "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "invalid_value",
        "names 'g', which is not among tools",
    ),
    ({**tools(), "parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_type", "true or false"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter", "use tools"),
    ({"response_format": "json"}, "response_format", "invalid_type", "must be an object, not a string"),
    ({"response_format": {}}, "response_format.type", "missing_required_parameter", "is required"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "'json_schema', got 'xml'"),
    ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown_parameter", "remove it"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
        "where type is json_schema",
    ),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
        "response_format.json_schema",
        "invalid_value",
        "is for type json_schema, not text",
    ),
    (json_schema(name="a b"), "response_format.json_schema.name", "invalid_value", "1 to 64 letters"),
    (json_schema(name="a" * 65), "response_format.json_schema.name", "invalid_value", "1 to 64 letters"),
    (json_schema(name=""), "response_format.json_schema.name", "invalid_value", "1 to 64 letters"),
    (json_schema(name="é"), "response_format.json_schema.name", "invalid_value", "1 to 64 letters"),
    (json_schema(schema=None), "response_format.json_schema.schema", "invalid_type", "an object, not null"),
    (json_schema(schema=[]), "response_format.json_schema.schema", "invalid_type", "an object, not a list"),
    (json_schema(strict="yes"), "response_format.json_schema.strict", "invalid_type", "true or false"),
    (json_schema(strct=True), "response_format.json_schema.strct", "unknown_parameter", "not a field"),
    ({"structured_outputs": {}}, "structured_outputs", "invalid_value", "takes one of json, json_object"),
    (
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
        "invalid_value",
        "got regex and choice",
    ),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs", "invalid_value", "got none"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value", "one choice at least"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "invalid_value", "none that is empty"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice", "invalid_type", "a list of strings"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "invalid_value", "must not be empty"),
    ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", "invalid_type", "must be a string"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "invalid_value", "but no JSON"),
    ({"structured_outputs": {"json": "[" * 9999}}, "structured_outputs.json", "invalid_value", "but no JSON"),
    ({"structured_outputs": {"json": 7}}, "structured_outputs.json", "invalid_type", "an object, not a number"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "unknown_parameter", "not"),
    ({"guided_choice": "a"}, "guided_choice", "invalid_type", "a list of strings, not a string"),
    ({"guided_json": [1]}, "guided_json", "invalid_type", "an object, not a list"),
    ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "invalid_value", "and guided_json both say"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "invalid_value",
        "and response_format both say what to answer in: give one",
    ),
    ({"logit_bias": []}, "logit_bias", "invalid_type", "object of token ids and numbers, not a list"),
    ({"logit_bias": {"the": 1}}, "logit_bias", "invalid_value", "['the'] is not a token id"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value", "['-1'] is not a token id"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias", "invalid_value", "is not a token id"),
    ({"logit_bias": {"9" * 10: 1}}, "logit_bias", "invalid_value", "is not a token id"),
    ({"logit_bias": {"7": 100.5}}, "logit_bias", "invalid_value", "['7'] must be a number from -100 to 100"),
    ({"logit_bias": {"7": True}}, "logit_bias", "invalid_value", "must be a number"),
    ({"logit_bias": {"7": float("nan")}}, "logit_bias", "invalid_value", "must be a number"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias", "invalid_value", "at most 1024 tokens, got 1025"),
    ({"top_k": -2}, "top_k", "invalid_value", "at least 0"),
    ({"top_k": 2**31}, "top_k", "invalid_value", "at most 2147483647"),
    ({"top_k": 5.5}, "top_k", "invalid_type", "whole number"),
    ({"top_k": True}, "top_k", "invalid_type", "not a boolean"),
    ({"min_p": 1.1}, "min_p", "invalid_value", "at most 1"),
    ({"min_p": -0.1}, "min_p", "invalid_value", "at least 0"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value", "at least 0.01"),
    ({"repetition_penalty": "1"}, "repetition_penalty", "invalid_type", "must be a number"),
    ({"stop_token_ids": 5}, "stop_token_ids", "invalid_type", "must be a list"),
    ({"stop_token_ids": ["5"]}, "stop_token_ids[0]", "invalid_type", "whole number"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value", "at least 0"),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids", "invalid_value", "at most 64"),
    ({"use_beam_search": True}, "use_beam_search", "unsupported_parameter", "sampled"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_parameter", "one tier"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter", "text"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter", "only text"),
    ({"prediction": {"type": "content"}}, "prediction", "unsupported_parameter", "leave it out"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter", "do not reason"),
    ({"verbosity": "low"}, "verbosity", "unsupported_parameter", "how long"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter", "leave it out"),
    ({"best_of": 1}, "best_of", "unknown_parameter", "remove it"),
    ({"temprature": 1}, "temprature", "unknown_parameter", "did you mean temperature?"),
    ({"{brace}": "{x}"}, "{brace}", "unknown_parameter", "'{brace}' is not a field"),
]

BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"prompt": None}, "prompt", "invalid_type", "not null"),
    ({"prompt": []}, "prompt", "invalid_value", "empty list"),
    ({"prompt": {"text": "a"}}, "prompt", "invalid_type", "not an object"),
    ({"prompt": 5}, "prompt", "invalid_type", "not a number"),
    ({"prompt": [1, "a"]}, "prompt", "invalid_type", "prompt[1] must be a token id, not 'a'"),
    ({"prompt": [1, True]}, "prompt", "invalid_type", "prompt[1] must be a token id, not True"),
    ({"prompt": [1, -1]}, "prompt", "invalid_type", "prompt[1] must be a token id, not -1"),
    ({"prompt": [True]}, "prompt", "invalid_type", "must not mix"),
    ({"prompt": ["a", 1]}, "prompt", "invalid_type", "must not mix"),
    ({"prompt": [[1], "a"]}, "prompt", "invalid_type", "must not mix"),
    ({"prompt": [[1], []]}, "prompt", "invalid_value", "prompt[1] is an empty list"),
    ({"prompt": [[1], [1.5]]}, "prompt", "invalid_type", "prompt[1][0] must be a token id, not 1.5"),
    ({"prompt": ["a"] * 33}, "prompt", "invalid_value", "at most 32 prompts in one request, got 33"),
    ({"prompt": "a\0"}, "prompt", "invalid_value", "NUL"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value", "only for echo"),
    ({"echo": 1}, "echo", "invalid_type", "true or false"),
    ({"logprobs": True}, "logprobs", "invalid_type", "whole number, not a boolean"),
    ({"logprobs": 21}, "logprobs", "invalid_value", "at most 20"),
    ({"best_of": 2}, "best_of", "unsupported_parameter", "leave it out"),
    ({"n": 2, "best_of": 1}, "best_of", "unsupported_parameter", "leave it out"),
    ({"suffix": "end"}, "suffix", "unsupported_parameter", "cannot be inserted"),
    ({"messages": HELLO}, "messages", "unknown_parameter", "is not a field"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "unknown_parameter", "is not a field"),
]

BAD_BYTES: list[tuple[bytes, str, str]] = [
    (b"", "invalid_json", "empty: send a JSON object"),
    (b"  \n", "invalid_json", "empty"),
    (b"[]", "invalid_type", "must be an object, not a list"),
    (b'"hello"', "invalid_type", "must be an object, not a string"),
    (b"null", "invalid_type", "must be an object, not null"),
    (b'{"model": "a",}', "invalid_json", "trailing comma at line 1 column 15"),
    (b'{\n"model": "a"\n', "invalid_json", "at line 3"),
    (b'{"model": "a"} {"model": "b"}', "invalid_json", "trailing characters"),
    (b"{'model': 'a'}", "invalid_json", "line 1 column 2"),
    (b'{"model": "\xff"}', "invalid_json", "unicode"),
    (b'{"model": "\\ud800"}', "invalid_json", "half a surrogate pair"),
    (b'\xff\xfe{\x00"\x00', "invalid_json", "line 1 column 1"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json", "number out of range"),
    (b'{"stop": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", "recursion limit"),
    (b"model=intents&prompt=hello", "invalid_json", "line 1 column 1"),
]


def refusal(model: type[GenerationRequest], raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(model, raw)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    return caught.value


@pytest.mark.parametrize(("fields", "param", "code", "says"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_bad_chats_are_refused_by_name(fields: dict[str, Any], param: str, code: str, says: str) -> None:
    error = refusal(ChatCompletionRequest, json.dumps({"model": "intents", "messages": HELLO, **fields}).encode())
    assert (error.param, error.code) == (param, code)
    assert says in error.message


@pytest.mark.parametrize(("fields", "param", "code", "says"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
def test_bad_completions_are_refused_by_name(fields: dict[str, Any], param: str, code: str, says: str) -> None:
    error = refusal(CompletionRequest, json.dumps({"model": "intents", "prompt": "hello", **fields}).encode())
    assert (error.param, error.code) == (param, code)
    assert says in error.message


@pytest.mark.parametrize(("raw", "code", "says"), BAD_BYTES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("model", [ChatCompletionRequest, CompletionRequest])
def test_what_is_no_json_object_is_refused(model: type[GenerationRequest], raw: bytes, code: str, says: str) -> None:
    error = refusal(model, raw)
    assert (error.param, error.code) == (None, code)
    assert says in error.message


def test_the_first_error_is_explained_and_the_others_are_counted() -> None:
    body = {"model": "intents", "messages": HELLO, "n": 0, "top_p": 7, "seed": "x"}
    error = refusal(ChatCompletionRequest, json.dumps(body).encode())
    assert error.param == "n"
    assert error.message.endswith("(and 2 more problems: top_p, seed)")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_value_of_any_field_is_taken_or_refused(value: Any) -> None:
    for model in (ChatCompletionRequest, CompletionRequest):
        for field in model.model_fields:
            body = {"model": "intents", "messages": HELLO} if model is ChatCompletionRequest else {"model": "intents"}
            with contextlib.suppress(InvalidRequest):
                parse(model, json.dumps({**body, field: value}).encode())


# ------------------------------------------------------------------------------------------- what others may send


@pytest.mark.parametrize("empty", [None, "", []])
def test_an_answer_that_is_sent_back_may_be_empty(empty: Any) -> None:
    request = chat(messages=[*HELLO, {"role": "assistant", "content": empty}, *HELLO])
    assert request.chat_messages()[1] == {"role": "assistant", "content": ""}


def test_hints_and_notes_in_text_parts_are_passed_over() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []}
    assert chat(**says([part])).chat_messages()[0]["content"] == [{"type": "text", "text": "a"}]


def test_fields_of_openai_are_taken_where_they_ask_for_nothing_special() -> None:
    request = chat(
        n=1,
        tools=None,
        tool_choice="none",
        functions=[],
        response_format={"type": "text"},
        top_k=-1,
        min_p=0,
        repetition_penalty=1.0,
        logit_bias={},
        use_beam_search=False,
        service_tier="auto",
        parallel_tool_calls=None,
        modalities=["text"],
        verbosity="medium",
        reasoning_effort=None,
        metadata={"team": "support"},
        store=False,
        user="u1",
        safety_identifier="u1",
        prompt_cache_key="support",
        seed=-1,
        stop=None,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        logprobs=False,
        top_logprobs=0,
        max_tokens=4,
        max_completion_tokens=4,
    )
    assert (request.store, request.user, request.include_usage) == (False, "u1", True)
    assert request.metadata == {"team": "support"}
    completion(best_of=1, suffix=None, logit_bias=None, user="u1", n=1)


def test_an_answers_message_can_be_sent_back_as_the_official_client_does() -> None:
    reply = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    request = chat(
        messages=[*HELLO, reply, {"role": "user", "content": [{"type": "text", "text": "and"}], "name": "al"}]
    )
    assert request.chat_messages() == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "and"}], "name": "al"},
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ("ab",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ("", ("",)),
    ],
)
def test_the_four_forms_of_a_prompt(prompt: Any, expected: tuple[Any, ...]) -> None:
    assert completion(prompt=prompt).prompt == expected


def test_prompts_become_token_ids_within_the_vocabulary() -> None:
    request = completion(prompt=["ab", "c"])
    assert request.prompts(lambda text: [ord(letter) for letter in text], 256) == [(97, 98), (99,)]
    with pytest.raises(InvalidRequest, match="token id 256, but this model's ids go from 0 to 255") as caught:
        completion(prompt=[[1], [2, 256]]).prompts(lambda text: [], 256)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="very many digits"):
        completion(prompt=[10**4000]).prompts(lambda text: [], 256)


@pytest.mark.parametrize("fields", [{"logit_bias": {"3": 1, "256": 1}}, {"stop_token_ids": [3, 256]}])
def test_other_token_ids_are_of_the_vocabulary_too(fields: dict[str, Any]) -> None:
    chat(**fields).check_token_ids(257)
    with pytest.raises(InvalidRequest, match="token id 256, but this model's ids go from 0 to 255") as caught:
        chat(**fields).check_token_ids(256)
    assert caught.value.param == next(iter(fields))


# ------------------------------------------------------------------------------------------------ what it becomes


def test_defaults() -> None:
    sampling = chat().sampling_params(10, 100, EOS)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (90, 1.0, 1.0)
    assert (sampling.seed, sampling.top_logprobs, sampling.prompt_logprobs) == (None, None, None)
    assert sampling.stop_token_ids == EOS
    assert completion().sampling_params(10, 100, EOS).max_tokens == 16
    assert completion().sampling_params(95, 100, EOS).max_tokens == 5


def test_everything_that_was_asked_for_arrives() -> None:
    sampling = chat(
        max_completion_tokens=7,
        min_tokens=3,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        logit_bias={"5": -3, "0": 2.5},
        stop_token_ids=[8, 9],
        frequency_penalty=1,
        presence_penalty=-1.5,
        seed=11,
        logprobs=True,
        top_logprobs=4,
        ignore_eos=True,
    ).sampling_params(10, 100, EOS, choice=2)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p) == (7, 3, 0, 0.5)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.seed) == (1, -1.5, 13)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (40, 0.1, 1.1)
    assert (sampling.top_logprobs, sampling.prompt_logprobs) == (4, None)
    assert sampling.logit_bias == {5: -3, 0: 2.5}
    assert sampling.stop_token_ids == {8, 9}, "EOS is ignored, and these are not"
    assert chat(stop_token_ids=[8]).sampling_params(10, 100, EOS).stop_token_ids == EOS | {8}


def test_every_choice_has_its_own_seed_which_fits_a_generator() -> None:
    assert [chat(n=2, seed=2**63 - 1).sampling_params(1, 9, EOS, choice=i).seed for i in (0, 1)] == [2**63 - 1, 0]
    assert chat(seed=-(2**63)).sampling_params(1, 9, EOS).seed == 0


def test_echo_with_logprobs_scores_the_prompt() -> None:
    sampling = completion(echo=True, logprobs=2, max_tokens=0).sampling_params(100, 100, EOS)
    assert (sampling.max_tokens, sampling.top_logprobs, sampling.prompt_logprobs) == (0, 2, 2)
    assert completion(logprobs=2).sampling_params(1, 100, EOS).prompt_logprobs is None


@pytest.mark.parametrize("num_tokens", [100, 101, 10_000])
def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(num_tokens: int) -> None:
    for request, param in ((chat(), "messages"), (completion(), "prompt"), (chat(max_tokens=1), "messages")):
        with pytest.raises(InvalidRequest, match=rf"{num_tokens} tokens.* 100 tokens") as caught:
            request.sampling_params(num_tokens, 100, EOS)
        assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_fit_are_refused_with_what_would_fit(field: str) -> None:
    assert chat(**{field: 90}).sampling_params(10, 100, EOS).max_tokens == 90
    with pytest.raises(InvalidRequest, match=rf"{field} is 91.*ask for at most 90") as caught:
        chat(**{field: 91}).sampling_params(10, 100, EOS)
    assert (caught.value.param, caught.value.code) == (field, "context_length_exceeded")


def test_min_tokens_must_be_reachable() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens is 17, but at most 16") as caught:
        completion(min_tokens=17).sampling_params(10, 100, EOS)
    assert caught.value.param == "min_tokens"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        completion(prompt="").sampling_params(0, 100, EOS)


# ------------------------------------------------------------------------------------------- what answers are held to

SCHEMA = {"type": "object", "properties": {"b": {"const": None}, "a": {"type": "integer"}}}

HELD: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({"response_format": {"type": "json_object"}}, ("json", '{"type":"object"}', "response_format")),
    (
        json_schema(schema=SCHEMA, strict=True, description="d"),
        ("json", json.dumps(SCHEMA), "response_format.json_schema.schema"),
    ),
    (
        json_schema(name="a-B_9" * 12, schema={}, strict=False),
        ("json", "{}", "response_format.json_schema.schema"),
    ),
    (
        {"response_format": {"type": "text"}, "structured_outputs": {"json": SCHEMA}},
        ("json", json.dumps(SCHEMA), "structured_outputs.json"),
    ),
    (
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        ("json", json.dumps(SCHEMA), "structured_outputs.json"),
    ),
    ({"structured_outputs": {"json_object": True}}, ("json", '{"type":"object"}', "structured_outputs.json_object")),
    (
        {"structured_outputs": {"regex": "a+", "choice": None, "json_object": False}},
        ("regex", "a+", "structured_outputs.regex"),
    ),
    ({"structured_outputs": {"choice": ["é", "b"]}}, ("choice", '["é", "b"]', "structured_outputs.choice")),
    ({"structured_outputs": {"grammar": "start: a"}}, ("grammar", "start: a", "structured_outputs.grammar")),
    ({"guided_json": SCHEMA}, ("json", json.dumps(SCHEMA), "guided_json")),
    ({"guided_regex": "a+"}, ("regex", "a+", "guided_regex")),
    ({"guided_choice": ["a"]}, ("choice", '["a"]', "guided_choice")),
    ({"guided_grammar": "start: a"}, ("grammar", "start: a", "guided_grammar")),
]


@pytest.mark.parametrize(("fields", "expected"), HELD, ids=lambda value: str(value)[:40])
def test_what_an_answer_is_held_to(fields: dict[str, Any], expected: tuple[str, str, str]) -> None:
    for request in (chat(**fields), completion(**fields)):
        source = request.grammar_source(HERMES)
        assert source is not None
        assert (source.kind, source.text, source.field) == expected
        assert request.logged_sampling().items() >= {k: v for k, v in fields.items() if k.startswith("resp")}.items()
    logged = chat(**fields).logged_sampling()
    assert logged.keys() == fields.keys()
    assert json.loads(json.dumps(logged)) == logged


def test_most_answers_are_held_to_nothing() -> None:
    for request in (chat(), chat(response_format={"type": "text"}), chat(structured_outputs=None)):
        assert request.grammar_source(HERMES) is None
        assert request.sampling_params(10, 100, EOS).grammar is None


def test_a_grammar_ends_an_answer_whatever_ignores_end_tokens() -> None:
    request = chat(ignore_eos=True, response_format={"type": "json_object"})
    sampling = request.sampling_params(10, 100, EOS, grammar="g")
    assert (sampling.grammar, sampling.stop_token_ids) == ("g", EOS)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (json_schema(schema={"enum": ["é" * (1 << 17)]}), "response_format.json_schema.schema"),
        ({"structured_outputs": {"regex": "a" * (1 << 18 | 1)}}, "structured_outputs.regex"),
        ({"guided_choice": ["a"] * 60_000}, "guided_choice"),
        (json_schema(schema={"const": float("inf")}), "response_format.json_schema.schema"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_schemas_are_bounded(fields: dict[str, Any], param: str) -> None:
    request = chat(**fields)
    with pytest.raises(InvalidRequest, match=r"at most 262144 are taken|not finite") as caught:
        request.grammar_source(HERMES)
    assert caught.value.param == param
