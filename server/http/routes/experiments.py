"""``/v1/experiments``: started, read, changed and stopped by operators.

Readings are computed by ``ExperimentController``; the routes show the last one that it stored. Their fields are
explained in ``adapters/experiments/readings.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters import names
from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import Conflict, InvalidRequest
from graftwork.adapters.experiments.experiment import Experiment, ExperimentEvent
from graftwork.adapters.experiments.exposures import StoredReading
from graftwork.adapters.experiments.metrics import Goal, Metric
from graftwork.adapters.experiments.plan import (
    BASE,
    DEFAULT_GUARDRAILS,
    Allocation,
    Arm,
    Covariate,
    DecisionRule,
    ExperimentPlan,
    Guardrail,
    Ramp,
    Ratings,
    Unit,
    Unrated,
)
from graftwork.server.bodies import Label, StrictModel, Text, parse
from graftwork.server.http.lists import Parameters, in_thread, page_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.experiments import (
    ExperimentArmObject,
    ExperimentEventObject,
    ExperimentMetricObject,
    ExperimentObject,
    ReadingPointObject,
)
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services
from graftwork.server.openai.requests.generation import INT32_MAX

log = logging.getLogger(__name__)

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class ArmSampling(StrictModel):
    """Sampling parameters that an arm overrides; ``max_tokens`` is an upper bound."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class NewArm(StrictModel):
    """An arm of a new experiment: a version number, ``base`` or an alias, and what it does differently."""

    version: int | Label | None = None
    alias: Label | None = None
    name: Label | None = None
    weight: Share | None = None
    shadow: Share | None = None
    system: Text | None = None
    sampling: ArmSampling | None = None


class NewMetric(StrictModel):
    """A metric with options, see ``Metric.of``."""

    name: Label
    over: Positive | None = None
    range: tuple[float, float] | None = None
    goal: Goal | None = None


class NewGuardrail(StrictModel):
    """A guardrail of a new experiment, see ``Guardrail``."""

    metric: Label | NewMetric
    limit: float | None = None
    margin: float | None = None
    alpha: float = 0.01


class NewDecision(StrictModel):
    """The decision rule of a new experiment, see ``DecisionRule``; ``until`` is in Unix seconds."""

    promote_above: float | None = 0.0
    stop_below: float | None = 0.0
    max_units: int | None = None
    until: float | None = None
    automatic: bool = False


class NewRamp(StrictModel):
    """The ramp of a new experiment, see ``Ramp``."""

    weights: list[float]
    min_units: int = 100
    min_seconds: float = 0.0


class NewExperiment(StrictModel):
    """The body that starts an experiment, see ``ExperimentPlan``."""

    name: Label
    adapter: Label
    arms: Annotated[list[NewArm], Field(min_length=1)]
    metric: Label | NewMetric
    guardrails: list[NewGuardrail] | None = None
    decision: NewDecision = NewDecision()
    ramp: NewRamp | None = None
    unit: Unit = "user"
    window_seconds: float | None = None
    alpha: float = 0.05
    reserve: float = 0.2
    unrated: Unrated = "leave_out"
    covariate: Covariate = "past"
    ratings: Ratings = "all"
    learned_days: float = 7.0
    allocation: Allocation = "fixed"


class JoiningArm(NewArm):
    """The body with which an arm joins a running experiment."""

    weight: Share
    reason: Text | None = None


class NewWeights(StrictModel):
    """The body that changes weights, by arm."""

    weights: Annotated[dict[str, Share], Field(min_length=1)]
    reason: Text | None = None


class Stop(StrictModel):
    """The body that stops an experiment, and may promote an arm."""

    promote: Label | None = None
    reason: Text | None = None


