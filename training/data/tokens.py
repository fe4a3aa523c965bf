"""Tokenization of rows, for each kind of training method.

Token ids come from `graftwork.adapters.prompts.prompts`, as in serving, so that the prompt before an answer has the
same token ids in training as in a request. Only the tokens of answers get a loss, with their end-of-turn token.

Field names are those of TRL's columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.learning.methods import LearnsFrom
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.data.row import BadRow, Row, Unusable, text_of

IGNORED: Final = -100
"""The label of a token without a loss: the ``ignore_index`` of torch's cross entropy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledTokens:
    """One sequence for supervised training.

    Attributes:
        input_ids: token ids, [T].
        labels: [T]; ``labels[i]`` is ``input_ids[i]`` for tokens with a loss and IGNORED elsewhere.
        weight: factor on the loss of the sequence.
    """

    input_ids: list[int]
    labels: list[int]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTokens:
    """A prompt and two completions, as DPO's collator expects them."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedTokens:
    """A prompt, a completion and whether the completion is good, as KTO's collator expects them."""

    prompt_ids: list[int]
    completion_ids: list[int]
    label: bool

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionTokens:
    """A prompt for online methods, which generate the completion themselves.

    Attributes:
        prompt: token ids of the prompt as it is served.
        question: the prompt as JSON, for reward functions and for people: a list of messages, or a plain prompt's text.
        answer: the reference answer of the row; one with tool calls as the model writes it.
        item: what graders are told of the row, as JSON.
    """

    prompt: list[int]
    question: str
    answer: str
    item: str = "{}"

    def __len__(self) -> int:
        return len(self.prompt)


TokenRow = LabeledTokens | PairTokens | JudgedTokens | QuestionTokens
"""A tokenized row, for any training method."""

TokensT = TypeVar("TokensT", LabeledTokens, PairTokens, JudgedTokens, QuestionTokens)


@dataclass(frozen=True, kw_only=True)
class Tokenized(Generic[TokensT]):
    """The tokenized rows of a data set.

    Attributes:
        sequences: the sequences for the trainer.
        bad: the rows that cannot be used, with reasons.
        num_cut: number of rows whose answer was truncated.
    """

    sequences: tuple[TokensT, ...]
    bad: tuple[BadRow, ...]
    num_cut: int

    @property
    def longest(self) -> int:
        """Length of the longest sequence, in tokens; 0 if there is none."""
        return max((len(tokens) for tokens in self.sequences), default=0)


