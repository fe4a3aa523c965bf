"""Graders: how good an answer is. `graftwork.adapters.learning.graders.reading` reads them from JSON, and
`graftwork.training.grading` computes them.

Each has a ``name``, a ``range``, of which the first number is the worst grade and the second the best, and a
``pass_threshold``, the grade from which an answer passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from graftwork.adapters.learning.graders.formulas import Formula
from graftwork.adapters.learning.graders.templates import Path, Template

Operation = Literal["eq", "ne", "like", "ilike"]
SimilarityMetric = Literal["bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Named:
    """What all graders have."""

    name: str
    pass_threshold: float
    range: Range = UNIT

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates that it renders."""
        return ()

    @property
    def paths(self) -> Iterator[Path]:
        """What it reads of rows and answers."""
        return (path for template in self.templates for path in template.paths)


@dataclass(frozen=True, kw_only=True)
class StringCheck(Named):
    """1 if the input equals (``eq``) or does not equal (``ne``) the reference, or contains it (``like``, and ``ilike``
    in whatever case); else 0."""

    operation: Operation
    input: Template
    reference: Template

    @property
    def templates(self) -> tuple[Template, ...]:
        return self.input, self.reference


@dataclass(frozen=True, kw_only=True)
class TextSimilarity(Named):
    """How similar two texts are, 0 to 1."""

    metric: SimilarityMetric
    input: Template
    reference: Template

    @property
    def templates(self) -> tuple[Template, ...]:
        return self.input, self.reference


@dataclass(frozen=True, kw_only=True)
class GraderMessage:
    """A message to a model that grades."""

    role: str
    content: Template


@dataclass(frozen=True, kw_only=True)
class ScoreModel(Named):
    """The number within the range that a model of the server gives."""

    model: str
    input: tuple[GraderMessage, ...]

    @property
    def templates(self) -> tuple[Template, ...]:
        return tuple(message.content for message in self.input)


@dataclass(frozen=True, kw_only=True)
class LabelModel(Named):
    """1 if the label that a model of the server chooses is a passing one, else 0."""

    model: str
    input: tuple[GraderMessage, ...]
    labels: tuple[str, ...]
    passing_labels: tuple[str, ...]

    @property
    def templates(self) -> tuple[Template, ...]:
        return tuple(message.content for message in self.input)


@dataclass(frozen=True, kw_only=True)
class Python(Named):
    """What the function ``grade(sample, item)`` of a Python program returns, in a process without network."""

    source: str


@dataclass(frozen=True, kw_only=True)
class Reward(Named):
    """What a reward function of an installed package returns."""

    function: str


SimpleGrader = StringCheck | TextSimilarity | ScoreModel | LabelModel | Python | Reward


@dataclass(frozen=True, kw_only=True)
class Multi(Named):
    """The value of a formula over the grades of others, by their names."""

    graders: Mapping[str, SimpleGrader]
    formula: Formula

    @property
    def templates(self) -> tuple[Template, ...]:
        return tuple(template for grader in self.graders.values() for template in grader.templates)


Grader = SimpleGrader | Multi


def parts_of(grader: Grader) -> Mapping[str, SimpleGrader]:
    """The graders that compute something by themselves, by name: those of a `Multi`, or the grader alone."""
    return grader.graders if isinstance(grader, Multi) else {grader.name: grader}
