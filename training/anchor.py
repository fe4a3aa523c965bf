"""What a run holds on to: passages that the base wrote itself, and what it would say at every place of them.

Learning a narrow task moves all else that a base knows a little as well, and a version that forgot is refused by its
gates. So beside every step of a supervised run the model is held, on one passage, to the base's own probabilities.
No text of anybody is needed for that: the base writes the passages (Huang et al. 2024, self-synthesized rehearsal), and
what is held is the whole distribution, not the word it happened to choose (Li and Hoiem 2016, learning without
forgetting).

Knows nothing of rows, of adapters, nor of trainers.
"""

from __future__ import annotations

from typing import Any, Final

import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedModel

PASSAGES: Final = 48
TOKENS: Final = 64
"""Of a passage."""

OPENINGS: Final = (
    "The first time",
    "In the year",
    "A small town",
    "When the rain",
    "It is often",
    "She opened the",
    "He had never",
    "Most people who",
    "To make a",
    "If you want",
    "There are three",
    "One of the",
    "According to the",
    "My brother and",
    "Every morning the",
    "Scientists have found",
    "The price of",
    "During the war",
    "After a long",
    "An old man",
    "They walked along",
    "We know that",
    "For many years",
    "On the other",
)


class Anchor:
    """``ids`` (passages, tokens) and the base's last hidden states there (passages, tokens, hidden size)."""

    def __init__(self, ids: Tensor, hidden: Tensor) -> None:
        self._ids = ids
        self._hidden = hidden

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, tokenizer: tokenizers.Tokenizer, *, seed: int) -> Anchor:
        """Let the base write, from ``seed`` alone. ``model`` is the bare base."""
        # As long as the shortest of them: no padding, and one call writes all.
        starts = [tokenizer.encode(text, add_special_tokens=False).ids for text in OPENINGS]
        shortest = min(map(len, starts))
        begun = torch.tensor([ids[:shortest] for ids in starts], device=model.device)
        begun = begun.repeat(-(-PASSAGES // len(starts)), 1)[:PASSAGES]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = model.generate(
                begun,
                attention_mask=torch.ones_like(begun),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=TOKENS - begun.shape[1],
                eos_token_id=None,
                pad_token_id=0,
            )
        return cls(ids, torch.cat([_last_hidden(model, passage[None]) for passage in ids]))

    def divergence(self, model: PreTrainedModel, step: int) -> Tensor:
        """Mean Kullback-Leibler divergence, in nats a token, of the model from the base on the step's passage."""
        passage = step % len(self._ids)
        said = _log_probabilities(model, _last_hidden(model, self._ids[passage][None])[0])
        with torch.no_grad():
            meant = _log_probabilities(model, self._hidden[passage])
        return (meant.exp() * (meant - said)).sum(-1).mean()


def _last_hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    hidden: Tensor = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def _log_probabilities(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """(tokens, hidden size) → (tokens, vocabulary)"""
    head: Any = model.get_output_embeddings()
    logits = head(hidden).float()
    config: Any = model.config.get_text_config()
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return torch.log_softmax(logits, dim=-1)
