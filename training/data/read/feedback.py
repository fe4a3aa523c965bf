"""Logged answers and what was said of them → rows.

Takes plain dictionaries as the server exports them (``/v1/interactions/export`` and ``/v1/feedback/export``), or with
the fields of ``Interaction`` and ``Feedback`` in ``graftwork.adapters.feedback``, in any order and from several
files: answers with their feedback, or either alone. They are held in memory. Knows no database.

What several people said of one answer becomes one verdict: a person's later word counts, then the majority of thumbs
and the mean of scores. A correction says more than a thumb or a score: where one is, they are not rows of their own.

Rows are grouped by who asked, so that nobody is on both sides of a split, where enough people asked: sides made of a
few people come out far from their shares, or empty. Otherwise rows have no group, and sides go by question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Final

from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.formats import conversation, last_alone, pair
from graftwork.training.data.read.lines import Record
from graftwork.training.data.row import BadRow, Row, Unusable, group_of, is_unicode

FIELDS: Final = ({"interaction_id"}, {"interaction", "feedback"}, {"id", "completions"})
"""A record that has all of one of these is an answer or feedback."""

FeedbackRecord = Mapping[str, Any]
AnswerChoice = tuple[str, int]
"""An answer's id and the index of one of its choices."""

WHOLE: Final = "stop"
"""The finish reason of an answer that came to its end."""

ENOUGH_USERS: Final = 20
"""So many must have asked, and none of them more than half of all, for sides to go by user."""


def is_feedback(record: Any) -> bool:
    return isinstance(record, Mapping) and any(record.keys() >= fields for fields in FIELDS)


def rows(files: Sequence[tuple[str, Iterable[Record]]]) -> Iterator[Row | BadRow]:
    """Rows in the order of the answers they are about, and what could not be used, with the file and line it came from.

    ``files`` are names of files and the records in them: what one says may be about answers in another.
    """
    answers: dict[str, Mapping[str, Any]] = {}
    said: defaultdict[str, _AnswerFeedback] = defaultdict(_AnswerFeedback)
    for name, records in files:
        for line, record in records:
            try:
                for kind, part in _parts(record):
                    if kind == "answer":
                        answers.setdefault(_text(part, "id"), part)
                    else:
                        said[_text(part, "interaction_id")].add((name, line), part)
            except Unusable as problem:
                yield problem.bad_row(name, line)
    if answers and not said:
        reason = "there are answers and no feedback on any: give the file of the feedback as well"
        yield BadRow(source=files[0][0], line=1, reason=reason)
    found = list(_rows(_Answers(answers), said))
    grouped = _are_many(row.group for row in found if isinstance(row, Row))
    for row in found:
        yield row if grouped or isinstance(row, BadRow) else replace(row, group=None)


def _rows(answers: _Answers, said: Mapping[str, _AnswerFeedback]) -> Iterator[Row | BadRow]:
    for id, judgements in said.items():
        source, line = judgements.place
        for choice in judgements.choices():
            try:
                for row in judgements.rows((id, choice), answers):
                    yield replace(row, source=source, line=line)
            except Unusable as problem:
                yield problem.bad_row(source, line)


def _are_many(groups: Iterable[str | None]) -> bool:
    """Whether sides can go by user."""
    counts = Counter(groups)
    num_rows = counts.total()
    del counts[None]
    return len(counts) >= ENOUGH_USERS and 2 * max(counts.values()) <= num_rows


def _parts(record: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(record, Unusable):
        raise record
    if not isinstance(record, Mapping) or not is_feedback(record):
        raise Unusable(
            "neither an answer nor feedback: an answer has id, prompt and completions, feedback has interaction_id"
        )
    answer = record.get("interaction", record if "completions" in record else None)
    if answer is not None:
        if not isinstance(answer, Mapping):
            raise Unusable("'interaction' must be an object")
        yield "answer", answer
    given = record.get("feedback", record if "interaction_id" in record else [])
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, Mapping):
            raise Unusable("'feedback' must be an object or a list of objects")
        yield "feedback", one if answer is None else {"interaction_id": answer.get("id"), **one}


