"""``/v1/learning_policies`` and ``/v1/adapters/{name}/learning_policy``: when adapters are trained by themselves.

They take an operator's key: a policy submits jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.learning import hyperparameters
from graftwork.adapters.learning.gate_results import gate_summary, version_by_id
from graftwork.adapters.learning.job import METHODS, Job
from graftwork.adapters.learning.policies import (
    DEFAULT_AFTER,
    DEFAULT_AT_LEAST,
    DEFAULT_EVERY_DAYS,
    LearningPolicy,
    PolicyStatus,
)
from graftwork.adapters.registry import reward_models
from graftwork.server.bodies import StrictModel, parse
from graftwork.server.http.lists import in_thread, list_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.learning_policies import LearningPolicyObject, LearningRoundObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

_METHOD_NAMES = {method: name for name, method in METHODS.items()}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class NewLearningPolicy(StrictModel):
    """The body that sets an adapter's learning policy."""

    after: Annotated[int, Field(ge=1)] | None = DEFAULT_AFTER
    every_days: Annotated[float, Field(gt=0)] | None = DEFAULT_EVERY_DAYS
    at_least: Annotated[int, Field(ge=1)] = DEFAULT_AT_LEAST
    control_every: Annotated[int, Field(ge=1)] | None = None
    method: MethodName = "auto"
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


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
        reward_models.check_method(METHODS[body.method], name, services.registry)
        chosen = hyperparameters.validate_hyperparameters(
            body.hyperparameters, "hyperparameters", method=METHODS[body.method], roots=services.allowed_roots
        )
        if "rewards" in chosen:
            chosen["rewards"] = reward_models.pinned(chosen["rewards"], services.registry)
        policy = await in_thread(
            policies.set,
            name,
            after=body.after,
            every_days=body.every_days,
            at_least=body.at_least,
            control_every=body.control_every,
            method=METHODS[body.method],
            hyperparameters=chosen,
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
        "actor": policy.actor,
        "created_at": policy.created_at.timestamp(),
        "updated_at": policy.updated_at.timestamp(),
        "judgements": standing.judgements,
        "due": standing.due,
        "waits_for": standing.waits_for or None,
        "rounds": standing.num_rounds,
        "next_is_control": standing.next_is_control,
        "last_round": None if standing.last is None else _round(services, standing.last),
    }


def _round(services: Services, job: Job) -> LearningRoundObject:
    gates = None if job.version is None else gate_summary(version_by_id(services.registry, job.version))
    metadata: Mapping[str, str] = job.metadata
    return {
        "number": int(metadata["round"]),
        "job": job.id,
        "control": job.parent is None,
        "continues": job.parent,
        "status": job.status,
        "submitted_at": job.created_at.timestamp(),
        "finished_at": None if job.finished_at is None else job.finished_at.timestamp(),
        "version": job.version,
        "gates": None if gates is None else gates.outcome,
        "gates_passed": None if gates is None else gates.outcome == "pass",
        "refusals": () if gates is None else gates.refusals,
        "doubts": () if gates is None else gates.doubts,
        "error": None if job.error is None else job.error["message"],
    }
