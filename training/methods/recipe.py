"""What a method adds to the trainer that learns it: TRL's class, its settings, and what it is given beside rows and
model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from graftwork.training.model.anchor import Anchor


@dataclass(frozen=True, kw_only=True)
class RecipeInputs:
    """What a run learns from or holds on to beside its rows.

    Attributes:
        tokenizer: the base's tokenizer.json. eos_token_ids: what ends an answer in serving.
        anchor: of supervised runs. teacher: of a distillation.
    """

    tokenizer: Path
    eos_token_ids: Sequence[int]
    anchor: Anchor | None = None
    teacher: PreTrainedModel | None = None


# --- which trainer, a method each -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """``settings`` makes TRL's arguments of transformers' own; ``given`` is what the trainer takes beside rows and
    model, ``also`` what it has beside that."""

    trainer: Callable[..., Any]
    settings: Callable[..., Any]
    given: dict[str, Any]
    also: dict[str, Any] = field(default_factory=dict)


def placeholder_tokenizer(sources: RecipeInputs) -> transformers.PreTrainedTokenizerFast:
    """TRL wants a tokenizer; every row comes as token ids, so it is never asked anything."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(sources.tokenizer), pad_token="<pad>", eos_token="<pad>"
    )
