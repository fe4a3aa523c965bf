"""Batched inference over the server's API, as an evaluation needs it: greedy answers, token scores and losses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.types.generation import ChatMessage, Score
from graftwork.training.data.row import Message, Row, assistant_message, text_of
from graftwork.training.data.tokens import LabeledTokens, count_tokens, tokenize, tokenize_questions
from graftwork.training.evaluation.metrics import RowLosses, row_losses

AT_ONCE: Final = 8
"""Number of concurrent requests."""


TOP: Final = 5
"""Number of the most likely tokens that are compared for the KL divergence."""

SPARE: Final = 8
"""Tokens that an answer may have beyond the length of its reference answer."""

T = TypeVar("T")


R = TypeVar("R")


class ServedModels:
    """The models of a server.

    Args:
        client: the client of the server.
        prompts: the tokenizer and chat template of the base.
        max_length: maximum length of a prompt and its answer together, in tokens.
    """

    def __init__(self, client: Client, prompts: Prompts, max_length: int) -> None:
        self._client, self._prompts, self._max_length = client, prompts, max_length

    def fits(self, row: Row) -> bool:
        """Whether the server accepts the row's prompt with an answer as long as its reference answer."""
        if row.kind == "text":
            return bool(self.tokens([row]))
        try:
            return self._max_answer_tokens(row) >= self.answer_tokens(row) + SPARE
        except InvalidRequest:  # of the chat template
            return False

    def answer_tokens(self, row: Row) -> int:
        """Return the length of the row's reference answer as the model writes it, in tokens.

        Raises:
            InvalidRequest: if the base's chat template refuses the row.
        """
        question, whole = count_tokens(row, self._prompts)
        return max(whole - question, 0)

    def _max_answer_tokens(self, row: Row) -> int:
        """Return the maximum length of an answer in tokens; 0 if the prompt alone is too long."""
        asked = tokenize_questions([row], self._prompts, max_length=self._max_length, eos_token_id=None).sequences
        return self._max_length - len(asked[0]) if asked else 0

    def answers(self, model: str, rows: Sequence[Row], longest: int) -> list[str]:
        """Generate a greedy answer of at most ``longest`` tokens to the question of each row. Nothing is logged."""

        def ask(row: Row) -> str:
            max_tokens = min(longest, self._max_answer_tokens(row))
            options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "store": False}
            if row.messages:
                if row.tools:
                    options["tools"] = row.tools
                answer = self._client.chat(model, list(map(_as_sent, row.messages[:-1])), **options)
                return _text_of_answer(answer.choices[0].message)
            return self._client.complete(model, row.prompt, **options).choices[0].text

        return _all(ask, rows)

    def scores(self, model: str, tokens: Sequence[LabeledTokens]) -> list[Score]:
        """Score each sequence: log-probabilities of its tokens, and of the `TOP` most likely ones."""
        return _all(lambda row: self._client.score(model, row.input_ids, top=TOP), tokens)

    def losses(self, model: str, tokens: Sequence[LabeledTokens]) -> RowLosses:
        """Compute the loss of each sequence over its learned tokens, in nats."""
        return row_losses(tokens, self.scores(model, tokens))

    def tokens(self, rows: Iterable[Row]) -> list[LabeledTokens]:
        """Tokenize rows for scoring, truncated to `MAX_LENGTH` and the server's limit; of a text the first sequence.
        Rows that cannot be tokenized are left out."""
        ends = self._prompts.eos_token_ids
        end = min(ends) if ends else None
        most = min(MAX_LENGTH, self._max_length)
        found: list[LabeledTokens] = []
        for row in rows:
            pieces = tokenize([row], self._prompts, max_length=most, eos_token_id=end).sequences
            found += pieces[:1] if row.kind == "text" else pieces
        return found

    def texts(self, texts: Iterable[str]) -> list[LabeledTokens]:
        """Tokenize plain texts for scoring, truncated to the server's limit; all tokens have labels."""
        encoded = [list(self._prompts.encode(text))[: self._max_length] for text in texts]
        return [LabeledTokens(input_ids=ids, labels=list(ids)) for ids in encoded]


MAX_LENGTH: Final = 1024
"""Maximum length of a sequence whose loss is measured, in tokens."""


def _as_sent(message: Message) -> Message:
    """A message as requests have it: the arguments of tool calls are texts."""
    if "tool_calls" not in message:
        return message
    functions = [(call, call["function"]) for call in message["tool_calls"]]
    calls = [
        {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
        for call, function in functions
    ]
    return {**message, "tool_calls": calls}


def _text_of_answer(answer: ChatMessage) -> str:
    """A generated answer as `Row.answer` has it, to be compared with one."""
    calls = [
        {"function": {"name": call.function.name, "arguments": _parsed(call.function.arguments)}}
        for call in answer.tool_calls
    ]
    return text_of(assistant_message(answer.content or "", calls))


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):  # a model may write anything
        return arguments


def _all(ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, items))


def sample_rows(items: Sequence[T], most: int, random_generator: random.Random) -> list[T]:
    """Return all items if there are at most ``most``, else a random sample of that size."""
    return list(items) if len(items) <= most else random_generator.sample(list(items), most)
