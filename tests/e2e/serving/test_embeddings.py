"""Embeddings on the real server: by the official client, by adapters in one batch, beside chats, equal to PEFT's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.engine.request import Pooling
from tests.e2e.requests import asking_all_the_time
from tests.e2e.server_process import BASE, Server, eventually
from tests.engine import zoo

TOPICS = {
    "cards": ["My credit card was declined at the shop.", "The bank blocked my debit card."],
    "weather": ["It will rain and storm tomorrow.", "Sunny skies and a light wind are expected today."],
    "cooking": ["Boil the pasta and add the tomato sauce.", "Bake the bread in a hot oven for an hour."],
}


@pytest.mark.usefixtures("adapters")
def test_the_official_client(server: Server) -> None:
    texts = [text for both in TOPICS.values() for text in both]
    # Unless told otherwise the client asks for base64, which its own strict types do not allow for.
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        packed = client.embeddings.create(model="intents", input=texts)
        base = client.embeddings.create(model=BASE, input=texts)
    with server.openai() as client:
        plain = client.embeddings.create(model="intents@1", input=texts, encoding_format="float", dimensions=576)
    assert [item.index for item in packed.data] == list(range(len(texts)))
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-6)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == plain.usage.total_tokens
    assert packed.model_extra == {"graftwork": {"adapter": "intents@1", "pooling": "mean"}}
    assert packed.data[0].embedding != base.data[0].embedding
    vectors = np.array([item.embedding for item in base.data])
    cosines = vectors @ vectors.T - 2 * np.eye(len(texts))
    assert [int(row.argmax()) for row in cosines] == [1, 0, 3, 2, 5, 4]  # the nearest is of the same topic


def test_adapters_in_one_batch_equal_peft(
    exact_server: Server, folders: dict[str, Path], embedded_base: BaseInfo
) -> None:
    prompts = Prompts(Path(embedded_base.path))
    texts = ["How do I get my money back for a card payment?", "Hello", "The lighthouse stands where land ends. " * 40]
    names = (None, "intents", "cards", "refunds")
    asked: list[tuple[str | None, Pooling]] = [(name, pooling) for name in names for pooling in ("mean", "last")]

    def ask(client: openai.OpenAI, name: str | None, pooling: Pooling) -> list[list[float]]:
        answer = client.embeddings.create(
            model=name or BASE, input=texts, encoding_format="float", extra_body={"pooling": pooling}
        )
        return [item.embedding for item in answer.data]

    with (
        asking_all_the_time(exact_server, ("billing", "intents"), num_clients=2) as load,
        exact_server.openai() as client,
        ThreadPoolExecutor(len(asked)) as pool,
    ):
        vectors = list(pool.map(lambda each: ask(client, *each), asked))
    assert not load.failures
    models = {None: zoo.load_reference(embedded_base)}
    models |= {name: zoo.with_adapter(embedded_base, folders[f"{name}@1"]) for name in names if name}  # type: ignore[misc]
    for (name, pooling), found in zip(asked, vectors, strict=True):
        for text, vector in zip(texts, found, strict=True):
            expected = zoo.reference_embedding(models[name], prompts.encode(text), pooling)
            assert float((torch.tensor(vector) - expected).abs().max()) < 1e-4, (name, pooling, text[:20])


def test_more_inputs_than_the_queue_has_places(server: Server) -> None:
    inputs = [[100 + index % 50] * (1 + index % 3) for index in range(400)]
    before = server.metric("prompt_tokens_total", adapter=BASE)
    with server.client() as client:
        embeddings = client.embed(BASE, inputs)
        assert embeddings.usage.total_tokens == sum(map(len, inputs))
        assert server.metric("prompt_tokens_total", adapter=BASE) - before == sum(map(len, inputs))
        assert len(embeddings.vectors) == len(inputs)
        for index in (0, 151, 399):
            (alone,) = client.embed(BASE, [inputs[index]]).vectors
            assert np.dot(alone, embeddings.vectors[index]) > 0.999


def test_inputs_that_nobody_waits_for(server: Server) -> None:
    body = {"model": BASE, "input": ["word " * 4000] * 64}
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/embeddings", json=body, timeout=2)
    eventually(lambda: server.metric("running") == server.metric("queue_depth") == 0, 10, "the engine stops")


def test_tokens(server: Server) -> None:
    with server.client() as client:
        text = "Grüße aus <|im_start|> dem Café"
        tokenized = client.tokenize(text, model=BASE, return_token_strs=True)
        assert tokenized.count == len(tokenized.tokens) == len(tokenized.token_strs or ())
        assert tokenized.max_model_len == 8192
        assert client.detokenize(tokenized.tokens) == text
        messages = [{"role": "user", "content": "hi"}]
        asked = client.chat(BASE, messages, max_tokens=1, store=False)
        assert client.tokenize(messages).count == asked.usage.prompt_tokens
        without = client.tokenize(messages, add_generation_prompt=False)
        assert client.detokenize(without.tokens).endswith("hi<|im_end|>\n")
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        with_tool = client.chat(BASE, messages, tools=[tool], max_tokens=1, store=False)
        assert (
            client.tokenize(messages, tools=[tool]).count == with_tool.usage.prompt_tokens > asked.usage.prompt_tokens
        )
        assert client.version()
