"""The common parts of online methods, in which the model generates completions during training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from graftwork.training.methods.token_ids import TokenIdTrainer


def rollout_tokenizer(file: Path, model: PreTrainedModel, eos_token_ids: Sequence[int]) -> PreTrainedTokenizerFast:
    """Build the tokenizer that online trainers decode completions with.

    Completions end at the same tokens as in serving; the generation config of ``model`` is set to them. The padding
    token is one of them, as it must be in the vocabulary; padding is masked.

    Args:
        file: the base's ``tokenizer.json``.
        model: the base model; its generation config is replaced.
        eos_token_ids: the tokens that end a completion in serving.
    """
    ends = list(eos_token_ids) or [0]
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    eos = tokenizers.Tokenizer.from_file(str(file)).id_to_token(ends[0])
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=eos, pad_token=eos, padding_side="left")


class OnlineTrainer(TokenIdTrainer):
    """Mixin for online trainers of TRL: the prompt column holds token ids instead of texts."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}
