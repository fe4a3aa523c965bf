"""Simulated users: each asks what it is given, knows the right answer, and says of every answer whether it is right.

What is wrong gets a thumb down and a correction, what is right a thumb up. They use the server as applications do, and
know nothing of versions or experiments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, TypeVar

from graftwork.clients.client import Client
from graftwork.clients.demo.queries import Query

SYSTEM: Final = "Name the intent."
"""The task, as short as it can be: it stands before every query, in training and in traffic."""

MAX_TOKENS: Final = 32
"""Longer than any label."""

CONCURRENCY: Final = 8
"""Users who wait for an answer at the same time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserAnswer:
    """What a user was told. ``adapter`` is the version that answered, ``arm`` as what in an experiment, if in one;
    ``seconds`` until the answer was there."""

    query: Query
    answer: str
    adapter: str
    arm: str | None
    id: str
    seconds: float

    @property
    def right(self) -> bool:
        return self.answer == self.query.label


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One user with everything that they asked; ``seconds`` from the first question to the last judgement."""

    user: str
    answers: tuple[UserAnswer, ...]
    seconds: float


class Users:
    """All users of one adapter. Threads may share it."""

    def __init__(self, client: Client, adapter: str) -> None:
        self._client = client
        self._adapter = adapter

    def ask(self, query: Query, *, user: str | None = None, version: str | None = None) -> UserAnswer:
        """One question. With ``version`` that one is asked, and nothing is logged: it is a measurement."""
        began = time.monotonic()
        answer = self._client.chat(
            version or self._adapter,
            conversation(query),
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            user=user,
            store=None if version is None else False,
        )
        return UserAnswer(
            query=query,
            answer=answer.text.strip(),
            adapter=answer.adapter,
            arm=answer.graftwork.arm,
            id=answer.id,
            seconds=time.monotonic() - began,
        )

    def visit(self, user: str, queries: Sequence[Query]) -> Visit:
        """A user who comes, asks one thing after the other, and judges each answer."""
        began = time.monotonic()
        told = []
        for query in queries:
            told.append(heard := self.ask(query, user=user))
            if heard.right:
                self._client.feedback.send(heard.id, thumb="up")
            else:
                self._client.feedback.send(heard.id, thumb="down", correction=query.label)
        return Visit(user=user, answers=tuple(told), seconds=time.monotonic() - began)


def conversation(query: Query) -> list[dict[str, str]]:
    """The messages that ask it."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": query.text}]


def run_concurrently(
    work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int = CONCURRENCY
) -> Iterator[Result]:
    """What ``work`` makes of each item, as it gets ready, some at once. Items are taken one by one, as there is room.

    Left early, it waits for what was begun. Raises what ``work`` raises.
    """
    busy: set[Future[Result]] = set()
    with ThreadPoolExecutor(at_once, thread_name_prefix="user") as pool:
        for item in items:
            busy.add(pool.submit(work, item))
            if len(busy) == at_once:
                ready, busy = wait(busy, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        for future in busy:
            yield future.result()