def tokenize(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[LabeledTokens]:
    """Tokenize examples and texts, for supervised fine-tuning and continued pretraining.

    A conversation longer than ``max_length`` is truncated at its end; it is a bad row if no token of an answer is left.
    A text is divided into several sequences instead.

    Args:
        rows: rows of kind ``example`` and ``text``.
        prompts: the tokenizer and chat template of the base.
        max_length: the maximum length of a sequence, in tokens.
        eos_token_id: appended to texts, and to answers where the chat template has no end-of-turn token.
    """

    def convert(row: Row) -> tuple[list[LabeledTokens], bool]:
        if row.kind == "text":
            return list(_chunks(row, prompts, max_length, eos_token_id)), False
        full = list(_sequences(row, prompts, eos_token_id))
        truncated = [cut for tokens in full if (cut := _truncate(tokens, max_length)) is not None]
        if not truncated:
            raise _nothing_left(max(map(len, full)), max_length)
        return truncated, any(len(tokens) > max_length for tokens in full)

    return _each(rows, convert)


def tokenize_pairs(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[PairTokens]:
    """Tokenize preferences, for DPO. Arguments as for `tokenize`.

    Both answers are truncated so that prompt and answer have at most ``max_length`` tokens. A row is bad if its answers
    are equal after that.
    """

    def convert(row: Row) -> tuple[list[PairTokens], bool]:
        assert row.rejected is not None
        prompt, chosen = _prompt_and_answer(row, prompts, eos_token_id)
        _, rejected = _prompt_and_answer(row.with_rejected(), prompts, eos_token_id)
        room = max_length - len(prompt)
        if room <= 0 or chosen[:room] == rejected[:room]:
            raise _nothing_left(len(prompt) + max(len(chosen), len(rejected)), max_length)
        tokens = PairTokens(prompt_ids=prompt, chosen_ids=chosen[:room], rejected_ids=rejected[:room])
        return [tokens], max(len(chosen), len(rejected)) > room

    return _each(rows, convert)


def tokenize_judged(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[JudgedTokens]:
    """Tokenize judged answers, for KTO. Arguments as for `tokenize`.

    Answers are truncated so that prompt and answer have at most ``max_length`` tokens. A row is bad if nothing of its
    answer is left.
    """

    def convert(row: Row) -> tuple[list[JudgedTokens], bool]:
        assert row.label is not None
        prompt, answer = _prompt_and_answer(row, prompts, eos_token_id)
        room = max_length - len(prompt)
        if room <= 0:
            raise _nothing_left(len(prompt) + len(answer), max_length)
        tokens = JudgedTokens(prompt_ids=prompt, completion_ids=answer[:room], label=row.label)
        return [tokens], len(answer) > room

    return _each(rows, convert)


def tokenize_questions(
    rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None
) -> Tokenized[QuestionTokens]:
    """Tokenize the prompts before the last answer, for online methods. Arguments as for `tokenize`.

    A row is bad if its prompt has ``max_length`` tokens or more, since that leaves no room for a completion.
    """

    def convert(row: Row) -> tuple[list[QuestionTokens], bool]:
        asked: Any = [dict(turn) for turn in row.messages[:-1]] if row.messages else row.prompt
        prompt = _prompt(row, prompts)
        if len(prompt) >= max_length:
            raise _nothing_left(len(prompt) + 1, max_length)
        question = json.dumps(asked, ensure_ascii=False)
        has_calls = bool(row.messages) and "tool_calls" in row.messages[-1]
        answer = prompts.decode(_prompt_and_answer(row, prompts, eos_token_id)[1]) if has_calls else row.answer
        item = json.dumps(row.grader_item, ensure_ascii=False)
        return [QuestionTokens(prompt=prompt, question=question, answer=answer, item=item)], False

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


def count_tokens(row: Row, prompts: Prompts) -> tuple[int, int]:
    """Return the number of tokens of the row's prompt as it is served, 0 for a text alone, and of the whole row.

    Raises:
        InvalidRequest: if the base's chat template refuses the row.
    """
    return 0 if row.kind == "text" else len(_prompt(row, prompts)), len(_whole(row, prompts))


def has_special_tokens(row: Row, prompts: Prompts) -> bool:
    """Whether a special token stands written out in a message of a row. It is learned as that token, as it is served:
    the base may read the end of a turn in the middle of it. In plain prompts that is how it is meant."""
    return any(prompts.special_tokens_in(text_of(turn)) for turn in row.messages) or bool(
        row.messages and prompts.special_tokens_in(row.rejected_answer)
    )


def _prompt(row: Row, prompts: Prompts) -> list[int]:
    """Return the token ids of everything before the last answer, as it is served."""
    return prompts.chat(row.messages[:-1], tools=row.tools) if row.messages else prompts.encode(row.prompt)


def _whole(row: Row, prompts: Prompts) -> list[int]:
    if row.messages:
        return prompts.chat(row.messages, tools=row.tools, add_generation_prompt=False)
    return prompts.encode(row.prompt + row.completion)


def _prompt_and_answer(row: Row, prompts: Prompts, eos_token_id: int | None) -> tuple[list[int], list[int]]:
    """Return the token ids of the served prompt, and those of the last answer including its end-of-turn token."""
    ends = [token for token in prompts.special_tokens_in(row.answer) if prompts.ends_answer(token)]
    if ends and row.answer.partition(ends[0])[2].strip():
        raise Unusable(
            f"the answer has {ends[0]!r} within it, which the base reads as its end, so that what follows could not be "
            "learned: take it out, or write it otherwise"
        )
    prompt = _prompt(row, prompts)
    return prompt, _answer(prompt, _whole(row, prompts), prompts.eos_token_ids, eos_token_id)


def _sequences(row: Row, prompts: Prompts, eos_token_id: int | None) -> Iterator[LabeledTokens]:
    """Yield the row as one sequence in which every learned answer has labels. An answer that the chat template renders
    differently once further turns follow becomes a sequence of its own, so that its prompt is the one that is
    served."""
    if not row.messages:
        prompt, answer = _prompt_and_answer(row, prompts, eos_token_id)
        yield _learning(prompt + answer, [(len(prompt), len(prompt) + len(answer))], row.weight)
        return
    whole = _whole(row, prompts)
    spans: list[tuple[int, int]] = []
    for index in reversed(row.learned):
        up_to_here = replace(row, messages=row.messages[: index + 1])
        prompt, answer = _prompt_and_answer(up_to_here, prompts, eos_token_id)
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
    """Return the ids that follow ``prompt`` in ``turn``, up to and including the end-of-turn token.

    Raises:
        Unusable: if ``turn`` does not begin with ``prompt``.
    """
    if turn[: len(prompt)] != prompt:
        raise Unusable(
            "the prompt's last token is not the same once the answer follows, so that another prompt would be learned "
            "than is served: begin the answer without white space, or end a plain prompt on a whole word"
        )
    answer = turn[len(prompt) :]
    ends = [position for position, token_id in enumerate(answer) if token_id in eos_token_ids]
    if ends:
        return answer[: ends[0] + 1]
    # With a template that has no end-of-turn token, the model would learn never to stop.
    return answer if eos_token_id is None else [*answer, eos_token_id]


def _chunks(row: Row, prompts: Prompts, max_length: int, eos_token_id: int | None) -> Iterator[LabeledTokens]:
    """Divide a text into consecutive sequences. A token is predicted from the tokens of its own sequence only."""
    ids = prompts.encode(row.completion)
    if eos_token_id is not None and ids[-1:] != [eos_token_id]:
        ids = [*ids, eos_token_id]
    for start in range(0, len(ids), max_length):
        chunk = ids[start : start + max_length]
        if len(chunk) > 1:  # the first token of a sequence cannot be predicted from anything
            yield LabeledTokens(input_ids=chunk, labels=list(chunk), weight=row.weight)


def _learning(input_ids: list[int], spans: Sequence[tuple[int, int]], weight: float) -> LabeledTokens:
    labels = [IGNORED] * len(input_ids)
    for start, end in spans:
        labels[start:end] = input_ids[start:end]
    return LabeledTokens(input_ids=input_ids, labels=labels, weight=weight)


def _truncate(tokens: LabeledTokens, max_length: int) -> LabeledTokens | None:
    """Return the first ``max_length`` tokens; None if none of them has a loss. The first token of a sequence never
    has."""
    input_ids, labels = tokens.input_ids[:max_length], tokens.labels[:max_length]
    if all(label == IGNORED for label in labels[1:]):
        return None
    return LabeledTokens(input_ids=input_ids, labels=labels, weight=tokens.weight)
