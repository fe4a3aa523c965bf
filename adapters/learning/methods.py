"""The methods that a version can be trained by, and what each of them says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

TrainingMethod = Literal[
    "sft", "dpo", "orpo", "simpo", "kto", "weighted_sft", "pretrain", "distillation", "grpo", "reward_model"
]
"""In the order in which people see them listed."""

TRAINING_METHODS: Final[tuple[TrainingMethod, ...]] = get_args(TrainingMethod)

LearnsFrom = Literal["answers", "pairs", "judgements", "questions"]
"""What a row is to a method: an answer to give, two answers of which one is better, an answer and whether it is good,
or a question that the model answers while it trains."""


@dataclass(frozen=True, kw_only=True)
class MethodTraits:
    """What a method says about itself.

    Attributes:
        full_name: for people, on the card of a version.
        api_name: over HTTP and on the command line, if it has another name there.
        learns_from: what its rows are.
        has_reference: whether every row also goes through a reference or a teacher.
        is_supervised: whether its rows are right answers, whatever the words of the question.
        trains_whole_base: whether it can train a base as a whole.
    """

    full_name: str
    api_name: str | None = None
    learns_from: LearnsFrom
    has_reference: bool = False
    is_supervised: bool = False
    trains_whole_base: bool = False


METHOD_TRAITS: Final[Mapping[TrainingMethod, MethodTraits]] = {
    "sft": MethodTraits(
        full_name="supervised fine-tuning",
        api_name="supervised",
        learns_from="answers",
        is_supervised=True,
        trains_whole_base=True,
    ),
    "dpo": MethodTraits(full_name="direct preference optimization", learns_from="pairs", has_reference=True),
    "orpo": MethodTraits(full_name="odds ratio preference optimization", learns_from="pairs"),
    "simpo": MethodTraits(full_name="simple preference optimization", learns_from="pairs"),
    "kto": MethodTraits(full_name="Kahneman-Tversky optimization", learns_from="judgements", has_reference=True),
    "weighted_sft": MethodTraits(
        full_name="supervised fine-tuning, weighted by scores",
        learns_from="answers",
        is_supervised=True,
        trains_whole_base=True,
    ),
    "pretrain": MethodTraits(full_name="continued pretraining", learns_from="answers", trains_whole_base=True),
    "distillation": MethodTraits(
        full_name="distillation from a larger teacher, on its own answers",
        learns_from="questions",
        has_reference=True,
    ),
    "grpo": MethodTraits(
        full_name="group relative policy optimization, from rewards", learns_from="questions", has_reference=True
    ),
    "reward_model": MethodTraits(full_name="a reward model, from preferences", learns_from="pairs"),
}

SUPERVISED: Final = frozenset(method for method, traits in METHOD_TRAITS.items() if traits.is_supervised)
"""Methods whose rows are right answers, whatever the words of the question. Nothing but an anchor keeps them near to
the base."""

ONLINE: Final = frozenset(method for method, traits in METHOD_TRAITS.items() if traits.learns_from == "questions")
"""Methods that learn from what the model answers while it trains."""

FULL: Final = frozenset(method for method, traits in METHOD_TRAITS.items() if traits.trains_whole_base)
"""Methods that can train a base as a whole."""

RANKED: Final = frozenset(m for m, traits in METHOD_TRAITS.items() if traits.learns_from in ("answers", "pairs"))
"""Methods whose rows have an answer to measure how hard they are by."""
