"""The server-sent events that end a stream, and log-probabilities as JSON has them."""

from __future__ import annotations

import math

from graftwork.adapters.errors import GraftworkError
from graftwork.server.bodies import write_json

DONE = b"data: [DONE]\n\n"

_ZERO_PROBABILITY = -9999.0  # OpenAI's word for a probability of zero, which JSON cannot say


def error_frame(error: GraftworkError) -> bytes:
    """What ends a stream that has begun and cannot go on."""
    return b"data: " + write_json(error.body()) + b"\n\n"


def json_logprob(logprob: float) -> float:
    """A log-probability as JSON can say it, of nine digits, which are all that a float32 has."""
    return float(f"{max(logprob, _ZERO_PROBABILITY):.9g}") if math.isfinite(logprob) else _ZERO_PROBABILITY
