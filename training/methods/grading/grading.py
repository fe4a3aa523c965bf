"""Grades of answers by a grader, with those of each of its parts.

An answer that lacks what a grader reads of it, a field of its JSON for example, gets the grader's worst grade.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.learning.graders.grader import (
    Grader,
    LabelModel,
    Multi,
    Python,
    Reward,
    ScoreModel,
    SimpleGrader,
    StringCheck,
    TextSimilarity,
    parts_of,
)
from graftwork.adapters.learning.graders.reading import read_grader
from graftwork.adapters.learning.graders.response_format import ResponseFormat
from graftwork.adapters.learning.graders.templates import NotThere, look_up
from graftwork.clients.client import Client
from graftwork.training.data.row import BadRow, Row, Unusable
from graftwork.training.methods.grading import model_graders, python_graders, similarity
from graftwork.training.methods.grading.failures import grader_failed
from graftwork.training.methods.reward_functions import load_reward, rewards_of


@dataclass(frozen=True, kw_only=True)
class GivenAnswer:
    """An answer to be graded.

    Attributes:
        text: what the model answered.
        item: what graders are told of the row.
        reference: the row's own answer, for reward functions; empty if it has none.
    """

    text: str
    item: Mapping[str, Any]
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Grades:
    """The grades of several answers.

    Attributes:
        grades: one for each answer; None for one that a reward function leaves out.
        parts: the same for each part of a grader that is made of several, by name; empty for others.
        passed: whether each answer passed.
    """

    grades: tuple[float | None, ...]
    parts: Mapping[str, tuple[float | None, ...]]
    passed: tuple[bool, ...]


class Grading:
    """A grader, ready to grade.

    Args:
        grader: the grader, as it came over HTTP.
        response_format: the JSON that answers have to be, as it came over HTTP; any JSON if None.
        client: the client of the server whose models grade; only needed for graders that ask one.

    Raises:
        InvalidRequest: if there is no such grader, or a reward function is not installed.
        ConfigurationError: if it asks a model and there is no client, or a reward function cannot be imported.
    """

    def __init__(
        self,
        grader: Mapping[str, Any],
        *,
        response_format: Mapping[str, Any] | None = None,
        client: Client | None = None,
    ) -> None:
        self.grader: Grader = read_grader(dict(grader))
        self._format = ResponseFormat() if response_format is None else ResponseFormat.read(dict(response_format))
        self._client = client
        self._rewards = {
            part.function: load_reward(part.function)
            for part in parts_of(self.grader).values()
            if isinstance(part, Reward)
        }
        if client is None and asks_models(self.grader):
            raise ConfigurationError(
                f"The grader {self.grader.name} asks a model, and there is no server to ask: submit the run as a job.",
                param="grader",
            )

    @property
    def name(self) -> str:
        """The name of the grader."""
        return self.grader.name

    def grade(self, answers: Sequence[GivenAnswer]) -> Grades:
        """Grade answers.

        Raises:
            GraftworkError: with code ``reward_failed`` if a grader failed.
        """
        told = [self._values(answer) for answer in answers]
        parts = {name: self._grade_part(part, told, answers) for name, part in parts_of(self.grader).items()}
        grader = self.grader
        if isinstance(grader, Multi):
            columns = zip(*parts.values(), strict=True)
            grades = [_combined(grader, dict(zip(parts, column, strict=True))) for column in columns]
        else:
            grades = parts.pop(grader.name)
        return Grades(
            grades=tuple(grades),
            parts={name: tuple(part) for name, part in parts.items()},
            passed=tuple(grade is not None and grade >= grader.pass_threshold for grade in grades),
        )

    def share(self, grade: float | None) -> float:
        """Return a grade as a share of the way from the grader's worst grade to its best, 0 to 1."""
        low, high = self.grader.range
        return 0.0 if grade is None else min(max((grade - low) / (high - low), 0.0), 1.0)

    def _values(self, answer: GivenAnswer) -> Mapping[str, Any]:
        """What templates and programs are told of an answer."""
        sample: dict[str, Any] = {"output_text": answer.text}
        with contextlib.suppress(ValueError):  # if it is no JSON, or another, there is nothing to read from
            sample["output_json"] = self._format.parse(answer.text)
        return {"item": answer.item, "sample": sample}

    def _grade_part(
        self, part: SimpleGrader, told: Sequence[Mapping[str, Any]], answers: Sequence[GivenAnswer]
    ) -> list[float | None]:
        match part:
            case StringCheck():
                return _where_there(part, told, lambda values: _string_check(part, values))
            case TextSimilarity():
                return _where_there(
                    part,
                    told,
                    lambda values: similarity.score(
                        part.metric, part.input.render(values), part.reference.render(values)
                    ),
                )
            case ScoreModel() | LabelModel():
                assert self._client is not None
                return list(model_graders.grade(self._client, part, told))
            case Python():
                return list(python_graders.grade(part, told))
            case Reward():
                return rewards_of(
                    part.function,
                    self._rewards[part.function],
                    prompts=[answer.item.get("messages") or answer.item.get("question") for answer in answers],
                    completions=[answer.text for answer in answers],
                    answers=[answer.reference for answer in answers],
                )


def asks_models(grader: Grader) -> bool:
    """Whether a grader asks models of the server."""
    return any(isinstance(part, ScoreModel | LabelModel) for part in parts_of(grader).values())


def runs_programs(grader: Grader) -> bool:
    """Whether a grader runs programs that came over HTTP."""
    return any(isinstance(part, Python) for part in parts_of(grader).values())


def gradable_rows(rows: Sequence[Row], grader: Mapping[str, Any] | None) -> tuple[list[Row], list[BadRow]]:
    """Divide rows into those that have all fields that a grader reads of them, and the others with the reasons.

    Args:
        rows: rows of any kind.
        grader: the grader, as it came over HTTP; None reads nothing.
    """
    wanted = [] if grader is None else [path[1:] for path in read_grader(dict(grader)).paths if path[0] == "item"]
    good, bad = [], []
    for row in rows:
        try:
            for path in wanted:
                look_up(row.grader_item, path)
        except NotThere as missing:
            bad.append(Unusable(f"has no {missing}, which the grader reads").bad_row(row.source, row.line))
        else:
            good.append(row)
    return good, bad


def _where_there(
    grader: SimpleGrader, told: Sequence[Mapping[str, Any]], grade: Callable[[Mapping[str, Any]], float]
) -> list[float | None]:
    def one(values: Mapping[str, Any]) -> float:
        try:
            return grade(values)
        except NotThere:
            return grader.range[0]

    return [one(values) for values in told]


def _string_check(grader: StringCheck, values: Mapping[str, Any]) -> float:
    text, reference = grader.input.render(values), grader.reference.render(values)
    match grader.operation:
        case "eq":
            return float(text == reference)
        case "ne":
            return float(text != reference)
        case "like":
            return float(reference in text)
        case "ilike":
            return float(reference.casefold() in text.casefold())


def _combined(grader: Multi, grades: Mapping[str, float | None]) -> float | None:
    values = {name: grade for name, grade in grades.items() if grade is not None}
    if not grader.formula.names <= values.keys():
        return None
    try:
        return grader.formula.compute(values)
    except (ArithmeticError, TypeError, ValueError) as error:  # TypeError: a root of less than 0, compared
        raise grader_failed(grader.name, f"{grader.formula.text} has no value for {dict(values)} ({error})") from error