class ExperimentParameters(Parameters):
    """The filter and page of a list of experiments."""

    status: Literal["running", "ended"] | None = None
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of experiments."""
    experiments, base = services.experiments, services.base
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.post(
        "/v1/experiments",
        status_code=201,
        response_model=ExperimentObject,
        openapi_extra=json_body(NewExperiment),
    )
    async def start_experiment(request: Request, who: Principal = operator) -> Response:
        body = parse(NewExperiment, await request.body())
        plan = _plan(body)
        # First of all: what is said of an adapter's log would tell that it is there.
        await in_thread(services.registry.adapter, plan.adapter)
        await in_thread(_check_logged, services, plan.adapter, plan.arms)
        started = await in_thread(experiments.start, body.name, plan, base_digest=base.digest, actor=who.name)
        log.info("%s started the experiment %s on %s", who.name, started.name, plan.adapter)
        history = await in_thread(experiments.history, started.name)
        return JSONResponse(_experiment(services, started, None, history), 201)

    @routes.get("/v1/experiments", dependencies=[operator], response_model=ListObject[ExperimentObject])
    async def list_experiments(page: Annotated[ExperimentParameters, Query()]) -> Response:
        running = None if page.status is None else page.status == "running"
        found = await in_thread(experiments.find, running=running, after=page.after, limit=page.limit)
        readings = {each.name: await in_thread(services.exposures.last_reading, each.name) for each in found}
        return JSONResponse(page_body(found, lambda each: _experiment(services, each, readings[each.name])))

    @routes.get("/v1/experiments/{name}", dependencies=[operator], response_model=ExperimentObject)
    async def get_experiment(name: str) -> Response:
        return JSONResponse(await in_thread(_whole, services, name))

    @routes.patch("/v1/experiments/{name}", response_model=ExperimentObject, openapi_extra=json_body(NewWeights))
    async def change_weights(request: Request, name: str, who: Principal = operator) -> Response:
        body = parse(NewWeights, await request.body())
        await in_thread(experiments.set_weights, name, body.weights, actor=who.name, reason=body.reason)
        log.info("%s changed the weights of %s: %s", who.name, name, body.weights)
        return JSONResponse(await in_thread(_whole, services, name))

    @routes.post(
        "/v1/experiments/{name}/arms",
        status_code=201,
        response_model=ExperimentObject,
        openapi_extra=json_body(JoiningArm),
    )
    async def add_arm(request: Request, name: str, who: Principal = operator) -> Response:
        body = parse(JoiningArm, await request.body())
        arm = _arm(body, "", 0.0)
        running = await in_thread(experiments.get, name)
        await in_thread(_check_logged, services, running.plan.adapter, [arm])
        joined = await in_thread(
            experiments.add_arm, name, arm, base_digest=base.digest, actor=who.name, reason=body.reason
        )
        log.info("%s let %s join the experiment %s", who.name, joined.plan.arms[-1].name, name)
        return JSONResponse(await in_thread(_whole, services, name), 201)

    @routes.post(
        "/v1/experiments/{name}/stop",
        response_model=ExperimentObject,
        openapi_extra=json_body(Stop, required=False),
    )
    async def stop_experiment(request: Request, name: str, who: Principal = operator) -> Response:
        body = parse(Stop, await request.body() or b"{}")
        last = await in_thread(services.exposures.last_reading, name)
        await in_thread(
            experiments.stop,
            name,
            decision="stopped" if body.promote is None else "promoted",
            arm=body.promote,
            actor=who.name,
            reason=body.reason or f"stopped by {who.name}",
            reading=None if last is None else last.reading,
        )
        log.info("%s stopped the experiment %s", who.name, name)
        return JSONResponse(await in_thread(_whole, services, name))


# ---------------------------------------------------------------------------------------------- from bodies to plans


def _plan(body: NewExperiment) -> ExperimentPlan:
    given = [arm.weight for arm in body.arms if arm.shadow is None]
    # Without any weight, all arms get the same.
    equal = 1 / len(given) if given and body.ramp is None and not any(weight is not None for weight in given) else 0.0
    return ExperimentPlan(
        adapter=body.adapter,
        arms=tuple(_arm(arm, f"arms[{place}].", equal) for place, arm in enumerate(body.arms)),
        metric=metric_of(body.metric, "metric"),
        guardrails=DEFAULT_GUARDRAILS if body.guardrails is None else guardrails_of(body.guardrails, "guardrails"),
        rule=DecisionRule(
            promote_above=body.decision.promote_above,
            stop_below=body.decision.stop_below,
            max_units=body.decision.max_units,
            until=_moment(body.decision.until),
            automatic=body.decision.automatic,
        ),
        ramp=None
        if body.ramp is None
        else Ramp(weights=tuple(body.ramp.weights), min_units=body.ramp.min_units, min_seconds=body.ramp.min_seconds),
        unit=body.unit,
        window_seconds=body.window_seconds,
        alpha=body.alpha,
        reserve=body.reserve,
        unrated=body.unrated,
        covariate=body.covariate,
        ratings=body.ratings,
        learned_days=body.learned_days,
        allocation=body.allocation,
    )


def _arm(arm: NewArm, at: str, equal: float) -> Arm:
    """The arm of a body's part, which ``at`` names in errors; without a weight it gets an ``equal`` one."""
    if (arm.version is None) == (arm.alias is None):
        raise InvalidRequest(
            'an arm has a version: its number, an alias, or "base" for the model without an adapter',
            param=f"{at}version",
        )
    selector = arm.version if arm.alias is None else arm.alias
    if arm.name is not None and not names.is_name(arm.name):
        raise InvalidRequest(
            f"{names.quoted(arm.name)} cannot be an arm's name: use 1 to 64 characters out of a-z, 0-9, '.', '_' and "
            "'-', the first one a letter or a digit",
            param=f"{at}name",
            code="invalid_name",
        )
    return Arm(
        name=arm.name or "",
        version=selector if isinstance(selector, int) else None,
        alias=selector if isinstance(selector, str) and selector != BASE else None,
        weight=(equal if arm.shadow is None else 0.0) if arm.weight is None else arm.weight,
        shadow=arm.shadow,
        system=arm.system,
        sampling={} if arm.sampling is None else arm.sampling.model_dump(exclude_none=True),
    )


