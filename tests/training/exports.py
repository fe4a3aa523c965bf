"""Interactions and feedback in the format of the server's exports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from graftwork.adapters.feedback.feedback import Feedback
from graftwork.adapters.feedback.interactions import Completion, Interaction
from graftwork.server.http.routes import feedback as feedback_route
from graftwork.server.http.routes import interactions as interactions_route

NOW = datetime(2026, 1, 2, tzinfo=UTC)


ASKED = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "Where is my parcel?"}]


def answer(id: str, *texts: str, prompt: Any = None, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A logged answer as the server exports it."""
    logged = Interaction(
        id=id,
        base="base",
        model="sort",
        status="ok",
        prompt=prompt or {"messages": ASKED},
        sampling=more.pop("sampling", {}),
        completions=more.pop("completions", None)
        or tuple(
            Completion(index=index, text=text, finish_reason=finish) for index, text in enumerate(texts or ("pause",))
        ),
        prompt_tokens=1,
        completion_tokens=1,
        total_ms=1.0,
        key_id="local",
        created_at=NOW,
        kind="chatcmpl",
        adapter="sort@1",
        experiment=None,
        arm=None,
        probability=None,
        unit=more.pop("unit", None),
        **more,
    )
    return interactions_route.show(logged)


def said(id: str, number: int = 1, **more: Any) -> dict[str, Any]:
    """A piece of feedback as the server exports it."""
    row = Feedback(
        **{"key_id": "local", "unit": None, **more},
        id=number,
        interaction_id=id,
        at=NOW,
        interaction_at=NOW,
        adapter="sort@1",
        experiment=None,
        arm=None,
        probability=None,
    )
    return feedback_route.show(row, "base")