@dataclass(slots=True)
class _AnswerFeedback:
    """What was said of one answer, in the order it was said."""

    place: tuple[str, int] = ("", 0)
    said: list[FeedbackRecord] = field(default_factory=list)

    def add(self, place: tuple[str, int], said: FeedbackRecord) -> None:
        if not self.said:
            self.place = place
        self.said.append(said)

    def choices(self) -> list[int]:
        return sorted({_index(one, "choice") for one in self.said})

    def rows(self, which: AnswerChoice, answers: _Answers) -> Iterator[Row]:
        said = sorted((one for one in self.said if _index(one, "choice") == which[1]), key=_order)
        row, whole = answers.row(which)
        corrected = _last(said, "correction")
        if corrected is not None:
            fixed = _with_answer(row, _not_empty(corrected, "correction"))
            if fixed.answer.split() != row.answer.split():
                yield replace(fixed, rejected=row.answer, corrected=True)
                return
            yield replace(row, label=True)
            return
        for one in said:
            if one.get("preferred_over") is not None and whole:
                yield answers.better(row, one)
        thumbs = [value == "up" for value in _by_person(said, "thumb")]
        scores = [value for value in _by_person(said, "score") if isinstance(value, int | float)]
        if 2 * sum(thumbs) != len(thumbs):
            liked = 2 * sum(thumbs) > len(thumbs)
            if whole or not liked:
                yield replace(row, label=liked)
        elif scores and not thumbs and whole:
            score = fmean(scores)
            if not 0 <= score <= 1:
                raise Unusable(f"'score' is {score:g}; it must be 0 to 1")
            yield replace(row, score=score)


class _Answers:
    """The logged answers, choice by choice."""

    def __init__(self, logged: Mapping[str, Mapping[str, Any]]) -> None:
        self._logged = logged

    def row(self, which: AnswerChoice) -> tuple[Row, bool]:
        """The question and the answer, and whether the answer came to its end."""
        id, index = which
        if id not in self._logged:
            raise Unusable(f"feedback on {id[:40]!r}, which is not among the answers: export both together")
        logged = self._logged[id]
        completion = next((one for one in _objects(logged, "completions") if one.get("index", 0) == index), None)
        if completion is None:
            raise Unusable(f"feedback on choice {index} of {id[:40]!r}, which has no such choice")
        answer = _text(completion, "text")
        asked = _question(logged, index)
        turns = [*asked, {"role": "assistant", "content": answer}] if isinstance(asked, list) else None
        row = pair(asked, answer, Columns(plain=True)) if turns is None else last_alone(conversation(turns))
        user = logged.get("unit") or logged.get("user")
        group = group_of(user) if isinstance(user, str) and user and is_unicode(user) else None
        return replace(row, interactions=(id,), group=group), completion.get("finish_reason", WHOLE) == WHOLE

    def better(self, row: Row, said: FeedbackRecord) -> Row:
        """The row with the answer it was preferred over."""
        other, _ = self.row((_text(said, "preferred_over"), _index(said, "preferred_over_choice")))
        if (other.messages[:-1], other.prompt) != (row.messages[:-1], row.prompt):
            raise Unusable(
                "preferred over the answer to another question: only answers to one question can be compared"
            )
        if other.answer.split() == row.answer.split():
            raise Unusable("preferred over an answer that says the same")
        ids = tuple(dict.fromkeys((*row.interactions, *other.interactions)))
        return replace(row, rejected=other.answer, interactions=ids)


def _question(logged: Mapping[str, Any], index: int) -> list[Any] | str:
    prompt = logged.get("prompt")
    asked = prompt if isinstance(prompt, Mapping) else logged
    messages, texts = asked.get("messages"), asked.get("prompt")
    if isinstance(messages, list):
        return messages
    if isinstance(texts, list):
        sampling = logged.get("sampling")
        each = sampling.get("n") if isinstance(sampling, Mapping) else None
        place = index // each if isinstance(each, int) and each > 0 else index
        texts = texts[place] if place < len(texts) else None
    if not isinstance(texts, str):
        raise Unusable("the prompt was sent as token ids, or is missing: only prompts in words can be learned from")
    return texts


def _with_answer(row: Row, answer: str) -> Row:
    if not row.messages:
        return replace(row, completion=answer)
    return replace(row, messages=(*row.messages[:-1], {"role": "assistant", "content": answer}))


def _by_person(said: list[FeedbackRecord], name: str) -> list[Any]:
    """What each said last."""
    last: dict[Any, Any] = {}
    for one in said:
        if one.get(name) is not None:
            last[str(one.get("user") or one.get("unit") or one.get("key_id"))] = one[name]
    return list(last.values())


def _last(said: list[FeedbackRecord], name: str) -> Any:
    return next((one[name] for one in reversed(said) if one.get(name) is not None), None)


def _order(said: FeedbackRecord) -> tuple[int, str]:
    id, at = said.get("id"), said.get("at")
    return (id if isinstance(id, int) else 0, at if isinstance(at, str) else "")


def _objects(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = record.get(name)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise Unusable(f"{name!r} must be a list of objects")
    return found


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not is_unicode(value):
        raise Unusable(f"{name!r} must be a text")
    return value


def _not_empty(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        raise Unusable(f"{name!r} must be a text that is not empty")
    return value


def _index(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
