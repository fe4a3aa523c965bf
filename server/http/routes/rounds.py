"""``/v1/rounds``: rounds of learning, read, begun at once, and undone.

They take an operator's key: a round submits a job, and undoing one may move what is live.
"""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.learning.rounds.round import Round, RoundState
from graftwork.server.bodies import Label, StrictModel, Text, parse
from graftwork.server.http.lists import Parameters, in_thread, page_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.schemas.rounds import RoundObject, RoundPlanObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)


class NewRound(StrictModel):
    """The body that begins a round now, due or not."""

    adapter: Label


class UndoRound(StrictModel):
    """The body that undoes a round."""

    reason: Text | None = None


class RoundParameters(Parameters):
    """The filter and page of a list of rounds."""

    adapter: str | None = None
    state: RoundState | None = None
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of rounds."""
    rounds, policies = services.rounds, services.learning
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.get("/v1/adapters/{name}/next_round", dependencies=[operator], response_model=RoundPlanObject)
    async def get_next_round(name: str) -> Response:
        return JSONResponse(await in_thread(_plan, services, name))

    @routes.post("/v1/rounds", status_code=201, response_model=RoundObject, openapi_extra=json_body(NewRound))
    async def begin_round(request: Request, who: Principal = operator) -> Response:
        body = parse(NewRound, await request.body())
        try:
            await in_thread(services.registry.adapter, body.adapter)
            begun = await in_thread(policies.begin_now, body.adapter, actor=who.name)
        except NotFound as error:  # in a body, what names nothing is a bad request
            raise InvalidRequest(error.message, param="adapter", code=error.code) from None
        log.info("%s began round %d of %s as %s", who.name, begun.number, begun.adapter, begun.job)
        return JSONResponse(shown(begun), 201)

    @routes.get("/v1/rounds", dependencies=[operator], response_model=ListObject[RoundObject])
    async def list_rounds(page: Annotated[RoundParameters, Query()]) -> Response:
        found = await in_thread(rounds.find, adapter=page.adapter, state=page.state, after=page.after, limit=page.limit)
        return JSONResponse(page_body(found, shown))

    @routes.get("/v1/rounds/{id}", dependencies=[operator], response_model=RoundObject)
    async def get_round(id: str) -> Response:
        return JSONResponse(shown(await in_thread(rounds.get, id)))

    @routes.post("/v1/rounds/{id}/undo", response_model=RoundObject, openapi_extra=json_body(UndoRound, required=False))
    async def undo_round(request: Request, id: str, who: Principal = operator) -> Response:
        body = parse(UndoRound, await request.body() or b"{}")
        undone = await in_thread(rounds.undo, id, actor=who.name, reason=body.reason)
        log.info("%s undid round %d of %s", who.name, undone.number, undone.adapter)
        return JSONResponse(shown(undone))


def shown(round_: Round) -> RoundObject:
    """A round as it is answered."""
    gates, decision = round_.gates, round_.decision
    return {
        "object": "round",
        "id": round_.id,
        "adapter": round_.adapter,
        "number": round_.number,
        "state": round_.state,
        "reason": round_.reason,
        "control": round_.control,
        "continues": round_.continues,
        "live": round_.live,
        "judgements": dict(round_.judgements),
        "policy": dict(round_.policy),
        "job": round_.job,
        "data_digest": round_.data_digest,
        "rows": None if round_.rows is None else dict(round_.rows),
        "candidate": round_.candidate,
        "gates": None
        if gates is None
        else {"outcome": gates.outcome, "refusals": gates.refusals, "doubts": gates.doubts},
        "experiment": round_.experiment,
        "decision": None
        if decision is None
        else {"by": decision.by, "at": decision.at, "reason": decision.reason, "replaced": decision.replaced},
        "created_by": round_.created_by,
        "created_at": round_.created_at.timestamp(),
        "updated_at": round_.updated_at.timestamp(),
        "ended_at": None if round_.ended_at is None else round_.ended_at.timestamp(),
    }


def _plan(services: Services, name: str) -> RoundPlanObject:
    services.registry.adapter(name)  # an adapter that is none is not one without a policy
    policy, status = services.learning.get(name)
    live = services.registry.resolve(name).id
    return {
        "object": "round.plan",
        "adapter": name,
        "number": status.next_number,
        "control": status.next_is_control,
        "continues": None if status.next_is_control else live,
        "live": live,
        "judgements": dict(status.by_kind),
        "due": status.due,
        "waits_for": status.waits_for or None,
        "policy": policy.to_json(),
    }
