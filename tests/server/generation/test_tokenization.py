"""``/tokenize`` and ``/detokenize``: what they count and refuse. The real tokenizer's part is in ``tests/e2e``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.server.openai.requests import tokenization
from tests.server.fakes import make_world
from tests.server.http_errors import error
from tests.server.scripted_engine import GatewayHarness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    harness = GatewayHarness(make_world(tmp_path))
    harness.engine.connect()
    yield harness
    await harness.http.aclose()


async def test_a_text_and_a_conversation(harness: GatewayHarness) -> None:
    async def tokenized(**body: Any) -> Any:
        answer = await harness.http.post("/tokenize", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    plain = {"count": 2, "max_model_len": 64, "tokens": [104, 105], "token_strs": None}
    assert await tokenized(prompt="hi") == await tokenized(model="tiny-base", prompt="hi") == plain
    assert (await tokenized(prompt="hi", return_token_strs=True))["token_strs"] == ["h", "i"]
    assert (await tokenized(prompt="hi", add_special_tokens=False))["tokens"] == [0, 104, 105]
    messages = [{"role": "user", "content": "hi"}]
    assert (await tokenized(messages=messages))["tokens"] == [0, *b"hi>"]
    assert (await tokenized(messages=messages, add_generation_prompt=False))["tokens"] == [0, *b"hi"]
    assert (await tokenized(prompt="x" * 1000))["count"] == 1000  # longer than the context: it is only counted


async def test_token_ids_become_text(harness: GatewayHarness) -> None:
    answer = await harness.http.post("/detokenize", json={"tokens": [104, 105]})
    assert answer.json() == {"prompt": "hi"}
    assert (await harness.http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/tokenize", {}, "prompt", "required"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt", "give one"),
        ("/tokenize", {"prompt": ["a", "b"]}, "prompt", "a string"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "for messages"),
        ("/tokenize", {"messages": []}, "messages", "empty"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "add_special_tokens",
            "template",
        ),
        ("/tokenize", {"prompt": "x" * (tokenization.MAX_TEXT_CHARS + 1)}, "prompt", "at most 1048576"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "x" * (tokenization.MAX_TEXT_CHARS + 1)}]},
            "messages",
            "at most 1048576",
        ),
        ("/detokenize", {}, "tokens", "required"),
        ("/detokenize", {"tokens": "hi"}, "tokens", "a list of token ids"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens", "token id"),
        ("/detokenize", {"tokens": [256]}, "tokens", "0 to 255"),
        ("/detokenize", {"tokens": [1] * (tokenization.MAX_TOKENS + 1)}, "tokens", "at most 131072"),
    ],
)
async def test_what_is_refused(harness: GatewayHarness, path: str, body: Any, param: str, says: str) -> None:
    found = error(await harness.http.post(path, json=body), 400)
    assert found["param"] == param
    assert says in found["message"]


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})])
async def test_an_unknown_model(harness: GatewayHarness, path: str, body: Any) -> None:
    found = error(await harness.http.post(path, json={"model": "intends", **body}), 404)
    assert found["code"] == "model_not_found"
