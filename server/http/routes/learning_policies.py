"""``/v1/learning_policies`` and ``/v1/adapters/{name}/learning_policy``: when adapters are trained by themselves.

They take an operator's key: a policy submits jobs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BeforeValidator, Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.plan import DEFAULT_GUARDRAILS, Ratings
from graftwork.adapters.learning import hyperparameters
from graftwork.adapters.learning.job import METHODS
from graftwork.adapters.learning.rounds.experiment import DEFAULT_DAYS, RoundExperiment
from graftwork.adapters.learning.rounds.policies import (
    DEFAULT_AFTER,
    DEFAULT_AT_LEAST,
    DEFAULT_EVERY_DAYS,
    LearningPolicy,
    PolicyStatus,
)
from graftwork.adapters.registry import reward_models
from graftwork.server.bodies import Label, StrictModel, parse
from graftwork.server.http.lists import in_thread, list_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.routes.experiments import NewGuardrail, NewMetric, guardrails_of, metric_of
from graftwork.server.http.routes.rounds import shown
from graftwork.server.http.schemas.learning_policies import LearningPolicyObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

_METHOD_NAMES = {method: name for name, method in METHODS.items()}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class NewRoundExperiment(StrictModel):
    """How a candidate is compared with the live version, see ``RoundExperiment``."""

    metric: Label | NewMetric | None = None
    weight: float = 0.5
    guardrails: list[NewGuardrail] | None = None
    ratings: Ratings = "all"
    window_seconds: float | None = None
    max_units: Annotated[int, Field(ge=1)] | None = None
    days: float = DEFAULT_DAYS
    alpha: float = 0.05


def _settings(given: Any) -> Any:
    """``true`` and ``false`` as settings: the defaults, and none."""
    return ({} if given else None) if isinstance(given, bool) else given


class NewLearningPolicy(StrictModel):
    """The body that sets an adapter's learning policy."""

    after: Annotated[int, Field(ge=1)] | None = DEFAULT_AFTER
    every_days: Annotated[float, Field(gt=0)] | None = DEFAULT_EVERY_DAYS
    at_least: Annotated[int, Field(ge=1)] = DEFAULT_AT_LEAST
    control_every: Annotated[int, Field(ge=1)] | None = None
    method: MethodName = "auto"
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    experiment: Annotated[
        NewRoundExperiment | None,
        BeforeValidator(_settings, json_schema_input_type=bool | NewRoundExperiment | None),
    ] = None


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of learning policies."""
    policies = services.learning
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.get("/v1/learning_policies", dependencies=[operator], response_model=ListObject[LearningPolicyObject])
    async def list_learning_policies() -> Response:
        return JSONResponse(await in_thread(_all, services))

    @routes.get("/v1/adapters/{name}/learning_policy", dependencies=[operator], response_model=LearningPolicyObject)
    async def get_learning_policy(name: str) -> Response:
        return JSONResponse(await in_thread(_one, services, name))

    @routes.put(
        "/v1/adapters/{name}/learning_policy",
        response_model=LearningPolicyObject,
        openapi_extra=json_body(NewLearningPolicy, required=False),
    )
    async def set_learning_policy(request: Request, name: str, who: Principal = operator) -> Response:
        body = parse(NewLearningPolicy, await request.body() or b"{}")
        chosen = await in_thread(_hyperparameters, services, name, body)
        policy = await in_thread(
            policies.set,
            name,
            after=body.after,
            every_days=body.every_days,
            at_least=body.at_least,
            control_every=body.control_every,
            method=METHODS[body.method],
            hyperparameters=chosen,
            experiment=_experiment(body.experiment),
            actor=who.name,
        )
        log.info("%s: %s learns by itself, %s", who.name, policy.name, when(policy))
        return JSONResponse(await in_thread(_one, services, name))

    @routes.delete("/v1/adapters/{name}/learning_policy", response_model=LearningPolicyObject)
    async def remove_learning_policy(name: str, who: Principal = operator) -> Response:
        was = await in_thread(_one, services, name)
        await in_thread(policies.remove, name)
        log.info("%s: %s no longer learns by itself", who.name, name)
        return JSONResponse(was)


def _hyperparameters(services: Services, name: str, body: NewLearningPolicy) -> dict[str, Any]:
    """The hyperparameters of a policy, when its method suits its adapter."""
    method = METHODS[body.method]
    reward_models.check_method(method, name, services.registry)
    if method == "reward_model" and body.experiment:
        raise InvalidRequest(
            "reward models give no answers that an experiment could compare: leave it out", param="experiment"
        )
    chosen = hyperparameters.validate_hyperparameters(
        body.hyperparameters,
        "hyperparameters",
        method=method,
        roots=services.allowed_roots,
        rules=services.grader_rules,
    )
    if "rewards" in chosen:
        chosen["rewards"] = reward_models.pinned(chosen["rewards"], services.registry)
    return chosen


def when(policy: LearningPolicy) -> str:
    """When a policy begins a round, in words."""
    reasons = [] if policy.after is None else [f"after {policy.after} new judgements"]
    if policy.every_days is not None:
        reasons.append(f"every {policy.every_days:g} days with at least {policy.at_least}")
    return " or ".join(reasons)


def _all(services: Services) -> ListObject[LearningPolicyObject]:
    return list_body([_show(services, policy, standing) for policy, standing in services.learning.all()])


def _one(services: Services, name: str) -> LearningPolicyObject:
    services.registry.adapter(name)  # an adapter that is none is not one without a policy
    return _show(services, *services.learning.get(name))


def _show(services: Services, policy: LearningPolicy, standing: PolicyStatus) -> LearningPolicyObject:
    return {
        "object": "learning_policy",
        "adapter": policy.name,
        "after": policy.after,
        "every_days": policy.every_days,
        "at_least": policy.at_least,
        "control_every": policy.control_every,
        "method": _METHOD_NAMES[policy.method],
        "hyperparameters": dict(policy.hyperparameters),
        "experiment": None if policy.experiment is None else policy.experiment.to_json(),
        "actor": policy.actor,
        "created_at": policy.created_at.timestamp(),
        "updated_at": policy.updated_at.timestamp(),
        "judgements": standing.judgements,
        "due": standing.due,
        "waits_for": standing.waits_for or None,
        "rounds": standing.num_rounds,
        "next_is_control": standing.next_is_control,
        "last_round": None if standing.last is None else shown(standing.last),
    }


def _experiment(given: NewRoundExperiment | None) -> RoundExperiment | None:
    if given is None:
        return None
    return RoundExperiment(
        metric=None if given.metric is None else metric_of(given.metric, "experiment.metric"),
        weight=given.weight,
        guardrails=DEFAULT_GUARDRAILS
        if given.guardrails is None
        else guardrails_of(given.guardrails, "experiment.guardrails"),
        ratings=given.ratings,
        window_seconds=given.window_seconds,
        max_units=given.max_units,
        days=given.days,
        alpha=given.alpha,
    )
