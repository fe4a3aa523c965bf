"""Conversion of logged answers and their feedback to rows.

The records are those that the server exports (``/v1/interactions/export`` and ``/v1/feedback/export``), in any order
and from several files: answers together with their feedback, or each alone. They are held in memory.

Feedback of several users on one answer is aggregated: the last feedback of each user counts, then the majority of
thumbs, and the mean of scores. Where there is a correction, thumbs and scores do not become rows.

Answers are deleted when their retention ends, or when they are erased or were never logged; the feedback on them stays.
Such feedback has `expired`: it is counted, and the rest is used.

Feedback on an answer with tool calls is about all of it, text and calls. So is a correction, which is a text: the right
answer would have been to say it, and to call nothing.

Rows are grouped by user, so that no user is on both sides of a split, if there are enough users; with few users the
splits would be far from their shares, or empty. Otherwise rows have no group, and are split by question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Final

from graftwork.training.data.read.columns import Columns
from graftwork.training.data.read.conversations import conversation, last_alone, pair, with_tools
from graftwork.training.data.read.lines import Record
from graftwork.training.data.row import BadRow, Expired, Row, Unusable, group_of, is_unicode

FIELDS: Final = ({"interaction_id"}, {"interaction", "feedback"}, {"id", "completions"})
"""A record that has all fields of one of these sets is an answer or feedback."""

FeedbackRecord = Mapping[str, Any]
AnswerChoice = tuple[str, int]
"""The id of a logged answer and the index of one of its choices."""

WHOLE: Final = ("stop", "tool_calls")
"""The finish reasons of answers that are complete."""

ENOUGH_USERS: Final = 20
"""Minimum number of users for a split by user; no user may have more than half of the rows."""


def is_feedback(record: Any) -> bool:
    """Whether a record is a logged answer or feedback on one, by its fields."""
    return isinstance(record, Mapping) and any(record.keys() >= fields for fields in FIELDS)


def rows(files: Sequence[tuple[str, Iterable[Record]]]) -> Iterator[Row | BadRow]:
    """Convert logged answers and feedback to rows.

    Args:
        files: the name and the records of each file. Feedback may be about an answer in another file.

    Yields:
        Bad rows of unreadable records first; then the rows and bad rows of each answer, in the order in which the
        answers first got feedback.
    """
    answers: dict[str, Mapping[str, Any]] = {}
    feedback: defaultdict[str, _AnswerFeedback] = defaultdict(_AnswerFeedback)
    for name, records in files:
        for line, record in records:
            try:
                for kind, part in _parts(record):
                    if kind == "answer":
                        answers.setdefault(_text(part, "id"), part)
                    else:
                        feedback[_text(part, "interaction_id")].add((name, line), part)
            except Unusable as problem:
                yield problem.bad_row(name, line)
    if answers and not feedback:
        reason = "there are answers and no feedback on any: give the file of the feedback as well"
        yield BadRow(source=files[0][0], line=1, reason=reason)
    found = list(_rows(_Answers(answers), feedback))
    grouped = _has_enough_users(row.group for row in found if isinstance(row, Row))
    for row in found:
        yield row if grouped or isinstance(row, BadRow) else replace(row, group=None)


def _rows(answers: _Answers, feedback: Mapping[str, _AnswerFeedback]) -> Iterator[Row | BadRow]:
    for id, of_answer in feedback.items():
        source, line = of_answer.place
        for choice in of_answer.choices():
            try:
                for row in of_answer.rows((id, choice), answers):
                    if isinstance(row, Unusable):
                        yield row.bad_row(source, line)
                    else:
                        yield replace(row, asked=of_answer.asked, source=source, line=line)
            except Unusable as problem:
                yield problem.bad_row(source, line)


def _has_enough_users(groups: Iterable[str | None]) -> bool:
    """Whether rows can be split by user; see `ENOUGH_USERS`."""
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
    """The feedback on one answer, in the order of the files; ``place`` is the file and line of the first."""

    place: tuple[str, int] = ("", 0)
    records: list[FeedbackRecord] = field(default_factory=list)

    def add(self, place: tuple[str, int], record: FeedbackRecord) -> None:
        if not self.records:
            self.place = place
        self.records.append(record)

    @property
    def asked(self) -> bool:
        """Whether the answer was marked, so that its user was asked. All feedback on it says the same."""
        return any(record.get("asked") is True for record in self.records)

    def choices(self) -> list[int]:
        return sorted({_index(record, "choice") for record in self.records})

    def rows(self, which: AnswerChoice, answers: _Answers) -> Iterator[Row | Unusable]:
        """Yield the rows that follow from the feedback on one choice, and what is wrong with single pieces of it."""
        records = sorted((record for record in self.records if _index(record, "choice") == which[1]), key=_order)
        corrected = _last(records, "correction")
        if corrected is not None and answers.is_empty(which):
            # There is nothing that the correction is better than: it is an example.
            yield answers.row(which, said=_not_empty(corrected, "correction"))[0]
            return
        row, whole = answers.row(which)
        if corrected is not None:
            fixed = row.with_answer(_not_empty(corrected, "correction"))
            if fixed.answer.split() != row.answer.split():
                yield replace(fixed.over(row), corrected=True)
                return
            yield replace(row, label=True)
            return
        for record in records:
            if record.get("preferred_over") is not None and whole:
                try:
                    yield answers.preference(which, record)
                except Unusable as problem:
                    yield problem
        thumbs = [value == "up" for value in _last_by_user(records, "thumb")]
        scores = [value for value in _last_by_user(records, "score") if isinstance(value, int | float)]
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
    """The logged answers, by id."""

    def __init__(self, logged: Mapping[str, Mapping[str, Any]]) -> None:
        self._logged = logged

    def is_empty(self, which: AnswerChoice) -> bool:
        """Return whether one choice says nothing and calls nothing."""
        completion = self._completion(which)
        return not _text(completion, "text").strip() and not completion.get("tool_calls")

    def row(self, which: AnswerChoice, *, said: str | None = None) -> tuple[Row, bool]:
        """Return the row of one choice, and whether its answer is complete; with ``said`` in place of its text."""
        id, index = which
        logged, request = self._request(id)
        completion = self._completion(which)
        answer = _text(completion, "text") if said is None else said
        if isinstance(messages := request.get("messages"), list):
            last = {"role": "assistant", "content": answer, "tool_calls": completion.get("tool_calls")}
            row = with_tools(last_alone(conversation([*messages, last])), request)
        else:
            row = pair(_plain_prompt(request.get("prompt"), logged, index), answer, Columns(plain=True))
        user = logged.get("unit") or logged.get("user")
        group = group_of(user) if isinstance(user, str) and user and is_unicode(user) else None
        return replace(row, interactions=(id,), group=group), completion.get("finish_reason", WHOLE[0]) in WHOLE

    def preference(self, which: AnswerChoice, record: FeedbackRecord) -> Row:
        """Return the row of one choice with the answer that it was preferred over as the rejected one.

        The question is what the client sent: arms of an experiment may have answered it under system messages of their
        own. The row has that of the better answer.
        """
        worse = _text(record, "preferred_over"), _index(record, "preferred_over_choice")
        row, other = self.row(which)[0], self.row(worse)[0]
        if self._question(which) != self._question(worse):
            raise Unusable(
                "preferred over the answer to another question: only answers to one question can be compared"
            )
        if other.answer.split() == row.answer.split():
            raise Unusable("preferred over an answer that says the same")
        ids = tuple(dict.fromkeys((*row.interactions, *other.interactions)))
        return replace(row.over(other), interactions=ids)

    def _completion(self, which: AnswerChoice) -> Mapping[str, Any]:
        id, index = which
        found = _objects(self._request(id)[0], "completions")
        completion = next((one for one in found if one.get("index", 0) == index), None)
        if completion is None:
            raise Unusable(f"feedback on choice {index} of {id[:40]!r}, which has no such choice")
        return completion

    def _request(self, id: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return a logged answer, and what it has of its request."""
        if id not in self._logged:
            raise Expired(
                f"feedback on {id[:40]!r}, which is not among the answers: its retention has ended, it was erased or "
                "never logged, or the answers were not exported together with the feedback"
            )
        logged = self._logged[id]
        return logged, logged["prompt"] if isinstance(logged.get("prompt"), Mapping) else logged

    def _question(self, which: AnswerChoice) -> tuple[Any, ...]:
        """Return what a choice is an answer to, for comparison."""
        row, (_, request) = self.row(which)[0], self._request(which[0])
        if "replaced" not in request:
            return row.messages[:-1], row.tools, row.prompt
        sent = [*_objects(request, "replaced"), *_objects(request, "messages")[1:]]
        return conversation([*sent, {"role": "assistant", "content": "…"}]).messages[:-1], row.tools, row.prompt


def _plain_prompt(texts: Any, logged: Mapping[str, Any], index: int) -> str:
    """Return the prompt of a choice: there are ``n`` choices of each prompt."""
    if isinstance(texts, list):
        sampling = logged.get("sampling")
        each = sampling.get("n") if isinstance(sampling, Mapping) else None
        place = index // each if isinstance(each, int) and each > 0 else index
        texts = texts[place] if place < len(texts) else None
    if not isinstance(texts, str):
        raise Unusable("the prompt was sent as token ids, or is missing: only prompts in words can be learned from")
    return texts


def _last_by_user(records: list[FeedbackRecord], name: str) -> list[Any]:
    """Return the last value of each user."""
    last: dict[Any, Any] = {}
    for record in records:
        if record.get(name) is not None:
            last[str(record.get("user") or record.get("unit") or record.get("key_id"))] = record[name]
    return list(last.values())


def _last(records: list[FeedbackRecord], name: str) -> Any:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


def _order(record: FeedbackRecord) -> tuple[int, str]:
    id, at = record.get("id"), record.get("at")
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
