"""Compiles grammars in a side thread, so that one never holds up the running batch."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llguidance import LLMatcher, LLTokenizer

from graftwork.server.engine.grammars.grammar import LIMITS, in_words
from graftwork.server.engine.grammars.processor import GrammarProcessor
from graftwork.server.engine.grammars.token_prefixes import TokenPrefixes

#: Grammars that are kept for the next request that brings them. One takes up to some ten megabytes.
MAX_KEPT = 32


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar that was compiled. ``error`` says why it could not be."""

    grammar: str
    error: str | None
    _matcher: LLMatcher  # at the beginning
    _tokenizer: LLTokenizer
    _prefixes: TokenPrefixes

    def processor(self, num_prompt: int) -> GrammarProcessor:
        """What holds one answer, to a prompt of ``num_prompt`` tokens, to this grammar."""
        return GrammarProcessor(self._matcher.deep_copy(), self._tokenizer, self._prefixes, num_prompt)


class GrammarCompiler:
    """Compiles grammars one after another in a side thread, and keeps those that were used last.

    Args:
        tokenizer: The base's. Its vocabulary is as wide as the logits are.
        on_arrival: Called in the side thread after each.
    """

    def __init__(self, tokenizer: LLTokenizer, on_arrival: Callable[[], None]) -> None:
        self._tokenizer = tokenizer
        self._on_arrival = on_arrival
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._under_way: set[str] = set()
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[CompiledGrammar] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="grammar-compiler", daemon=True)
        self._thread.start()

    def get(self, grammar: str) -> CompiledGrammar | None:
        """A compiled grammar; ``None`` if ``completed`` will tell when it is there."""
        if (kept := self._kept.get(grammar)) is not None:
            self._kept.move_to_end(grammar)
            return kept
        if grammar not in self._under_way:
            self._under_way.add(grammar)
            self._wanted.put(grammar)
        return None

    def completed(self) -> Iterable[CompiledGrammar]:
        """What has been compiled since the last time."""
        while not self._arrived.empty():
            compiled = self._arrived.get()
            self._under_way.discard(compiled.grammar)
            if compiled.error is None:
                self._kept[compiled.grammar] = compiled
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            yield compiled

    def close(self) -> None:
        self._wanted.put(None)
        self._thread.join(timeout=5)

    def _work(self) -> None:
        prefixes = TokenPrefixes(self._tokenizer)
        while (grammar := self._wanted.get()) is not None:
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
            if not matcher.is_error():
                matcher.compute_bitmask()  # the first mask takes longest
            error = in_words(matcher.get_error()) or None
            self._arrived.put(CompiledGrammar(grammar, error, matcher, self._tokenizer, prefixes))
            self._on_arrival()
