"""Pools a prompt's hidden states to one vector of length 1, as the steps compute them.

Vectors of length 1 have a direction alone, and the mean has that of the sum: the sum is what is kept. Which hidden
states belong to it, ``ScheduledTokens.hidden`` says: all, or those of the last token.
"""

from __future__ import annotations

from torch import Tensor

from graftwork.server.engine.sequence import ScheduledTokens, SequenceState


def add_hidden_states(item: ScheduledTokens, hidden_states: Tensor) -> None:
    """Add what a step computed of a prompt.

    Args:
        item: What it computed.
        hidden_states: [S, H] of ``item.hidden``, any float dtype.
    """
    sequence = item.sequence
    total = hidden_states.float().sum(dim=0)
    sequence.pooled = total if sequence.pooled is None else sequence.pooled + total
    sequence.num_pooled = item.hidden.stop


def pooled_vector(sequence: SequenceState) -> list[float] | None:
    """The vector of a prompt that is computed to its end: H numbers, of length 1; ``None`` if they are not finite."""
    assert sequence.pooled is not None
    total = sequence.pooled.double()
    length = float(total.norm())
    return (total / length).float().tolist() if 0 < length < float("inf") else None
