"""Which columns (or JSON fields) of a row are its question, its answer, its user and its side."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import Final

from graftwork.adapters.errors import ConfigurationError

QUESTIONS: Final = ("prompt", "question", "query", "input", "instruction", "text", "utterance", "message", "ticket")
ANSWERS: Final = ("completion", "answer", "response", "output", "category", "intent", "class", "target", "label")
"""Names that columns of two-column data have in practice, the likeliest first."""

USERS: Final = ("user", "user_id", "end_user")
"""Fields that say whose row it is."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where to find what. None is found by its usual names.

    Raises ConfigurationError for a template that cannot be read and for settings that exclude each other.
    """

    prompt: str | None = None
    completion: str | None = None
    template: str | None = None
    """Builds the prompt from several columns, as in ``"{subject}: {body}"``; ``prompt`` is then not read."""

    system: str | None = None
    """A system message before every prompt. Rows of chat messages carry their own."""

    plain: bool = False
    """Prompt and completion are plain text as in ``/v1/completions``: no chat template around them."""

    user: str | None = None
    """Rows with the same value stay on the same side of a split."""

    split: str | None = None
    """The column that says train, validation or test."""

    score_range: tuple[float, float] = (0.0, 1.0)
    """The worst and the best score."""

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
        """The columns that the prompt is made of; empty when they are to be found by their usual names."""
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
            # An attribute or index after the name would let a template reach into Python's objects.
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
