"""Fields of vLLM's that say how a prompt is made and what is shown of it."""

from __future__ import annotations

import httpx
import pytest

from graftwork.clients.client import Client
from tests.e2e.server_process import BASE, Server

ASK = [{"role": "user", "content": "Name a fruit."}]


@pytest.fixture
def client(server: Server) -> Client:
    return server.client()


def test_an_answer_goes_on_from_the_last_message(client: Client) -> None:
    begun = [*ASK, {"role": "assistant", "content": "One fruit is the"}]
    tokens = client.tokenize(begun, continue_final_message=True)
    text = client.detokenize(tokens.tokens)
    assert text.endswith("<|im_start|>assistant\nOne fruit is the")
    by_hand = client.complete(BASE, tokens.tokens, max_tokens=8, temperature=0, store=False)
    continued = client.chat(BASE, begun, continue_final_message=True, max_tokens=8, temperature=0, store=False)
    assert continued.text == by_hand.text
    assert continued.usage.prompt_tokens == tokens.count
    bare = client.chat(BASE, ASK, add_generation_prompt=False, max_tokens=1, store=False)
    assert bare.usage.prompt_tokens == client.tokenize(ASK, add_generation_prompt=False).count


def test_a_template_is_given_what_it_may_not_know(client: Client) -> None:
    asked = client.chat(BASE, ASK, chat_template_kwargs={"enable_thinking": False}, max_tokens=1, store=False)
    assert asked.usage.prompt_tokens == client.tokenize(ASK).count


def test_special_tokens_are_shown(client: Client) -> None:
    options = {"max_tokens": 3, "temperature": 0, "logit_bias": {"1": 100}, "ignore_eos": True, "store": False}
    assert client.chat(BASE, ASK, **options).text == ""  # type: ignore[arg-type]
    shown = client.chat(BASE, ASK, skip_special_tokens=False, **options)  # type: ignore[arg-type]
    assert shown.text == "<|im_start|>" * 3
    assert client.complete(BASE, "A", skip_special_tokens=False, **options).text == shown.text  # type: ignore[arg-type]


def test_scores_of_the_prompt(server: Server, client: Client) -> None:
    text = "The capital of France is Paris"
    score = client.score(BASE, text, top=2)
    completion = client.complete(BASE, text, prompt_logprobs=2, max_tokens=1, store=False)
    (choice,) = completion.choices
    assert choice.prompt_logprobs is not None
    assert choice.prompt_logprobs[0] is None
    tokens = client.tokenize(text).tokens
    for position, (token_id, logprob) in enumerate(zip(tokens, score.logprobs, strict=True)):
        entries = choice.prompt_logprobs[position]
        if entries is None:
            assert position == 0
            continue
        own = entries[str(token_id)]
        assert own.logprob == pytest.approx(logprob, abs=0.05)
        assert 2 <= len(entries) <= 3
        likeliest = [entry.rank for entry in entries.values() if entry.rank is not None]
        assert sorted(likeliest) == [1, 2]
        assert own.rank in (None, 1, 2)
    chat = client.chat(BASE, ASK, prompt_logprobs=0, max_tokens=1, store=False)
    assert chat.prompt_logprobs is not None
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens
    assert all(entries is None or len(entries) == 1 for entries in chat.prompt_logprobs)
    plain = httpx.post(
        f"{server.url}/v1/completions", json={"model": BASE, "prompt": "a", "max_tokens": 1, "store": False}, timeout=60
    )
    assert "prompt_logprobs" not in plain.json()["choices"][0]
