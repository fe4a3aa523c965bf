"""Parses untrusted JSON strictly: what parsers may interpret differently is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.names import escaped

_MAX_NESTING = 20  # objects and lists in each other


def parse_object(raw: bytes, *, what: str) -> dict[str, Any]:
    """Parse a JSON object, strictly.

    Args:
        raw: UTF-8, one JSON object and nothing else: no name twice, no NaN, nothing infinite, little nesting.
        what: What it is, with which messages begin.

    Raises:
        InvalidAdapter: It is anything else.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed: dict[str, Any] = {}
        for name, value in items:
            if name in parsed:
                raise InvalidAdapter(f"{what} has {escaped(name)} twice, and nothing says which holds.")
            parsed[name] = value
        return parsed

    def constant(text: str) -> Any:
        raise InvalidAdapter(f"{what} has {text}, which is no JSON number.")

    def finite(text: str) -> float:
        return number if math.isfinite(number := float(text)) else constant(escaped(text))

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=finite)
        # Lone surrogates, which no database or response can hold.
        if b"\\ud" in raw.lower():
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InvalidAdapter(f"{what} is nested too deeply.") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise InvalidAdapter(f"{what} is not JSON in UTF-8: {error}.") from None
    if not isinstance(parsed, dict):
        raise InvalidAdapter(f"{what} is not a JSON object.")
    level: list[Any] = [parsed]
    for _ in range(_MAX_NESTING):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
    if level:
        raise InvalidAdapter(f"{what} is nested too deeply.")
    return parsed
