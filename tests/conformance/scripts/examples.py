"""What the Python scripts ask for."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

QUESTION: Any = [{"role": "user", "content": "What is the weather like in Paris?"}]

#: Answered in a few words: some clients take an answer that was cut for an error.
SHORT = "What is the capital of France?"

PARAMETERS: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}

RESULT = "sunny, 21 degrees"


class Ticket(BaseModel):
    """What a message is about. Closed: a small model finds no end to what an open object may have besides."""

    model_config = ConfigDict(extra="forbid")

    topic: Literal["card", "transfer", "account"]
    urgent: bool


class Place(BaseModel):
    """What the tools take, as ``PARAMETERS`` says."""

    city: Literal["Paris", "Rome"]


def city(arguments: str | dict[str, Any]) -> None:
    """Check the arguments of a call. Raises if they are others than the tool takes."""
    Place.model_validate(json.loads(arguments) if isinstance(arguments, str) else arguments)
