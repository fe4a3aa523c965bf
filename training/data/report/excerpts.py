"""Excerpts of the few rows that a report shows: near duplicates and contradictions."""

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
    """Excerpts of the few rows that are shown."""

    def __init__(self, wanted: set[int]) -> None:
        self._wanted = wanted
        self._seen: dict[int, tuple[str, str, str]] = {}

    def see(self, number: int, row: Row) -> None:
        if number in self._wanted:
            said = row.verdict() if row.kind == "judged" else row.answer
            self._seen[number] = (_excerpt(row.question), _excerpt(said), row.place)

    def knows(self, *numbers: int) -> bool:
        return self._seen.keys() >= {*numbers}

    def twins(self, one: int, other: int) -> NearDuplicates:
        (question, answer, place), (other_question, other_answer, other_place) = self._seen[one], self._seen[other]
        return NearDuplicates(
            text=f"{question} → {answer}",
            place=place,
            other_text=f"{other_question} → {other_answer}",
            other_place=other_place,
        )

    def conflict(self, numbers: Sequence[int]) -> AnswerConflict:
        places: defaultdict[str, list[str]] = defaultdict(list)
        for number in numbers:
            _, answer, place = self._seen[number]
            places[answer].append(place)
        verdicts = tuple(
            ContradictingAnswer(text=answer, rows=len(where), places=tuple(where[:PLACES_SHOWN]))
            for answer, where in places.items()
        )
        return AnswerConflict(question=self._seen[numbers[0]][0], verdicts=verdicts)


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT_CHARS else f"{text[:EXCERPT_CHARS]}…"
