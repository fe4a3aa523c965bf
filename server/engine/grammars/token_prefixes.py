"""What forbidden tokens say about the allowed ones that they begin with. Shapes: T tokens, D prefixes, V vocabulary."""

from __future__ import annotations

import numpy as np
import torch
from llguidance import LLTokenizer
from torch import Tensor

#: What ends the parts of JSON, or joins them.
_STRUCTURE = frozenset(b'"]},:')


class TokenPrefixes:
    """Gives the probability of forbidden tokens to the longest allowed tokens that they begin with.

    A model that ends a string at an object's end says ``"}``, one token. Where more fields must follow, a grammar
    forbids it, and all that is left to end the string is ``"``, with the small probability of a string that ends in
    the middle of an object: strings of small models then hardly ever end. But the probability that the next *byte* is
    a quotation mark is that of all tokens which begin with one, so that is what ``"`` gets. See docs/benchmarks.md for
    how many answers end with it and without.

    Tokens without a character of JSON's structure are left out: they are most, and change little.

    Args:
        tokenizer: Its tokens are looked through once: some 50 ms for 50,000.
    """

    def __init__(self, tokenizer: LLTokenizer) -> None:
        texts = [tokenizer.decode_bytes([token_id]) for token_id in range(tokenizer.vocab_size)]
        ids = {text: token_id for token_id, text in enumerate(texts) if text}
        prefixes = {
            token_id: found
            for token_id, text in enumerate(texts)
            if not _STRUCTURE.isdisjoint(text)
            and (found := [ids[text[:end]] for end in range(len(text) - 1, 0, -1) if text[:end] in ids])
        }
        depth = max(map(len, prefixes.values()), default=1)
        self._tokens = np.array([*prefixes], dtype=np.int64)  # [T]
        #: [T, D], the longest first; filled up with the last.
        self._prefixes = np.array(
            [found + found[-1:] * (depth - len(found)) for found in prefixes.values()], dtype=np.int64
        ).reshape(len(prefixes), depth)

    def hand_over(self, logits: Tensor, allowed: np.ndarray) -> None:
        """Add what forbidden tokens have to their longest allowed prefixes.

        Args:
            logits: float32 [V] on any device. Changed, but for those of forbidden tokens.
            allowed: bool [V].
        """
        possible = allowed[self._prefixes]  # [T, D]
        giving = ~allowed[self._tokens] & possible.any(axis=1)
        givers = self._tokens[giving]
        if not len(givers):
            return
        longest = possible[giving].argmax(axis=1)
        receivers = self._prefixes[giving][np.arange(len(givers)), longest]
        (_add_on_cpu if logits.device.type == "cpu" else _add_on_device)(logits, receivers, givers)


def _add_on_cpu(logits: Tensor, receivers: np.ndarray, givers: np.ndarray) -> None:
    """By numpy: less than half of torch's time for so few numbers."""
    values = logits.numpy()
    np.logaddexp.at(values, receivers, values[givers])


def _add_on_device(logits: Tensor, receivers: np.ndarray, givers: np.ndarray) -> None:
    """Through the host: one copy there and one back."""
    changed, places = np.unique(receivers, return_inverse=True)
    values = logits[torch.from_numpy(np.concatenate([changed, givers])).to(logits.device)].cpu().numpy()
    sums = values[: len(changed)]
    np.logaddexp.at(sums, places, values[len(changed) :])
    logits[torch.from_numpy(changed).to(logits.device)] = torch.from_numpy(sums).to(logits.device)
