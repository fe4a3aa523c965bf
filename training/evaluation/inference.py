"""What an evaluation asks of a server: greedy answers, scores of tokens and losses, several requests at a time, within
what the server takes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.types.generation import Score
from graftwork.training.data.row import Row
from graftwork.training.data.tokens import LabeledTokens, tokenize, tokenize_questions
from graftwork.training.evaluation.metrics import mean_loss

AT_ONCE: Final = 8
"""Requests under way at the same time."""


TOP: Final = 5
"""Most likely tokens that are compared for the divergence."""

SPARE: Final = 8
"""Tokens that an answer may have beyond the longest right one."""

T = TypeVar("T")


R = TypeVar("R")


# --- asking -----------------------------------------------------------------------------------------------------------


class ServedModels:
    """``max_length`` is what the server takes of a prompt and its answer together, in tokens."""

    def __init__(self, client: Client, prompts: Prompts, max_length: int) -> None:
        self._client, self._prompts, self._max_length = client, prompts, max_length

    def fits(self, row: Row) -> bool:
        """Whether the server can be asked it, and has room for an answer like the right one."""
        if row.kind == "text":
            return bool(self.tokens([row]))
        return self._room(row) >= len(self._prompts.encode(row.answer)) + SPARE

    def _room(self, row: Row) -> int:
        """Tokens that are left for an answer; none where it cannot be asked at all."""
        asked = tokenize_questions([row], self._prompts, max_length=self._max_length, eos_token_id=None).sequences
        return self._max_length - len(asked[0]) if asked else 0

    def answers(self, model: str, rows: Sequence[Row], longest: int) -> list[str]:
        def ask(row: Row) -> str:
            max_tokens = min(longest, self._room(row))
            options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "store": False}
            if row.messages:
                answer = self._client.chat(model, [dict(turn) for turn in row.messages[:-1]], **options)
                return answer.choices[0].message.content or ""
            return self._client.complete(model, row.prompt, **options).choices[0].text

        return _all(ask, rows)

    def scores(self, model: str, tokens: Sequence[LabeledTokens]) -> list[Score]:
        return _all(lambda row: self._client.score(model, row.input_ids, top=TOP), tokens)

    def loss(self, model: str, tokens: Sequence[LabeledTokens]) -> float:
        return mean_loss(tokens, self.scores(model, tokens))

    def tokens(self, rows: Iterable[Row]) -> list[LabeledTokens]:
        ends = self._prompts.eos_token_ids
        end = min(ends) if ends else None
        most = min(MAX_LENGTH, self._max_length)
        found: list[LabeledTokens] = []
        for row in rows:
            pieces = tokenize([row], self._prompts, max_length=most, eos_token_id=end).sequences
            found += pieces[:1] if row.kind == "text" else pieces
        return found

    def texts(self, texts: Iterable[str]) -> list[LabeledTokens]:
        encoded = [list(self._prompts.encode(text))[: self._max_length] for text in texts]
        return [LabeledTokens(input_ids=ids, labels=list(ids)) for ids in encoded]


MAX_LENGTH: Final = 1024
"""Tokens of a row whose loss is measured."""


def _all(ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, items))


def sample_rows(items: Sequence[T], most: int, drawn: random.Random) -> list[T]:
    return list(items) if len(items) <= most else drawn.sample(list(items), most)
