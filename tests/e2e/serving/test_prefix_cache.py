"""The prefix cache: visible in usage, metrics and latency, without an effect on answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion

from tests.e2e.conftest import MakeServer
from tests.e2e.requests import INT8_TOLERANCE
from tests.e2e.server_process import BASE, Server

#: Some 450 tokens.
HOUSE_RULES = "You work at the help desk of a small bank. " + " ".join(
    f"Rule {number}: be brief, be kind, promise nothing that you cannot keep." for number in range(1, 28)
)


@pytest.fixture(scope="module")
def client(server: Server, adapters: tuple[str, ...]) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


def cached(usage: CompletionUsage | None) -> int:
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    return usage.prompt_tokens_details.cached_tokens


def chat(client: openai.OpenAI, model: str, *turns: str, **options: object) -> ChatCompletion:
    """``turns`` by user and assistant alternately, below the house rules."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    options = {"max_tokens": 12, "temperature": 0, **options}
    return client.chat.completions.create(  # type: ignore[call-overload, no-any-return]
        model=model, messages=[{"role": "system", "content": HOUSE_RULES}, *messages], **options
    )


def complete(server: Server, model: str, prompt: str, *, echo: bool) -> dict[str, Any]:
    """With ``echo`` the prompt is scored, and so computed; the official client's types do not know such answers."""
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json={**body, "echo": echo}, timeout=120).raise_for_status()
    said: dict[str, Any] = answer.json()
    return {"cached": said["usage"]["prompt_tokens_details"]["cached_tokens"], **said["choices"][0]}


def test_a_growing_chat_is_computed_once(client: openai.OpenAI) -> None:
    first = chat(client, "billing", "How do I open an account?")
    assert first.usage is not None
    said = first.choices[0].message.content or ""
    second = chat(client, "billing", "How do I open an account?", said, "And for my daughter?")
    assert second.usage is not None
    assert cached(second.usage) >= first.usage.prompt_tokens
    assert second.usage.prompt_tokens - cached(second.usage) < 40


def test_answers_are_those_of_computing_everything(server: Server, adapters: tuple[str, ...]) -> None:
    """A prompt whose scores are asked for is computed from its start: what follows must be the same."""
    for model in (BASE, "cards"):
        complete(server, model, HOUSE_RULES, echo=False)
        for end in (" Question: Who are you?", " Question: Can I have my money back?"):
            found = complete(server, model, HOUSE_RULES + end, echo=False)
            whole = complete(server, model, HOUSE_RULES + end, echo=True)
            assert found["cached"] > 400
            assert whole["cached"] == 0
            assert whole["text"] == HOUSE_RULES + end + found["text"]
            mine, other = (answer["logprobs"]["token_logprobs"][-12:] for answer in (found, whole))
            assert mine == pytest.approx(other, abs=INT8_TOLERANCE)


def test_clients_that_come_together_share_their_beginning(server: Server, client: openai.OpenAI) -> None:
    before = [server.metric(f"prefix_{what}tokens_total") for what in ("", "hit_")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: chat(client, "delivery", f"My parcel {i} is late. What now?"), range(8)))
    counts = sorted(cached(answer.usage) for answer in answers)
    assert counts[0] < 100  # the first of them found the template's beginning at most
    assert counts[1] > 400
    asked, found = (server.metric(f"prefix_{what}tokens_total") for what in ("", "hit_"))
    assert asked - before[0] == sum(answer.usage.prompt_tokens for answer in answers if answer.usage)
    assert found - before[1] == sum(counts)


def test_choices_of_one_prompt_share_it(client: openai.OpenAI) -> None:
    answer = chat(client, "greetings", "Good morning!", n=3, temperature=1, seed=5)
    assert cached(answer.usage) < 100  # one of the three computed it
    assert cached(chat(client, "greetings", "Good morning!").usage) > 400


def test_an_adapter_is_known_by_its_files(server: Server, folders: dict[str, Path], client: openai.OpenAI) -> None:
    """The name is the same, the version is not: nothing of the old one is found; after a rollback it is."""
    with server.client() as operator:
        operator.adapters.push("shared-name", folders["returns@1"])
        first = chat(client, "shared-name", "I want to return a coat.")
        assert cached(chat(client, "shared-name", "I want to return a coat.").usage) > 400
        pushed = operator.adapters.push("shared-name", folders["returns@2"])
        operator.adapters.promote("shared-name", pushed.version)
        promoted = chat(client, "shared-name", "I want to return a coat.")
        assert cached(promoted.usage) == 0
        operator.adapters.rollback("shared-name")
        back = chat(client, "shared-name", "I want to return a coat.")
        assert cached(back.usage) > 400
    assert first.choices[0].message.content == back.choices[0].message.content
    # Other names for the same files share what was computed.
    assert cached(chat(client, "returns", "I want to return a coat.").usage) > 400


def test_the_second_time_takes_a_part_of_the_time(server: Server, adapters: tuple[str, ...]) -> None:
    """By how much exactly is for the benchmarks to say, here only that it is far from the same."""
    rules = HOUSE_RULES * 2
    seconds = []
    for question in ("Who are you?", "What can you do?"):
        began = time.monotonic()
        complete(server, "summaries", f"{rules} {question}", echo=False)
        seconds.append(time.monotonic() - began)
    assert seconds[1] < 0.6 * seconds[0]


def test_cancelled_prompts_leave_what_they_had(server: Server, client: openai.OpenAI) -> None:
    """A client that leaves does no harm to whoever asks the same afterwards."""
    prompt = "Another beginning. " + HOUSE_RULES * 2
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(model="intents", prompt=prompt, max_tokens=1000)
    found = complete(server, "intents", prompt, echo=False)
    whole = complete(server, "intents", prompt, echo=True)
    assert whole["text"] == prompt + found["text"]


@pytest.mark.slow
def test_without_it_nothing_is_found(new_server: MakeServer) -> None:
    server = new_server("--no-prefix-cache").start_and_wait()
    with server.openai() as client:
        for _ in range(3):
            assert cached(chat(client, BASE, "Good morning!").usage) == 0
    assert server.metric("prefix_hit_tokens_total") == server.metric("retained_tokens") == 0
    assert server.metric("prefix_tokens_total") > 1200
    assert server.stop() == 0
