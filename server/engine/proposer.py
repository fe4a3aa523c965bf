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


class ForcedTokenProposer:
    """Proposes what a grammar leaves no choice about, such as the names of required fields.

    A grammar forces bytes. Where the sampler puts them into other tokens than the tokenizer does, the drafts were in
    vain.
    """

    def propose(self, sequences: Sequence[SequenceState]) -> Sequence[Sequence[int]]:
        """The tokens that must follow; none for a sequence without a grammar."""
        return [sequence.grammar.forced_tokens(sequence.tokens) if sequence.grammar else () for sequence in sequences]
