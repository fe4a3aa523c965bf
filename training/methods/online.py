"""What online methods share: they learn from what the model answers while it trains, to prompts that come as token
ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from graftwork.training.methods.token_ids import TokenIdTrainer


def rollout_tokenizer(file: Path, model: PreTrainedModel, eos_token_ids: Sequence[int]) -> PreTrainedTokenizerFast:
    """What these trainers decode and end answers by. An answer ends where serving ends it; what follows is padded with
    a token that the model has, and masked."""
    end = list(eos_token_ids) or [0]
    model.generation_config = transformers.GenerationConfig(eos_token_id=end, pad_token_id=end[0])
    last = tokenizers.Tokenizer.from_file(str(file)).id_to_token(end[0])
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=last, pad_token=last, padding_side="left")


class OnlineTrainer(TokenIdTrainer):
    """Prompts come as token ids, in the column where TRL looks for a text."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}
