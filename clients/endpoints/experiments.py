"""Experiments: A/B tests of the versions of an adapter."""

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
    unit: str | None = None,
    window_seconds: float | None = None,
    alpha: float | None = None,
    reserve: float | None = None,
    unrated: str | None = None,
    covariate: str | None = None,
    ratings: str | None = None,
    learned_days: float | None = None,
    allocation: str | None = None,
) -> Call[Experiment]:
    """Start an experiment. From then on its arms answer the requests that name the adapter without a version.

    Options that are None have defaults of the server. Their JSON is described in docs/api.md.

    Args:
        name: the name of the experiment.
        adapter: the name of the adapter.
        arms: the arms, the control first: ``{"version": 7}``, ``{"version": "candidate", "weight": 0.5}``.
        metric: the primary metric: its name, or an object with ``name``.
        guardrails: limits for other metrics.
        decision: when the experiment is decided, and whether the decision is applied automatically.
        ramp: increasing weights of the treatment.
        unit: ``user`` or ``episode``: what gets an arm and counts once.
        window_seconds: time in which feedback on a unit's answers counts. By default it fits the metric.
        alpha: the significance level.
        reserve: the part of alpha that is kept for arms that join.
        unrated: how units without feedback count.
        covariate: ``past`` compares units with their own past, ``none`` does not.
        ratings: which feedback counts: ``all``, or ``asked``: what a log policy's ``ask_feedback`` asked for.
        learned_days: days for which users do not count after an answer that an arm's version learned from.
        allocation: what a unit is.

    Raises:
        BadRequestError: if the plan is invalid.
        ConflictError: if the adapter has a running experiment, or the name is taken.
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
            unit=unit,
            window_seconds=window_seconds,
            alpha=alpha,
            reserve=reserve,
            unrated=unrated,
            covariate=covariate,
            ratings=ratings,
            learned_days=learned_days,
            allocation=allocation,
        ),
    }
    return Call(request=CallRequest(method="POST", path=path_of("experiments"), json=body), read=reader_of(Experiment))


def list(*, status: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[Experiment]]:
    """List experiments by name; ``status`` is running or ended, ``after`` the last name of the previous page."""
    query = without_none(status=status, after=after, limit=limit)
    return Call(
        request=CallRequest(method="GET", path=path_of("experiments"), query=query), read=reader_of(Page[Experiment])
    )


def get(name: str) -> Call[Experiment]:
    """Get an experiment with its history and its readings over time.

    Raises:
        NotFoundError: if there is no such experiment.
    """
    return Call(request=CallRequest(method="GET", path=path_of("experiments", name)), read=reader_of(Experiment))


def set_weights(name: str, weights: Mapping[str, float], *, reason: str | None = None) -> Call[Experiment]:
    """Increase the weights of treatments in a running experiment, or remove treatments by 0. The control gets the rest.

    Args:
        name: the name of the experiment.
        weights: new weights by arm.
        reason: a reason for the history.
    """
    body = {"weights": dict(weights), **without_none(reason=reason)}
    return Call(
        request=CallRequest(method="PATCH", path=path_of("experiments", name), json=body), read=reader_of(Experiment)
    )


def add_arm(name: str, arm: Mapping[str, Any], *, reason: str | None = None) -> Call[Experiment]:
    """Let a treatment join a running experiment. It takes its weight from the control.

    Args:
        name: the name of the experiment.
        arm: the arm: ``{"version": 9, "weight": 0.2}``.
        reason: a reason for the history.

    Raises:
        BadRequestError: if the arm is invalid, or the control has too little left.
        ConflictError: if the experiment has ended, or reserved nothing for arms that join.
    """
    body = {**arm, **without_none(reason=reason)}
    request = CallRequest(method="POST", path=path_of("experiments", name, "arms"), json=body)
    return Call(request=request, read=reader_of(Experiment))


def stop(name: str, *, promote: str | None = None, reason: str | None = None) -> Call[Experiment]:
    """End an experiment permanently; ``promote`` names the arm whose version becomes live."""
    request = CallRequest(
        method="POST", path=path_of("experiments", name, "stop"), json=without_none(promote=promote, reason=reason)
    )
    return Call(request=request, read=reader_of(Experiment))
