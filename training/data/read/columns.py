"""The columns (or JSON fields) of a record that hold its question, answer, user and split."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import Final

from graftwork.adapters.errors import ConfigurationError

QUESTIONS: Final = ("prompt", "question", "query", "input", "instruction", "text", "utterance", "message", "ticket")
ANSWERS: Final = ("completion", "answer", "response", "output", "category", "intent", "class", "target", "label")
"""Usual names of the columns of question and answer, in order of precedence."""

CLASSES: Final = ("category", "intent", "class", "target")
"""Those of answers that are names of classes. A ``label`` beside one is usually the number of the class."""

LABEL_COLUMNS: Final = ("label", "kto_tag")
"""Usual names of the column that says whether an answer is good, in order of precedence."""

USERS: Final = ("user", "user_id", "end_user")
"""Usual names of the column of the user."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a source. Those that are None are found by their usual names.

    Raises:
        ConfigurationError: if the template is invalid, or settings exclude each other.
    """

    prompt: str | None = None
    completion: str | None = None
    template: str | None = None
    """Template of the prompt from several columns, as in ``"{subject}: {body}"``; ``prompt`` is then ignored."""

    system: str | None = None
    """System message before every prompt. Not used for rows of chat messages, which have their own."""

    plain: bool = False
    """Whether prompt and completion are plain text without a chat template, as in ``/v1/completions``."""

    user: str | None = None
    """Column of the user. Rows of a user stay on the same side of a split."""

    split: str | None = None
    """Column of the split: train, validation or test."""

    graded: bool = False
    """Whether rows are questions that the model answers itself, and graders read the other fields of each record."""

    score_range: tuple[float, float] = (0.0, 1.0)
    """The worst and the best score; scores are scaled to 0 to 1."""

    def __post_init__(self) -> None:
        if self.plain and self.system is not None:
            raise ConfigurationError("A system message needs the chat template: use either --system or --plain.")
        low, high = self.score_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigurationError(
                f"The range of scores is {low} to {high}: give the worst first, then the best, as in 1:5.",
                param="score_range",
            )
        self.fields()

    def fields(self) -> tuple[str, ...]:
        """Return the columns that the prompt is made of; empty if they are found by their usual names.

        Raises:
            ConfigurationError: if the template is invalid.
        """
        if self.template is None:
            return () if self.prompt is None else (self.prompt,)
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigurationError(f"The prompt template cannot be read: {error}.", param="prompt_template") from None
        fields = []
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            # An attribute or index after the name would give a template access to Python objects.
            if not field or spec or conversion or any(mark in field for mark in ".["):
                raise ConfigurationError(
                    "The prompt template may only name columns in braces, as in '{subject}: {body}'; write {{ and }} "
                    "for the braces themselves.",
                    param="prompt_template",
                )
            fields.append(field)
        if not fields:
            raise ConfigurationError(
                "The prompt template names no column, so that every prompt would be the same.", param="prompt_template"
            )
        return tuple(fields)
