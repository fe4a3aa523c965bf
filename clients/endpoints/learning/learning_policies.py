"""Learning policies: when adapters are trained automatically."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwork.clients.endpoints.parts import path_of, reader_of
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.learning.learning_policies import LearningPolicy
from graftwork.clients.types.pages import Page


def list() -> Call[Page[LearningPolicy]]:
    """List the learning policies of all adapters, with their state."""
    return Call(
        request=CallRequest(method="GET", path=path_of("learning_policies")), read=reader_of(Page[LearningPolicy])
    )


def get(adapter: str) -> Call[LearningPolicy]:
    """Get the learning policy of an adapter, with its state.

    Raises:
        NotFoundError: if the adapter has no learning policy.
    """
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
    experiment: bool | Mapping[str, Any] | None = None,
) -> Call[LearningPolicy]:
    """Set the learning policy of an adapter.

    Args:
        adapter: the name of the adapter.
        after: number of new judgements that starts a round; None turns this trigger off.
        every_days: days after which a round starts; None turns this trigger off.
        at_least: minimum number of new judgements for that.
        control_every: every so many rounds, a round trains from the base for comparison; None for no such rounds.
        method: the method of its jobs.
        hyperparameters: the hyperparameters of its jobs.
        experiment: whether a candidate that its gates do not refuse starts an experiment that decides about it, or the
            settings of that experiment; see docs/learning.md.
    """
    body = {
        "after": after,
        "every_days": every_days,
        "at_least": at_least,
        "control_every": control_every,
        "method": method,
        "hyperparameters": dict(hyperparameters or {}),
        "experiment": experiment if isinstance(experiment, bool | None) else dict(experiment),
    }
    return Call(
        request=CallRequest(method="PUT", path=_learning_path(adapter), json=body), read=reader_of(LearningPolicy)
    )


def remove(adapter: str) -> Call[LearningPolicy]:
    """Remove the learning policy of an adapter. A running round continues."""
    return Call(request=CallRequest(method="DELETE", path=_learning_path(adapter)), read=reader_of(LearningPolicy))


def _learning_path(adapter: str) -> str:
    return path_of("adapters", adapter, "learning_policy")