def guardrails_of(given: Sequence[NewGuardrail], param: str) -> tuple[Guardrail, ...]:
    """The guardrails of a body; ``param`` is their field there."""
    return tuple(
        Guardrail(
            metric=metric_of(rail.metric, f"{param}[{place}].metric"),
            limit=rail.limit,
            margin=rail.margin,
            alpha=rail.alpha,
        )
        for place, rail in enumerate(given)
    )


def metric_of(given: str | NewMetric, param: str) -> Metric:
    """The metric of a body; ``param`` is its field there."""
    if isinstance(given, str):
        return Metric.of(given, param=param)
    return Metric.of(given.name, over=given.over, range=given.range, goal=given.goal, param=param)


def _moment(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest("until is a moment in unix seconds", param="decision.until") from None


def _check_logged(services: Services, adapter: str, arms: Sequence[Arm]) -> None:
    """Refuse arms whose answers are not logged: an experiment would have no data of them."""
    subjects = {services.base.id if arm.version is None and arm.alias is None else adapter for arm in arms}
    for subject in sorted(subjects):
        if not services.records.policies.is_logged(adapter=subject, key_id=""):
            raise Conflict(
                f"the answers of {subject!r} are not logged, so an experiment would see nothing of them: let them be "
                "logged first (a log policy, or a server without --no-interaction-log)"
            )


# ---------------------------------------------------------------------------------------------- from plans to answers


def _whole(services: Services, name: str) -> ExperimentObject:
    """An experiment with its history and all its readings."""
    experiment = services.experiments.get(name)
    readings = services.exposures.readings(name)
    history = services.experiments.history(name)
    return {
        **_experiment(services, experiment, readings[-1] if readings else None, history),
        "history": [_event(event) for event in history],
        "readings": [_point(reading) for reading in readings],
    }


def _experiment(
    services: Services, experiment: Experiment, last: StoredReading | None, history: Sequence[ExperimentEvent] = ()
) -> ExperimentObject:
    plan, outcome = experiment.plan, experiment.outcome
    return {
        "object": "experiment",
        "name": experiment.name,
        "adapter": plan.adapter,
        "status": "running" if experiment.running else "ended",
        "started_at": experiment.started_at.timestamp(),
        "started_by": experiment.started_by,
        "ended_at": None if experiment.ended_at is None else experiment.ended_at.timestamp(),
        "arms": [_shown_arm(experiment, arm, services.base.id) for arm in plan.arms],
        "metric": _shown_metric(plan.metric),
        "guardrails": [
            {
                "metric": _shown_metric(rail.metric),
                "limit": rail.limit,
                "margin": rail.margin,
                "alpha": rail.alpha,
            }
            for rail in plan.guardrails
        ],
        "decision": {
            "promote_above": plan.rule.promote_above,
            "stop_below": plan.rule.stop_below,
            "max_units": plan.rule.max_units,
            "until": None if plan.rule.until is None else plan.rule.until.timestamp(),
            "automatic": plan.rule.automatic,
        },
        "ramp": None
        if plan.ramp is None
        else {
            "weights": list(plan.ramp.weights),
            "min_units": plan.ramp.min_units,
            "min_seconds": plan.ramp.min_seconds,
        },
        "unit": plan.unit,
        "window_seconds": plan.window.total_seconds(),
        "alpha": plan.alpha,
        "reserve": plan.reserve,
        "unrated": plan.unrated,
        "covariate": plan.covariate,
        "ratings": plan.ratings,
        "learned_days": plan.learned_days,
        "allocation": plan.allocation,
        "epochs": [
            {"number": epoch.number, "at": epoch.at.timestamp(), "weights": epoch.split.weights}
            for epoch in experiment.epochs
        ],
        "outcome": None
        if outcome is None
        else {
            "decision": outcome.decision,
            "arm": outcome.arm,
            "reason": outcome.reason,
            "actor": outcome.actor,
            "reading": outcome.reading,
        },
        "reading": None if last is None else {"at": last.at.timestamp(), **last.reading},
        "warnings": _warnings(services, plan, history) if experiment.running else [],
    }


def _warnings(services: Services, plan: ExperimentPlan, history: Sequence[ExperimentEvent]) -> list[str]:
    """What keeps a running experiment from what its plan wants, in words, and what was found at its start."""
    found = [warning for event in history for warning in (event.details or {}).get("warnings", ())]
    if plan.ratings == "all" or services.records.policies.may_ask(plan.adapter):
        return found
    return [
        *found,
        f"only feedback that was asked for counts (ratings), and no user of {plan.adapter} is asked: set ask_feedback "
        "in its log policy",
    ]


def _shown_arm(experiment: Experiment, arm: Arm, base_id: str) -> ExperimentArmObject:
    return {
        "name": arm.name,
        "version": arm.version,
        "adapter": base_id if arm.version is None else f"{experiment.plan.adapter}@{arm.version}",
        "alias": arm.alias,
        "control": arm is experiment.plan.control,
        "weight": None if arm.shadow is not None else experiment.weight(arm.name),
        "shadow": arm.shadow,
        "system": arm.system,
        "sampling": dict(arm.sampling),
        "joined": arm.joined,
        "alpha": experiment.plan.alpha_of(arm) if arm in experiment.plan.treatments else None,
    }


def _shown_metric(metric: Metric) -> ExperimentMetricObject:
    return {
        "name": metric.name,
        "over": metric.over,
        "range": list(metric.range) if metric.range else None,
        "goal": metric.goal,
        "label": metric.label,
    }


def _event(event: ExperimentEvent) -> ExperimentEventObject:
    return {
        "object": "experiment.event",
        "id": event.id,
        "at": event.at.timestamp(),
        "experiment": event.experiment,
        "action": event.action,
        "arm": event.arm,
        "actor": event.actor,
        "reason": event.reason,
        "details": event.details,
    }


def _point(stored: StoredReading) -> ReadingPointObject:
    """The part of a reading that a chart over time shows."""
    reading: dict[str, Any] = stored.reading
    return {
        "at": stored.at.timestamp(),
        "units": stored.units,
        "arms": [
            {
                "arm": arm["arm"],
                "judged": arm["judged"],
                "mean": arm["mean"],
                "lower": arm["lower"],
                "upper": arm["upper"],
            }
            for arm in reading["arms"]
        ],
        "comparisons": [
            {
                "arm": comparison["arm"],
                "units": comparison["units"],
                "difference": comparison["difference"],
                "lower": comparison["lower"],
                "upper": comparison["upper"],
            }
            for comparison in reading["comparisons"]
        ],
    }
