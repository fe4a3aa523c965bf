"""Excerpts of the rows that a report shows: near duplicates and conflicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from graftwork.training.data.report.numbers import (
    AnswerConflict,
    ContradictingAnswer,
    NearDuplicates,
)
from graftwork.training.data.row import (
    PLACES_SHOWN,
    Row,
)

EXCERPT_CHARS: Final = 200


class RowExcerpts:
    """Collects excerpts of selected rows while all rows pass.

    Args:
        wanted: indices of the rows to collect.
    """

    def __init__(self, wanted: set[int]) -> None:
        self._wanted = wanted
        self._excerpts: dict[int, tuple[str, str, str]] = {}

    def add(self, number: int, row: Row) -> None:
        """Collect the row if its index is wanted."""
        if number in self._wanted:
            answer = row.verdict() if row.kind == "judged" else row.answer
            self._excerpts[number] = (_excerpt(row.question), _excerpt(answer), row.place)

    def has(self, *numbers: int) -> bool:
        """Whether all these rows were collected."""
        return self._excerpts.keys() >= {*numbers}

    def near_duplicates(self, one: int, other: int) -> NearDuplicates:
        """Return the excerpts of two rows. KeyError unless both were collected."""
        question, answer, place = self._excerpts[one]
        other_question, other_answer, other_place = self._excerpts[other]
        return NearDuplicates(
            text=f"{question} → {answer}",
            place=place,
            other_text=f"{other_question} → {other_answer}",
            other_place=other_place,
        )

    def conflict(self, numbers: Sequence[int]) -> AnswerConflict:
        """Return the question of these rows, and each of its answers with the places of its rows. KeyError unless all
        rows were collected."""
        places: defaultdict[str, list[str]] = defaultdict(list)
        for number in numbers:
            _, answer, place = self._excerpts[number]
            places[answer].append(place)
        verdicts = tuple(
            ContradictingAnswer(text=answer, rows=len(where), places=tuple(where[:PLACES_SHOWN]))
            for answer, where in places.items()
        )
        return AnswerConflict(question=self._excerpts[numbers[0]][0], verdicts=verdicts)


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT_CHARS else f"{text[:EXCERPT_CHARS]}…"
