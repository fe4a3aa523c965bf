"""How answers are written down: JSON strings, objects and numbers, and the server-sent events that end a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from json import dumps
from json.encoder import encode_basestring
from typing import Any

from graftwork.adapters.errors import GraftworkError

DONE = b"data: [DONE]\n\n"

_ZERO_PROBABILITY = -9999.0  # OpenAI's word for a probability of zero, which JSON cannot say


_LINE_BREAKS = str.maketrans({"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def error_frame(error: GraftworkError) -> bytes:
    """What ends a stream that has begun and cannot go on."""
    return f"data: {to_json_object(error.body())}\n\n".encode()


def quote(text: str) -> str:
    """``text`` as a JSON string that also survives clients which split events at any of Unicode's line breaks."""
    quoted = encode_basestring(text)
    return quoted if quoted.isascii() else quoted.translate(_LINE_BREAKS)


def to_json_object(value: Mapping[str, Any]) -> str:
    return dumps(value, ensure_ascii=True, separators=(",", ":"))


def to_json_number(logprob: float) -> str:
    """Nine digits are all that a float32 has."""
    return f"{max(logprob, _ZERO_PROBABILITY) if math.isfinite(logprob) else _ZERO_PROBABILITY:.9g}"
