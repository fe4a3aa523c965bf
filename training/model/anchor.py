"""What a run holds on to: passages that the base wrote itself, and what it would say at every place of them.

Learning a narrow task moves all else that a base knows a little as well, and a version that forgot is refused by its
gates. So beside the steps of a supervised run the model is held, on a passage each, to the base's own probabilities.
No text of anybody is needed for that: the base writes the passages (Huang et al. 2024, self-synthesized rehearsal), and
what is held is the whole distribution, not the word it happened to choose (Li and Hoiem 2016, learning without
forgetting).

Knows nothing of rows, of adapters, nor of trainers.
"""

from __future__ import annotations

from typing import Final

import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedModel

from graftwork.training.model.predictions import last_hidden, log_probabilities

PASSAGES: Final = 48
TOKENS: Final = 64
"""Of a passage."""

MAX_INTERVAL: Final = 4
"""Steps from one look to the next at most. A look costs half a step, and what it looks at moves slowly, so it can count
for several steps (Karras et al. 2020, lazy regularization)."""

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
        return cls(ids, torch.cat([last_hidden(model, passage[None]) for passage in ids]))

    def penalty(self, model: PreTrainedModel, step: int, num_steps: int) -> Tensor | None:
        """What the loss of a run's step, from 0, grows by; None beside steps between two looks. A run looks at every
        passage once, or at each of its steps if it has fewer, before it looks any less often."""
        every = min(max(num_steps // len(self._ids), 1), MAX_INTERVAL)
        look, between = divmod(step, every)
        return None if between else every * self.divergence(model, look)

    def divergence(self, model: PreTrainedModel, look: int) -> Tensor:
        """Mean Kullback-Leibler divergence, in nats a token, of the model from the base on the look's passage."""
        passage = look % len(self._ids)
        said = log_probabilities(model, last_hidden(model, self._ids[passage][None])[0])
        with torch.no_grad():
            meant = log_probabilities(model, self._hidden[passage])
        return (meant.exp() * (meant - said)).sum(-1).mean()
