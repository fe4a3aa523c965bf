"""Experiments: arms of an adapter that answer side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.experiments import Experiment
from graftwork.clients.types.pages import Page


def start(
    name: str,
    adapter: str,
    arms: Sequence[Mapping[str, Any]],
    metric: str | Mapping[str, Any],
    *,
    guardrails: Sequence[Mapping[str, Any]] | None = None,
    decision: Mapping[str, Any] | None = None,
    ramp: Mapping[str, Any] | None = None,
    window_seconds: float | None = None,
    alpha: float | None = None,
    unrated: str | None = None,
    allocation: str | None = None,
) -> Call[Experiment]:
    """Start an experiment: requests that name the adapter alone are answered by its arms from now on.

    ``arms``, the control first, are like ``{"version": 7}`` and ``{"version": "candidate", "weight": 0.5}``; ``metric``
    is a name, or an object with one. Everything else is the server's default where it is not given.
    """
    body = {
        "name": name,
        "adapter": adapter,
        "arms": [dict(arm) for arm in arms],
        "metric": metric if isinstance(metric, str) else dict(metric),
        **without_none(
            guardrails=None if guardrails is None else [dict(rail) for rail in guardrails],
            decision=None if decision is None else dict(decision),
            ramp=None if ramp is None else dict(ramp),
            window_seconds=window_seconds,
            alpha=alpha,
            unrated=unrated,
            allocation=allocation,
        ),
    }
    return Call(request=CallRequest(method="POST", path=path_of("experiments"), json=body), read=reader_of(Experiment))


def list(*, status: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[Experiment]]:
    """A page of experiments by name; ``status`` is running or ended, ``after`` the last name of the page before."""
    query = without_none(status=status, after=after, limit=limit)
    return Call(
        request=CallRequest(method="GET", path=path_of("experiments"), query=query), read=reader_of(Page[Experiment])
    )


def get(name: str) -> Call[Experiment]:
    """An experiment with its history, and how it stood over time."""
    return Call(request=CallRequest(method="GET", path=path_of("experiments", name)), read=reader_of(Experiment))


def set_weights(name: str, weights: Mapping[str, float], *, reason: str | None = None) -> Call[Experiment]:
    """Widen treatments of a running experiment, or take them out with 0; the control gets what is left."""
    body = {"weights": dict(weights), **without_none(reason=reason)}
    return Call(
        request=CallRequest(method="PATCH", path=path_of("experiments", name), json=body), read=reader_of(Experiment)
    )


def stop(name: str, *, promote: str | None = None, reason: str | None = None) -> Call[Experiment]:
    """End an experiment, for good; ``promote`` names the arm whose version becomes live."""
    request = CallRequest(
        method="POST", path=path_of("experiments", name, "stop"), json=without_none(promote=promote, reason=reason)
    )
    return Call(request=request, read=reader_of(Experiment))
