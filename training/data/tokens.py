"""Rows → token ids, for each way of learning from them.

Token ids come from ``graftwork.adapters.prompts.prompts``, as in serving: what stands before an answer in training
is, id by id, what the server will put before it. Loss falls on answers alone, their end-of-turn token included.

The fields are called as TRL's columns are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.learning.methods import LearnsFrom
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.data.row import BadRow, Row, Unusable

IGNORED: Final = -100
"""The label of a token that is read but not learned: what torch's cross entropy leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledTokens:
    """One sequence for the model. ``labels[i]`` is ``input_ids[i]`` where it is learned and IGNORED elsewhere;
    ``weight`` is how much its loss counts beside that of others."""

    input_ids: list[int]
    labels: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTokens:
    """A question and two answers: what DPO's collator takes."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedTokens:
    """A question and an answer that is good or not: what KTO's collator takes."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionTokens:
    """A question that the model is to answer itself: what TRL's trainers take that have it do so.

    ``prompt`` are the ids served before an answer. ``question`` is the same for people and reward functions, as JSON:
    messages, or a plain prompt's text; ``answer`` is what the row says is right.
    """

    prompt: list[int]
    question: str
    answer: str

    def __len__(self) -> int:
        return len(self.prompt)


TokenRow = LabeledTokens | PairTokens | JudgedTokens | QuestionTokens
"""A row as some method learns from it."""

TokensT = TypeVar("TokensT", LabeledTokens, PairTokens, JudgedTokens, QuestionTokens)


@dataclass(frozen=True, kw_only=True)
class Tokenized(Generic[TokensT]):
    """Sequences ready for the trainer; rows that lost the end of an answer to the limit are counted, rows that could
    not be used are listed."""

    sequences: tuple[TokensT, ...]
    bad: tuple[BadRow, ...]
    num_cut: int

    @property
    def longest(self) -> int:
        return max((len(tokens) for tokens in self.sequences), default=0)


