"""`Recipe`: TRL's trainer class for a method, with its settings and arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from graftwork.clients.client import Client
from graftwork.training.model.anchor import Anchor


@dataclass(frozen=True, kw_only=True)
class RecipeInputs:
    """The inputs of a run besides its rows and its model.

    Attributes:
        tokenizer: the base's ``tokenizer.json``.
        eos_token_ids: the tokens that end an answer in serving.
        anchor: the anchor of a supervised run.
        teacher: the teacher of a distillation.
        client: the client of the server whose models grade; None if there is no server.
    """

    tokenizer: Path
    eos_token_ids: Sequence[int]
    anchor: Anchor | None = None
    teacher: PreTrainedModel | None = None
    client: Client | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The trainer of a method, and how to construct it.

    Each method has a function that builds its recipe from the training rows, the configuration, the number of rows in a
    forward pass (``micro``), the further inputs, and the base model without its PEFT wrapper.

    Attributes:
        trainer: the class of the trainer, a subclass of one of TRL's.
        settings: builds TRL's training arguments from those of transformers, which are its keyword arguments.
        given: arguments of the trainer besides model, training arguments, data sets and callbacks.
        also: attributes to set on the trainer.
    """

    trainer: Callable[..., Any]
    settings: Callable[..., Any]
    given: dict[str, Any]
    also: dict[str, Any] = field(default_factory=dict)


def placeholder_tokenizer(sources: RecipeInputs) -> transformers.PreTrainedTokenizerFast:
    """Build a tokenizer for trainers that require one but do not use it, as all rows are token ids."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(sources.tokenizer), pad_token="<pad>", eos_token="<pad>"
    )
