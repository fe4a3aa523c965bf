"""TRL's trainers that learn from what the model answers while it trains: GRPO, from rewards, and distillation, from a
teacher's judgement of every token. Made to take the token ids of prompts as serving makes them.

Imports TRL. Knows nothing of adapters' folders, of who made a reward function, nor of who watches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
import trl
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from graftwork.training.learners import TokenIds


def tokenizer(file: Path, model: PreTrainedModel, eos_token_ids: Sequence[int]) -> PreTrainedTokenizerFast:
    """What these trainers decode and end answers by. An answer ends where serving ends it; what follows is padded with
    a token that the model has, and masked."""
    end = list(eos_token_ids) or [0]
    model.generation_config = transformers.GenerationConfig(eos_token_id=end, pad_token_id=end[0])
    last = tokenizers.Tokenizer.from_file(str(file)).id_to_token(end[0])
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=last, pad_token=last, padding_side="left")


class _Asking(TokenIds):
    """Prompts come as token ids, in the column where TRL looks for a text."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}


class GRPO(_Asking, trl.GRPOTrainer):
    """Answers to one question are held against each other by their rewards."""


class Distillation(_Asking, trl.DistillationTrainer):
    """The model's own answers, with the teacher's probabilities at every token of them."""
