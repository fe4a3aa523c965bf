"""Simulated users, who send queries with known answers and give feedback on each answer.

A right answer gets a thumb up, a wrong one a thumb down and a correction. Users send requests as applications do,
without versions or experiments.
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
"""The system message of every query, in training and in requests."""

MAX_TOKENS: Final = 32
"""Maximum length of an answer; labels are shorter."""

CONCURRENCY: Final = 8
"""Number of concurrent users."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class UserAnswer:
    """An answer that a user got. ``adapter`` is the version that answered, ``arm`` the arm of an experiment if it was
    one, and ``seconds`` the latency."""

    query: Query
    answer: str
    adapter: str
    arm: str | None
    id: str
    seconds: float

    @property
    def right(self) -> bool:
        """Whether the answer is the label."""
        return self.answer == self.query.label


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """All queries of a user; ``seconds`` is the time from the first query to the last feedback."""

    user: str
    answers: tuple[UserAnswer, ...]
    seconds: float


class Users:
    """The users of an adapter. It can be shared by threads."""

    def __init__(self, client: Client, adapter: str) -> None:
        self._client = client
        self._adapter = adapter

    def ask(self, query: Query, *, user: str | None = None, version: str | None = None) -> UserAnswer:
        """Send a query. With ``version`` it is sent to that version and not logged, as it is a measurement."""
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
        """Send the queries of a user one after the other, with feedback on each answer."""
        began = time.monotonic()
        answers = []
        for query in queries:
            answers.append(answer := self.ask(query, user=user))
            if answer.right:
                self._client.feedback.send(answer.id, thumb="up")
            else:
                self._client.feedback.send(answer.id, thumb="down", correction=query.label)
        return Visit(user=user, answers=tuple(answers), seconds=time.monotonic() - began)


def conversation(query: Query) -> list[dict[str, str]]:
    """Return the messages of a query."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": query.text}]


def run_concurrently(
    work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int = CONCURRENCY
) -> Iterator[Result]:
    """Call ``work`` with each item in threads, and yield the results as they become available.

    Items are taken from the iterable only when a thread is free. If iteration ends early, calls that began are
    completed. Errors of ``work`` are raised.

    Args:
        work: the function.
        items: its arguments.
        at_once: number of threads.
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
