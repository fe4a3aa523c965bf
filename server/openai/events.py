"""How answers are written down: JSON, and the server-sent events that end a stream."""

from __future__ import annotations

import math
from typing import Any

import pydantic_core

from graftwork.adapters.errors import GraftworkError

DONE = b"data: [DONE]\n\n"

_ZERO_PROBABILITY = -9999.0  # OpenAI's word for a probability of zero, which JSON cannot say

#: Line breaks of Unicode's in UTF-8, at which some clients split events, and how JSON escapes them.
_LINE_BREAKS = {text.encode(): f"\\u{ord(text):04x}".encode() for text in "\u0085\u2028\u2029"}


def write_json(value: Any) -> bytes:
    """``value`` as JSON in one line, whatever a client takes for the end of one."""
    written = pydantic_core.to_json(value)
    if written.isascii():
        return written
    for line_break, escaped in _LINE_BREAKS.items():
        written = written.replace(line_break, escaped)
    return written


def error_frame(error: GraftworkError) -> bytes:
    """What ends a stream that has begun and cannot go on."""
    return b"data: " + write_json(error.body()) + b"\n\n"


def json_logprob(logprob: float) -> float:
    """A log-probability as JSON can say it, of nine digits, which are all that a float32 has."""
    return float(f"{max(logprob, _ZERO_PROBABILITY):.9g}") if math.isfinite(logprob) else _ZERO_PROBABILITY
