"""Proposers of draft tokens, which one step verifies together (speculative decoding)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graftwork.server.engine.sequence import SequenceState


class Proposer(Protocol):
    """Proposes draft tokens: from n-grams of the prompt, a grammar that leaves no choice, or a smaller model.

    Answers do not depend on it: a draft is accepted only where the sampler chooses the same token, with the random
    number that it would have used anyway (Leviathan et al. 2023, for a deterministic draft). Only the number of steps
    does.
    """

    def propose(self, sequences: Sequence[SequenceState]) -> Sequence[Sequence[int]]:
        """Draft tokens that may follow each sequence's ``tokens``; none where it has no guess.

        Called once a step, for all sequences that got a token and go on. Only as many drafts are computed as there is
        room for beside prompts.
        """
        ...
