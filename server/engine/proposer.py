"""Draft tokens: guesses at what a sequence says next, which one step verifies together (speculative decoding)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graftwork.server.engine.sequence import SequenceState


class Proposer(Protocol):
    """Guesses tokens: by n-grams of the prompt, by a grammar that leaves no choice, by a smaller model.

    Answers do not depend on it: a draft counts only where the sampler chooses the same token, with the random number
    that it would have chosen it with anyway (Leviathan et al. 2023 for a draft that is certain of itself). Only how
    many steps they take does.
    """

    def propose(self, sequences: Sequence[SequenceState]) -> Sequence[Sequence[int]]:
        """Draft tokens that may follow each sequence's ``tokens``, none where it has no guess.

        Called once a step for all that were settled and go on. Of what it returns only as much is computed as there is
        room for beside prompts.
        """
        ...
