"""``docs/compatibility.md`` says of every field of OpenAI's and vLLM's what it does here: held against the bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from openai.types import batch_create_params as openai_batches
from openai.types import completion_create_params as openai_completions
from openai.types import embedding_create_params as openai_embeddings
from openai.types.chat import completion_create_params as openai_chat
from openai.types.responses import response_create_params as openai_responses

from graftwork.adapters.errors import InvalidRequest
from graftwork.server.anthropic.requests import MessagesRequest
from graftwork.server.bodies import StrictModel, parse
from graftwork.server.http.routes.batches import CreatedBatch
from graftwork.server.openai.requests.chat import ChatCompletionRequest
from graftwork.server.openai.requests.completions import CompletionRequest
from graftwork.server.openai.requests.embeddings import EmbeddingRequest
from graftwork.server.openai.requests.responses import ResponsesRequest
from tests.test_docs import CHECKOUT, table

MODELS: Mapping[str, type[StrictModel]] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
    "messages": MessagesRequest,
    "embeddings": EmbeddingRequest,
    "batches": CreatedBatch,
}
OPENAI: Mapping[str, Any] = {
    "chat": openai_chat.CompletionCreateParams,
    "completions": openai_completions.CompletionCreateParams,
    "responses": openai_responses.ResponseCreateParams,
    "embeddings": openai_embeddings.EmbeddingCreateParams,
    "batches": openai_batches.BatchCreateParams,
}
"""By the column that they are shown in."""

LEAST: Mapping[str, dict[str, Any]] = {
    "chat": {"model": "intents", "messages": [{"role": "user", "content": "Hello"}]},
    "completions": {"model": "intents", "prompt": "Hello"},
    "responses": {"model": "intents", "input": "Hello"},
    "messages": {"model": "intents", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5},
    "embeddings": {"model": "intents", "input": "Hello"},
    "batches": {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
}
"""The least that each route takes."""

ON: Mapping[str, Any] = {
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": 1.0,
    "presence_penalty": 1.0,
    "logit_bias": {"5": 1},
    "stop": ["."],
    "seed": 1,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "echo": True,
    "best_of": 2,
    "suffix": "end",
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "functions": [{"name": "f", "parameters": {"type": "object"}}],
    "function_call": {"name": "f"},
    "user": "ann",
    "metadata": {"ticket": "7"},
    "store": False,
    "safety_identifier": "ann",
    "prompt_cache_key": "key",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "service_tier": "priority",
    "reasoning_effort": "high",
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "Hello"},
    "moderation": {"model": "omni-moderation-latest"},
    "web_search_options": {},
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 2,
    "ignore_eos": True,
    "stop_token_ids": [5],
    "cache_salt": "ann",
    "structured_outputs": {"choice": ["yes", "no"]},
    "guided_json": {"type": "object"},
    "guided_regex": "a+",
    "guided_choice": ["yes", "no"],
    "guided_grammar": 'root ::= "a"',
    "use_beam_search": True,
    "prompt_logprobs": 1,
    "skip_special_tokens": False,
    "add_generation_prompt": False,
    "chat_template_kwargs": {"enable_thinking": False},
    "instructions": "Be brief.",
    "previous_response_id": "resp_1",
    "max_output_tokens": 5,
    "include": ["message.output_text.logprobs"],
    "text": {"format": {"type": "json_object"}},
    "max_tool_calls": 1,
    "reasoning": {"effort": "high"},
    "truncation": "auto",
    "conversation": "conv_1",
    "system": "Be brief.",
    "stop_sequences": ["."],
    "encoding_format": "base64",
    "dimensions": 576,
    "pooling": "last",
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "cache_control": {"type": "ephemeral"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}
"""A value with which a field does something. Fields of others that no body has are probed with true."""

ON_HERE: Mapping[tuple[str, str], Any] = {
    **dict.fromkeys((("embeddings", "normalize"), ("embeddings", "add_special_tokens")), False),
    ("completions", "logprobs"): 2,
    ("responses", "tools"): [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    ("responses", "stream_options"): {"include_obfuscation": True},
    ("messages", "tools"): [{"name": "f", "input_schema": {"type": "object"}}],
    ("messages", "tool_choice"): {"type": "any"},
    ("messages", "metadata"): {"user_id": "ann"},
}
"""The same where a route has other values than the others."""

BESIDE: Mapping[str, tuple[str, ...]] = {
    "top_logprobs": ("logprobs",),
    "stream_options": ("stream",),
    "tool_choice": ("tools",),
    "parallel_tool_calls": ("tools",),
}
"""What a field needs beside it, where the route has that."""

TABLES = (
    "### Chat and completions: OpenAI's fields",
    "### Chat and completions: vLLM's fields",
    "### Responses",
    "### Messages",
    "### Embeddings",
    "### Batches",
)


def statuses(route: str) -> dict[str, str]:
    """What the page says of each field of a route."""
    found: dict[str, str] = {}
    for heading in TABLES:
        rows = table("docs/compatibility.md", heading)
        if route in rows["field"]:
            column = rows["field"].index(route)
            for names, cells in rows.items():
                found |= dict.fromkeys(re.findall(r"`(\w+)`", names), cells[column])
    return {name: status for name, status in found.items() if status != "–"}


def cells() -> Iterator[tuple[str, str, str]]:
    """(route, field, status) of every cell."""
    for route in MODELS:
        yield from ((route, name, status) for name, status in statuses(route).items())


@pytest.mark.parametrize("route", MODELS)
def test_every_field_of_the_body_is_in_the_tables(route: str) -> None:
    assert MODELS[route].model_fields.keys() <= statuses(route).keys()


@pytest.mark.parametrize("route", OPENAI)
def test_every_field_of_openai_is_in_the_tables(route: str) -> None:
    kinds = get_args(OPENAI[route]) or (OPENAI[route],)  # streamed and whole, or one for both
    theirs = {name for kind in kinds for name in _annotations(kind)}
    assert theirs <= statuses(route).keys()


def _annotations(kind: Any) -> dict[str, Any]:
    """All of a typed dictionary's, with those of the ones that it extends."""
    return {
        name: of for base in (*kind.__orig_bases__, kind) for name, of in vars(base).get("__annotations__", {}).items()
    }


@pytest.mark.parametrize(("route", "field", "status"), list(cells()))
def test_a_field_does_what_the_page_says(route: str, field: str, status: str) -> None:
    needed = [name for name in (*BESIDE.get(field, ()), field) if name in MODELS[route].model_fields or name == field]
    on = {name: ON_HERE.get((route, name), ON.get(name, True)) for name in needed}
    body = json.dumps({**on, **LEAST[route]}).encode()
    if status == "refused":
        with pytest.raises(InvalidRequest) as refusal:
            parse(MODELS[route], body)
        assert str(refusal.value.param).partition(".")[0] == field
        assert refusal.value.code in ("unsupported_parameter", "unknown_parameter")
        return
    parse(MODELS[route], body)
    assert status == ("done" if _is_read(field) else "ignored")


def _is_read(field: str) -> bool:
    """Whether the server's code has a use for a field, beside taking it."""
    return bool(re.search(rf'\.{field}\b|_FORMATS\b[^}}]*"{field}"', _server_code()))


@cache
def _server_code() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in Path(CHECKOUT, "server").rglob("*.py"))
