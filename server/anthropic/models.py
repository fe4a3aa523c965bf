"""Models for Anthropic's clients: what OpenAI's list has, and the members of Anthropic's beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

#: Anthropic's clients always send it, OpenAI's never.
VERSION_HEADER: Final = "anthropic-version"


def with_anthropics_members(model: Any) -> dict[str, Any]:
    """The JSON of a model, or of the list of all, of which there is one at least."""
    if "data" in model:
        models = [*map(with_anthropics_members, model["data"])]
        return {**model, "data": models, "first_id": models[0]["id"], "last_id": models[-1]["id"]}
    created_at = datetime.fromtimestamp(model["created"], UTC).isoformat().replace("+00:00", "Z")
    theirs = {"type": "model", "display_name": model["id"], "created_at": created_at, "lifecycle": "active"}
    return {**model, **theirs, "max_input_tokens": model["max_model_len"]}