def tokenize(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[LabeledTokens]:
    """Examples and texts, for supervised training and continued pretraining.

    A sequence has at most ``max_length`` tokens. What is longer is cut at its end, and a text goes on in the next one;
    a row whose answers are cut off whole is bad, since there would be nothing to learn in it. ``eos_token_id`` ends the
    answers of a template that does not end them itself, and texts.
    """

    def convert(row: Row) -> tuple[list[LabeledTokens], bool]:
        if row.kind == "text":
            return list(_chunks(row, prompts, max_length, eos_token_id)), False
        whole = list(_sequences(row, prompts, eos_token_id))
        kept = [cut for tokens in whole if (cut := _cut(tokens, max_length)) is not None]
        if not kept:
            raise _nothing_left(max(map(len, whole)), max_length)
        return kept, any(len(tokens) > max_length for tokens in whole)

    return _each(rows, convert)


def tokenize_pairs(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[PairTokens]:
    """Preferences, for DPO. Both answers are cut at ``max_length``; a row that leaves nothing to compare is bad."""

    def convert(row: Row) -> tuple[list[PairTokens], bool]:
        assert row.rejected is not None
        prompt, chosen = _prompt_and_answer(row, row.answer, prompts, eos_token_id)
        _, rejected = _prompt_and_answer(row, row.rejected, prompts, eos_token_id)
        room = max_length - len(prompt)
        if room <= 0 or chosen[:room] == rejected[:room]:
            raise _nothing_left(len(prompt) + max(len(chosen), len(rejected)), max_length)
        tokens = PairTokens(prompt_ids=prompt, chosen_ids=chosen[:room], rejected_ids=rejected[:room])
        return [tokens], max(len(chosen), len(rejected)) > room

    return _each(rows, convert)


def tokenize_judged(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[JudgedTokens]:
    """Judged answers, for TokenIdKTOTrainer. An answer is cut at ``max_length``; a row of which nothing is left is
    bad."""

    def convert(row: Row) -> tuple[list[JudgedTokens], bool]:
        assert row.label is not None
        prompt, answer = _prompt_and_answer(row, row.answer, prompts, eos_token_id)
        room = max_length - len(prompt)
        if room <= 0:
            raise _nothing_left(len(prompt) + len(answer), max_length)
        tokens = JudgedTokens(prompt_ids=prompt, completion_ids=answer[:room], label=row.label)
        return [tokens], len(answer) > room

    return _each(rows, convert)


def tokenize_questions(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[QuestionTokens]:
    """What stands before the last answer. A question of ``max_length`` tokens or more leaves no room for one: bad."""

    def convert(row: Row) -> tuple[list[QuestionTokens], bool]:
        asked: Any = [dict(turn) for turn in row.messages[:-1]] if row.messages else row.prompt
        prompt = prompts.chat(asked) if row.messages else prompts.encode(row.prompt)
        if len(prompt) >= max_length:
            raise _nothing_left(len(prompt) + 1, max_length)
        question = json.dumps(asked, ensure_ascii=False)
        return [QuestionTokens(prompt=prompt, question=question, answer=row.answer)], False

    return _each(rows, convert)


TOKENIZE: Final[Mapping[LearnsFrom, Callable[..., Tokenized[Any]]]] = {
    "answers": tokenize,
    "pairs": tokenize_pairs,
    "judgements": tokenize_judged,
    "questions": tokenize_questions,
}
"""By what a method learns from."""


def _each(rows: Iterable[Row], convert: Callable[[Row], tuple[list[TokensT], bool]]) -> Tokenized[TokensT]:
    sequences: list[TokensT] = []
    bad: list[BadRow] = []
    num_cut = 0
    for row in rows:
        try:
            found, is_cut = convert(row)
        except InvalidRequest as problem:
            bad.append(Unusable(problem.message).bad_row(row.source, row.line))
        except Unusable as problem:
            bad.append(problem.bad_row(row.source, row.line))
        else:
            sequences += found
            num_cut += is_cut
    return Tokenized(sequences=tuple(sequences), bad=tuple(bad), num_cut=num_cut)


def _nothing_left(length: int, max_length: int) -> Unusable:
    return Unusable(f"{length} tokens: nothing of the answer is left within the limit of {max_length} (--max-length)")


def _prompt_and_answer(
    row: Row, answer: str, prompts: Prompts, eos_token_id: int | None
) -> tuple[list[int], list[int]]:
    """The ids that are served before the answer, and those of the answer up to its end."""
    if not row.messages:
        prompt = prompts.encode(row.prompt)
        turn = prompts.encode(row.prompt + answer)
    else:
        *asked, last = row.messages
        if answer != row.answer:
            last = {"role": "assistant", "content": answer}
        prompt = prompts.chat(asked)
        turn = prompts.chat([*asked, last], add_generation_prompt=False)
    return prompt, _answer(prompt, turn, prompts.eos_token_ids, eos_token_id)


def _sequences(row: Row, prompts: Prompts, eos_token_id: int | None) -> Iterator[LabeledTokens]:
    """The row as one sequence with every answer learned in its place. An answer that the template writes differently
    once more turns follow becomes a sequence of its own, so that it is learned after the very ids served before it."""
    if not row.messages:
        prompt, answer = _prompt_and_answer(row, row.completion, prompts, eos_token_id)
        yield _learning(prompt + answer, [(len(prompt), len(prompt) + len(answer))], row.weight)
        return
    whole = prompts.chat(row.messages, add_generation_prompt=False)
    spans: list[tuple[int, int]] = []
    for index in reversed(row.learned):
        prompt = prompts.chat(row.messages[:index])
        turn = prompts.chat(row.messages[: index + 1], add_generation_prompt=False)
        answer = _answer(prompt, turn, prompts.eos_token_ids, eos_token_id)
        served = prompt + answer
        if index == len(row.messages) - 1:
            whole = served
        if whole[: len(served)] == served:
            spans.append((len(prompt), len(served)))
        else:
            yield _learning(served, [(len(prompt), len(served))], row.weight)
    if spans:
        yield _learning(whole, spans, row.weight)


def _answer(prompt: list[int], turn: list[int], eos_token_ids: Collection[int], eos_token_id: int | None) -> list[int]:
    """What the model is to say after ``prompt`` so that ``turn`` stands there, up to the token that ends it."""
    if turn[: len(prompt)] != prompt:
        raise Unusable(
            "the prompt's last token is not the same once the answer follows, so that another prompt would be learned "
            "than is served: begin the answer without white space, or end a plain prompt on a whole word"
        )
    answer = turn[len(prompt) :]
    ends = [position for position, token_id in enumerate(answer) if token_id in eos_token_ids]
    if ends:
        return answer[: ends[0] + 1]
    # A template without an end of turn would teach an answer that never stops.
    return answer if eos_token_id is None else [*answer, eos_token_id]


def _chunks(row: Row, prompts: Prompts, max_length: int, eos_token_id: int | None) -> Iterator[LabeledTokens]:
    """A text in pieces that follow each other; each token is learned after those of its own piece."""
    ids = prompts.encode(row.completion)
    if eos_token_id is not None and ids[-1:] != [eos_token_id]:
        ids = [*ids, eos_token_id]
    for start in range(0, len(ids), max_length):
        piece = ids[start : start + max_length]
        if len(piece) > 1:  # the first token of a piece has nothing before it to be learned from
            yield LabeledTokens(input_ids=piece, labels=list(piece), weight=row.weight)


def _learning(input_ids: list[int], spans: Sequence[tuple[int, int]], weight: float) -> LabeledTokens:
    labels = [IGNORED] * len(input_ids)
    for start, end in spans:
        labels[start:end] = input_ids[start:end]
    return LabeledTokens(input_ids=input_ids, labels=labels, weight=weight)


def _cut(tokens: LabeledTokens, max_length: int) -> LabeledTokens | None:
    """The first ``max_length`` tokens; None when nothing of them is learned. The first token of all never is."""
    input_ids, labels = tokens.input_ids[:max_length], tokens.labels[:max_length]
    if all(label == IGNORED for label in labels[1:]):
        return None
    return LabeledTokens(input_ids=input_ids, labels=labels, weight=tokens.weight)
