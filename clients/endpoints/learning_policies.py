"""When adapters learn by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwork.clients.endpoints.parts import path_of, reader_of
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.learning_policies import LearningPolicy
from graftwork.clients.types.pages import Page


def list() -> Call[Page[LearningPolicy]]:
    """All adapters that learn by themselves, and how they stand."""
    return Call(
        request=CallRequest(method="GET", path=path_of("learning_policies")), read=reader_of(Page[LearningPolicy])
    )


def get(adapter: str) -> Call[LearningPolicy]:
    """When an adapter learns by itself, and how that stands; raises ``NotFoundError`` when it does not."""
    return Call(request=CallRequest(method="GET", path=_learning_path(adapter)), read=reader_of(LearningPolicy))


def set(
    adapter: str,
    *,
    after: int | None = 50,
    every_days: float | None = 7.0,
    at_least: int = 10,
    control_every: int | None = None,
    method: str = "auto",
    hyperparameters: Mapping[str, Any] | None = None,
) -> Call[LearningPolicy]:
    """Let an adapter learn by itself: ``after`` so many new judgements, or ``every_days`` with ``at_least`` so many;
    ``None`` turns one of the two off. Every ``control_every``-th round begins with the base, to compare with.
    ``method`` and ``hyperparameters`` are those of its jobs."""
    body = {
        "after": after,
        "every_days": every_days,
        "at_least": at_least,
        "control_every": control_every,
        "method": method,
        "hyperparameters": dict(hyperparameters or {}),
    }
    return Call(
        request=CallRequest(method="PUT", path=_learning_path(adapter), json=body), read=reader_of(LearningPolicy)
    )


def remove(adapter: str) -> Call[LearningPolicy]:
    """Let an adapter learn on command alone. A round that is under way goes on."""
    return Call(request=CallRequest(method="DELETE", path=_learning_path(adapter)), read=reader_of(LearningPolicy))


def _learning_path(adapter: str) -> str:
    return path_of("adapters", adapter, "learning_policy")
