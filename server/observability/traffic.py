"""How much each version was used since this process started: for lists and the operator's page, not for billing."""

from __future__ import annotations

from collections import Counter


class Traffic:
    """Requests and generated tokens by the version that answered (``intents@7``), or the base's id."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def add(self, answered_by: str, num_tokens: int) -> None:
        """Count a request, which took ``num_tokens`` to answer."""
        self._requests[answered_by] += 1
        self._tokens[answered_by] += num_tokens

    def totals(self, answered_by: str) -> tuple[int, int]:
        """Requests and tokens so far."""
        return self._requests[answered_by], self._tokens[answered_by]
