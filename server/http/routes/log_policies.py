"""``/v1/log_policies``: what is logged, how long, and how often users are asked for feedback, per adapter and per key.

They take an operator's key.
"""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.access.scope import visible
from graftwork.adapters.errors import NotFound
from graftwork.adapters.feedback.policies import LogPolicy, PolicyScope
from graftwork.server.bodies import StrictModel, parse
from graftwork.server.http.lists import in_thread, list_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.log_policies import LogPolicyListObject, LogPolicyObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

#: The scope of a policy, by the path's name for it.
SCOPES: dict[str, Literal["adapter", "key"]] = {"adapters": "adapter", "keys": "key"}


class NewLogPolicy(StrictModel):
    """The body that sets a log policy."""

    log: bool
    retention_days: Annotated[float, Field(gt=0)] | None = None
    ask_feedback: Annotated[float, Field(ge=0, le=1)] | None = None


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of log policies."""
    policies = services.records.policies
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.get("/v1/log_policies", response_model=LogPolicyListObject)
    async def list_policies(who: Principal = operator) -> Response:
        found = [
            policy for policy in await in_thread(policies.all) if _visible(services, who, policy.scope, policy.subject)
        ]
        default = {"log": policies.log, "retention_days": policies.retention_days}
        return JSONResponse({**list_body([_show(policy) for policy in found]), "default": default})

    # The base's id may be a hub id, which contains a slash.
    @routes.put(
        "/v1/log_policies/{scope}/{subject:path}",
        response_model=LogPolicyObject,
        openapi_extra=json_body(NewLogPolicy),
    )
    async def set_policy(
        request: Request, scope: Literal["adapters", "keys"], subject: str, who: Principal = operator
    ) -> Response:
        body = parse(NewLogPolicy, await request.body())
        await in_thread(_check_subject, services, who, scope, subject)
        policy = await in_thread(
            policies.set,
            SCOPES[scope],
            subject,
            log=body.log,
            retention_days=body.retention_days,
            ask_feedback=body.ask_feedback,
            actor=who.name,
        )
        log.info(
            "%s: the %s %s is %s, retention %s, feedback asked for on a share of %g",
            who.name,
            policy.scope,
            policy.subject,
            "logged" if policy.log else "not logged",
            "by default" if policy.retention_days is None else f"{policy.retention_days} days",
            policy.ask_feedback or 0,
        )
        return JSONResponse(_show(policy))

    @routes.delete("/v1/log_policies/{scope}/{subject:path}", response_model=LogPolicyObject)
    async def remove_policy(scope: Literal["adapters", "keys"], subject: str, who: Principal = operator) -> Response:
        if not _visible(services, who, SCOPES[scope], subject):
            await in_thread(_check_subject, services, who, scope, subject)
        policy = await in_thread(policies.remove, SCOPES[scope], subject)
        log.info("%s: for the %s %s the default holds again", who.name, policy.scope, policy.subject)
        return JSONResponse(_show(policy))


def _visible(services: Services, who: Principal, scope: PolicyScope, subject: str) -> bool:
    """Whether a caller may see and set the policy of an adapter or a key. With a scope, the only key is its own."""
    if scope == "adapter":
        return visible(None if subject == services.base.id else subject)
    return who.scope is None or subject == who.key_id


def _check_subject(services: Services, who: Principal, scope: str, subject: str) -> None:
    """Refuse a policy for an adapter or a key that does not exist, or is out of the caller's scope."""
    if scope == "adapters":
        if subject != services.base.id or not visible(None):
            services.registry.adapter(subject)
    elif not _visible(services, who, "key", subject) or subject not in {
        "local",
        "first-admin",
        *(key.id for key in services.keys.list()),
    }:
        raise NotFound(
            "there is no such key: give its id, as the list of keys shows it", param="subject", code="key_not_found"
        )


def _show(policy: LogPolicy) -> LogPolicyObject:
    return {
        "object": "log_policy",
        "scope": policy.scope,
        "subject": policy.subject,
        "log": policy.log,
        "retention_days": policy.retention_days,
        "ask_feedback": policy.ask_feedback,
        "actor": policy.actor,
        "updated_at": policy.updated_at.timestamp(),
    }
