"""One answer held to a grammar: which tokens may come next, whether it is complete. Shapes: N rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from graftwork.server.engine.grammars.grammar import in_words
from graftwork.server.engine.grammars.token_prefixes import TokenPrefixes
from graftwork.server.engine.logits_processors import LogitsRow

#: Tokens that end an answer are always fewer.
_FEW = 1024


class GrammarProcessor:
    """Sets the logits of all tokens to -inf that the grammar does not allow. The last processor of its request.

    Args:
        matcher: At the beginning of an answer, and nobody else's.
        tokenizer: What it was compiled with.
        prefixes: Of its tokens.
        num_prompt: Tokens before the answer.
    """

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer, prefixes: TokenPrefixes, num_prompt: int) -> None:
        self._matcher = matcher
        self._prefixes = prefixes
        self._vocab_size = tokenizer.vocab_size
        self._mask = np.zeros((self._vocab_size + 31) // 32, dtype=np.int32)
        self._ends = tokenizer.eos_tokens
        self._num_prompt = num_prompt
        self._consumed: list[int] = []

    @property
    def error(self) -> str | None:
        """Why the answer cannot be held to the grammar any longer."""
        return in_words(self._matcher.get_error()) or None

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether nothing may follow ``tokens``, the prompt and all that was generated."""
        return self._follow(tokens) and self._matcher.is_stopped() and not self._matcher.is_error()

    def forced_tokens(self, tokens: Sequence[int]) -> Sequence[int]:
        """What must follow ``tokens``, the prompt and all that was generated; nothing where there is a choice."""
        return self._matcher.compute_ff_tokens() if self._follow(tokens) else ()

    def is_active(self, row: LogitsRow) -> bool:
        return True

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        """See ``LogitsProcessor``.

        Where the processors before it left none of the allowed tokens (``min_tokens`` at the grammar's end), all that
        are allowed are as likely. A row behind a draft that the grammar forbids stays as it is: it never counts.
        """
        for row in rows:
            if not self._follow(row.tokens):
                continue
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
            if self._matcher.is_error():
                continue
            bits = np.unpackbits(self._mask.view(np.uint8), count=self._vocab_size, bitorder="little")
            allowed = bits.view(np.bool_)
            if not self._matcher.is_accepting():
                allowed[self._ends] = False  # a base may call it an end and yet have it in texts
            self._prefixes.hand_over(logits[row.index], allowed)
            _leave(logits[row.index], allowed)

    def _follow(self, tokens: Sequence[int]) -> bool:
        """Bring the matcher behind ``tokens``. ``False`` if the grammar does not allow them."""
        generated = list(tokens[self._num_prompt :])
        same = len(self._consumed)
        if generated[:same] != self._consumed:  # drafts turned out wrong
            pairs = enumerate(zip(generated, self._consumed, strict=False))
            same = next((i for i, (a, b) in pairs if a != b), min(len(generated), same))
            self._matcher.rollback(len(self._consumed) - same)
        num_new = self._matcher.try_consume_tokens(generated[same:])
        self._consumed = generated[: same + num_new]
        return len(self._consumed) == len(generated)


def _leave(row: Tensor, allowed: np.ndarray) -> None:
    """Set all of ``row`` [V] to -inf but the tokens that ``allowed``, bool [about V], has."""
    allowed = allowed[: len(row)]
    few = np.flatnonzero(allowed) if np.count_nonzero(allowed) <= _FEW else None
    (_leave_on_cpu if row.device.type == "cpu" else _leave_on_device)(row, ~allowed, few)


def _leave_on_cpu(row: Tensor, forbidden: np.ndarray, few: np.ndarray | None) -> None:
    """By numpy: torch would share so little out among threads that have other things to do."""
    values, size = row.numpy(), len(forbidden)
    np.copyto(values[:size], -np.inf, where=forbidden)
    values[size:] = -np.inf
    if few is not None and np.isneginf(values[few]).all():
        values[few] = 0


def _leave_on_device(row: Tensor, forbidden: np.ndarray, few: np.ndarray | None) -> None:
    size = len(forbidden)
    row[:size].masked_fill_(torch.from_numpy(forbidden).to(row.device), float("-inf"))
    row[size:] = float("-inf")
    if few is not None:
        index = torch.from_numpy(few).to(row.device)
        if bool(torch.isneginf(row[index]).all()):
            row[index] = 0.0
