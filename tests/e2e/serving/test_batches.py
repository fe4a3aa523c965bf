"""Batches as the official client makes them, on the server that most tests share, beside users who ask at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.e2e.requests import asking_all_the_time
from tests.e2e.server_process import BASE, Server, eventually

CHAT = "/v1/chat/completions"

pytestmark = pytest.mark.usefixtures("adapters")


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


def chat(custom_id: str, model: str = BASE, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say {custom_id}."}]
    asked = {"model": model, "messages": messages, "max_tokens": 6, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


def create(client: openai.OpenAI, lines: list[dict[str, Any]], **given: Any) -> Batch:
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    options: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h", **given}
    return client.batches.create(input_file_id=file.id, **options)


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    def now() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in ("completed", "failed", "expired", "cancelled") else None

    found = eventually(now, 180, f"{batch.id} has ended", every=0.2)
    assert found is not None
    return found


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    rows = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    assert len({row["custom_id"] for row in rows}) == len(rows)
    return {row["custom_id"]: row for row in rows}


def test_mixed_adapters_in_one_batch(client: openai.OpenAI, adapters: tuple[str, ...]) -> None:
    models = (BASE, *adapters)
    lines = [chat(f"{number} {model}", model) for number in range(2) for model in models]
    lines += [chat("nobody", "intends"), chat("too hot", temperature=9)]
    made = create(client, lines, metadata={"night": "1"})
    assert (made.status, made.metadata, made.endpoint) == ("validating", {"night": "1"}, CHAT)
    batch = ended(client, made)
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, counts.total, counts.completed, counts.failed) == (
        "completed", len(lines), len(lines) - 2, 2,
    )  # fmt: skip
    answers, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert {name: answer["response"]["body"]["graftwork"]["adapter"] for name, answer in answers.items()} == {
        f"{number} {model}": model if model == BASE else f"{model}@1" for number in range(2) for model in models
    }
    assert errors["nobody"]["response"]["status_code"] == 404
    assert errors["too hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert next(found.id for found in client.batches.list(limit=1)) == batch.id
    # What a batch answers is what a chat answers.
    name = f"0 {adapters[0]}"
    alone = client.chat.completions.create(**{**chat(name, adapters[0])["body"], "store": False})
    assert answers[name]["response"]["body"]["usage"]["prompt_tokens"] == alone.usage.prompt_tokens  # type: ignore[union-attr]


def test_completions(client: openai.OpenAI) -> None:
    body = {"model": BASE, "prompt": ["One, two,", "A, b,"], "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    batch = ended(client, create(client, [line], endpoint="/v1/completions"))
    answer = lines_of(client, batch.output_file_id)["a"]["response"]["body"]
    assert (answer["object"], len(answer["choices"])) == ("text_completion", 2)


@pytest.mark.parametrize(
    ("endpoint", "kind", "more"),
    [("/v1/responses", "response", {"max_output_tokens": 16}), ("/v1/embeddings", "list", {})],
)
def test_other_endpoints(client: openai.OpenAI, endpoint: str, kind: str, more: dict[str, Any]) -> None:
    body = {"model": "intents", "input": "My card has not arrived.", **more}
    lines = [{"custom_id": str(number), "method": "POST", "url": endpoint, "body": body} for number in range(3)]
    batch = ended(client, create(client, lines, endpoint=endpoint))
    answers = lines_of(client, batch.output_file_id)
    assert {answer["response"]["body"]["object"] for answer in answers.values()} == {kind}
    assert len(answers) == 3


def test_a_broken_file(client: openai.OpenAI) -> None:
    batch = ended(client, create(client, [chat("a"), chat("b", stream=True), chat("a")]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.line, error.code) for error in batch.errors.data or []] == [
        (2, "unsupported_parameter"), (3, "duplicate_custom_id"),
    ]  # fmt: skip
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_cancelled(client: openai.OpenAI) -> None:
    lines = [chat("quick"), *[chat(str(number), max_tokens=2000, ignore_eos=True) for number in range(20)]]
    made = create(client, lines)
    eventually(lambda: client.batches.retrieve(made.id).request_counts.completed == 1, 60, "one is answered")  # type: ignore[union-attr]
    assert client.batches.cancel(made.id).status == "cancelling"
    asked_at = time.monotonic()
    batch = ended(client, made)
    assert time.monotonic() - asked_at < 15
    assert batch.status == "cancelled"
    assert list(lines_of(client, batch.output_file_id)) == ["quick"]
    unanswered = lines_of(client, batch.error_file_id)
    assert (len(unanswered), unanswered["0"]["response"], unanswered["0"]["error"]["code"]) == (
        20, None, "batch_cancelled",
    )  # fmt: skip


def test_users_are_answered_while_a_batch_runs(
    client: openai.OpenAI, server: Server, adapters: tuple[str, ...]
) -> None:
    made = create(client, [chat(str(number), max_tokens=60, ignore_eos=True) for number in range(60)])
    eventually(lambda: client.batches.retrieve(made.id).request_counts.completed, 60, "it runs")  # type: ignore[union-attr]
    # More than the share of the seats that batches may fill: they wait.
    with asking_all_the_time(server, adapters, num_clients=10, max_tokens=8, store=False) as load:
        eventually(lambda: len(load.answers) >= 40, 120, "users are answered")
    assert load.failures == []
    batch = ended(client, made)
    assert (batch.status, len(lines_of(client, batch.output_file_id))) == ("completed", 60)
