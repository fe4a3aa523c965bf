"""Clients of a server: sequential, concurrent, or continuous in the background."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.chat import ChatCompletionTokenLogprob

from tests.e2e.server_process import Server

PROMPT = "How do I get my money back for a card payment?"


#: By how much 8-bit activations let a token's log-probability depend on the rest of the batch; twice what was seen.
INT8_TOLERANCE = 0.02


@dataclass(frozen=True)
class Token:
    """A chosen token, its log-probability, and how much likelier it was than the next best."""

    text: str
    logprob: float
    lead: float


@dataclass(frozen=True)
class StreamedAnswer:
    """One streamed answer: who gave it, what it says, and when it began and ended (``time.monotonic``)."""

    model: str
    adapter: str
    text: str
    tokens: tuple[Token, ...]
    began: float
    ended: float

    def check_same(self, alone: StreamedAnswer, *, tolerance: float) -> None:
        """Raise unless this is the answer that was given ``alone``, as nearly as the numeric mode promises.

        Log-probabilities agree to ``tolerance``. A token may only differ where the two best ones were nearer to each
        other than that; from there on these are two texts. With a tolerance of 0 the texts are the same.
        """
        if not tolerance:
            assert self.text == alone.text, self.adapter
        for number, (mine, other) in enumerate(zip(self.tokens, alone.tokens, strict=True)):
            if mine.text != other.text:
                assert min(mine.lead, other.lead) <= 2 * tolerance, f"{self.adapter}, token {number}: {mine} {other}"
                return
            assert abs(mine.logprob - other.logprob) <= (tolerance or 1e-3), f"{self.adapter}, {number}: {mine} {other}"


def ask(
    client: openai.OpenAI, model: str, *, prompt: str = PROMPT, max_tokens: int = 16, **options: Any
) -> StreamedAnswer:
    """A greedy answer, streamed, of exactly ``max_tokens`` tokens. Raises whatever the client raises."""
    began = time.monotonic()
    with client.chat.completions.with_streaming_response.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        temperature=0,
        max_tokens=max_tokens,
        logprobs=True,
        top_logprobs=2,
        extra_body={"ignore_eos": True},
        **options,
    ) as response:
        choices = [chunk.choices[0] for chunk in response.parse()]
        adapter = response.headers["x-graftwork-adapter"]
    assert choices[-1].finish_reason == "length"
    text = "".join(choice.delta.content or "" for choice in choices)
    tokens = tuple(_token(t) for choice in choices if choice.logprobs for t in choice.logprobs.content or [])
    assert len(tokens) == max_tokens
    return StreamedAnswer(model, adapter, text, tokens, began, time.monotonic())


def _token(token: ChatCompletionTokenLogprob) -> Token:
    best, second = token.top_logprobs
    return Token(token.token, token.logprob, best.logprob - second.logprob)


def ask_together(client: openai.OpenAI, models: Sequence[str], **options: Any) -> list[StreamedAnswer]:
    """One question to each, all at the same moment."""
    together = threading.Barrier(len(models))

    def one(model: str) -> StreamedAnswer:
        together.wait()
        return ask(client, model, **options)

    with ThreadPoolExecutor(len(models)) as pool:
        return list(pool.map(one, models))


@dataclass
class Load:
    """What clients in the background have met so far."""

    answers: list[StreamedAnswer] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def adapters(self) -> set[str]:
        return {answer.adapter for answer in self.answers}


@contextmanager
def asking_all_the_time(
    server: Server, models: Iterable[str], *, num_clients: int = 4, **options: Any
) -> Iterator[Load]:
    """``num_clients`` ask for ``models`` in turn until the block ends; every one has had an answer by then."""
    load, stop = Load(), threading.Event()
    turns, lock = itertools.cycle(models), threading.Lock()

    def work(client: openai.OpenAI) -> None:
        while True:
            with lock:
                model = next(turns)
            try:
                load.answers.append(ask(client, model, **options))
            except Exception as failure:
                load.failures.append(failure)
            if stop.is_set():
                return

    with server.openai() as client, ThreadPoolExecutor(num_clients) as pool:
        done = [pool.submit(work, client) for _ in range(num_clients)]
        try:
            yield load
        finally:
            stop.set()
        for future in done:
            future.result()


class OpenStream:
    """A long answer that is being read in the background, from its first token until it ends one way or another."""

    def __init__(self, client: openai.OpenAI, model: str, *, max_tokens: int = 4000, **options: Any) -> None:
        self.text = ""
        self.num_chunks = 0
        self.error: Exception | None = None
        self.finish_reason: str | None = None
        self.ended_at: float | None = None
        self.adapter: str | None = None
        self._begun = threading.Event()
        self._close = threading.Event()
        self._create: Callable[[], Any] = lambda: client.chat.completions.with_streaming_response.create(
            model=model,
            messages=[{"role": "user", "content": PROMPT}],
            stream=True,
            temperature=0,
            max_tokens=max_tokens,
            extra_body={"ignore_eos": True},
            **options,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_until_begun(self, seconds: float = 180) -> OpenStream:
        assert self._begun.wait(seconds), "no first token"
        assert self.text, f"it ended before its first token: {self.error!r}"
        return self

    def leave(self) -> None:
        """Close the connection in the middle of the answer."""
        self._close.set()
        self.wait_until_ended()

    def wait_until_ended(self, seconds: float = 180) -> OpenStream:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the stream did not end"
        return self

    def _read(self) -> None:
        try:
            with self._create() as response:
                self.adapter = response.headers["x-graftwork-adapter"]
                for chunk in response.parse():
                    choice = chunk.choices[0]
                    self.text += choice.delta.content or ""
                    self.num_chunks += 1
                    self.finish_reason = choice.finish_reason
                    if self.text:
                        self._begun.set()
                    if self._close.is_set():
                        return
        except Exception as error:
            self.error = error
        finally:
            self.ended_at = time.monotonic()
            self._begun.set()
