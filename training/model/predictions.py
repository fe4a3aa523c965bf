"""Hidden states of a model, and its distribution over the vocabulary at selected positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def last_hidden(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the last hidden states.

    Args:
        model: the model.
        ids: token ids, [rows, tokens].
        mask: 1 for tokens and 0 for padding, [rows, tokens].

    Returns:
        [rows, tokens, hidden size].
    """
    hidden: Tensor = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


def log_probabilities(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Compute log-probabilities in nats from hidden states: [positions, hidden size] → [positions, vocabulary], in
    float32."""
    head: Any = model.get_output_embeddings()
    logits = head(hidden).float()
    config: Any = model.config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, dim=-1)
