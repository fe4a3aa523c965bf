"""The server-sent events that end a stream, and log-probabilities in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from graftwork.adapters.errors import GraftworkError
from graftwork.server.bodies import write_json

#: The end mark of a stream.
DONE = b"data: [DONE]\n\n"

_ZERO_PROBABILITY = -9999.0  # OpenAI's number for log(0): JSON has no infinities


def event_frame(kind: str, event: Mapping[str, Any]) -> bytes:
    """An event with its name, for clients that tell events by it."""
    return b"event: " + kind.encode() + b"\ndata: " + write_json(event) + b"\n\n"


def error_frame(error: GraftworkError) -> bytes:
    """The event that ends a stream which failed."""
    return b"data: " + write_json(error.body()) + b"\n\n"


def json_logprob(logprob: float) -> float:
    """A log-probability as a JSON number of nine digits, which are all that a float32 has."""
    return float(f"{max(logprob, _ZERO_PROBABILITY):.9g}") if math.isfinite(logprob) else _ZERO_PROBABILITY
