"""Regularization against forgetting: a KL penalty towards the base's predictions on passages that the base generated.

Training on a narrow task also changes a model's other predictions, and the gates refuse a version that has forgotten
too much. So in the steps of a supervised run the model is penalised for diverging from the base on one passage. No
external text is needed, since the base generates the passages (Huang et al. 2024, self-synthesized rehearsal). The
penalty is on the whole distribution over the vocabulary, not only on the sampled token (Li and Hoiem 2016, learning
without forgetting).
"""

from __future__ import annotations

from typing import Final

import tokenizers
import torch
from torch import Tensor
from transformers import PreTrainedModel

from graftwork.training.model.predictions import last_hidden, log_probabilities

PASSAGES: Final = 48
"""Maximum number of passages."""
TOKENS: Final = 64
"""Length of a passage, in tokens."""

MAX_INTERVAL: Final = 4
"""Maximum number of steps between two penalties. A penalty costs half a step and changes slowly, so that it can stand
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
    """The passages of a run, and the base's predictions on them.

    Args:
        ids: token ids, [passages, tokens].
        hidden: last hidden states of the base, [passages, tokens, hidden size].
    """

    def __init__(self, ids: Tensor, hidden: Tensor) -> None:
        self._ids = ids
        self._hidden = hidden

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: PreTrainedModel, tokenizer: tokenizers.Tokenizer, *, seed: int, num_steps: int | None = None
    ) -> Anchor:
        """Generate passages with a base.

        Args:
            model: the base, without an adapter.
            tokenizer: its tokenizer.
            seed: of the sampling; it determines the passages.
            num_steps: number of steps of the run. A run of fewer steps than `PASSAGES` gets one passage per step, since
                generating more can take longer than the run on a CPU.
        """
        num_passages = PASSAGES if num_steps is None else max(1, min(PASSAGES, num_steps))
        # Cut to the shortest opening: without padding, one call generates all passages.
        starts = [tokenizer.encode(text, add_special_tokens=False).ids for text in OPENINGS]
        shortest = min(map(len, starts))
        openings = torch.tensor([ids[:shortest] for ids in starts], device=model.device)
        openings = openings.repeat(-(-num_passages // len(starts)), 1)[:num_passages]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = model.generate(
                openings,
                attention_mask=torch.ones_like(openings),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=TOKENS - openings.shape[1],
                eos_token_id=None,
                pad_token_id=0,
            )
        return cls(ids, torch.cat([last_hidden(model, passage[None]) for passage in ids]))

    def penalty(self, model: PreTrainedModel, step: int, num_steps: int) -> Tensor | None:
        """Return the penalty of a step, a scalar in nats; None for steps without one.

        There is a penalty every ``num_steps / passages`` steps, at most every `MAX_INTERVAL`, scaled by the interval.

        Args:
            model: the model that is trained.
            step: index of the step, from 0.
            num_steps: number of steps of the run.
        """
        interval = self.interval(num_steps)
        index, remainder = divmod(step, interval)
        return None if remainder else interval * self.divergence(model, index)

    def interval(self, num_steps: int) -> int:
        """Return the number of steps from one penalty to the next, in a run of so many."""
        return min(max(num_steps // len(self._ids), 1), MAX_INTERVAL)

    def divergence(self, model: PreTrainedModel, index: int) -> Tensor:
        """Return KL(base ‖ model) on a passage: the mean over its tokens, a scalar in nats. ``index`` may exceed the
        number of passages; they are used in turn."""
        passage = index % len(self._ids)
        predicted = log_probabilities(model, last_hidden(model, self._ids[passage][None])[0])
        with torch.no_grad():
            target = log_probabilities(model, self._hidden[passage])
        return (target.exp() * (target - predicted)).sum(-1).mean()
