"""Finds stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text that arrives in pieces, wherever the text is cut.

    The stop string that is complete first ends the text; of two that end together the longer one does. Only what may
    still become a stop string is held back: fewer characters than the longest of them.

    Attributes:
        found: The stop string that ended the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add a piece.

        Returns:
            The text that is certain now, and whether a stop string ended it. After that, push no more.
        """
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            end, start = min(found)
            self.found = text[start:end]
            return text[:start], True
        cut = min((begins_within(text, stop) for stop in self._stops), default=len(text))
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, after the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def begins_within(text: str, stop: str) -> int:
    """Where the longest suffix of ``text`` begins that is a prefix of ``stop``; the text's length if there is none."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)
