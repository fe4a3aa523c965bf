"""``/v1/audit``: the log of all changes, read and exported by admins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from graftwork.adapters.access.audit import AuditEntry, AuditFilter
from graftwork.adapters.access.keys import Role
from graftwork.server.bodies import Label, Text
from graftwork.server.http.lists import Moment, Parameters, in_thread, json_lines, page_body
from graftwork.server.http.openapi import stream_of
from graftwork.server.http.schemas.audit import AuditEntryObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services


class AuditParameters(Parameters):
    """The filter of the audit log."""

    actor: Label | None = None
    action: Label | None = None
    target: Text | None = None
    since: Moment | None = None
    until: Moment | None = None

    def filter(self) -> AuditFilter:
        """The filter."""
        return AuditFilter(actor=self.actor, action=self.action, target=self.target, since=self.since, until=self.until)


class AuditPageParameters(AuditParameters):
    """The filter and page of the audit log."""

    after: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of the audit log."""
    audit_log = services.audit_log
    admin = Depends(services.authenticator.require(Role.ADMIN))

    @routes.get("/v1/audit", dependencies=[admin], response_model=ListObject[AuditEntryObject])
    async def list_audit(page: Annotated[AuditPageParameters, Query()]) -> Response:
        found = await in_thread(audit_log.find, page.filter(), after=page.after, limit=page.limit)
        return JSONResponse(page_body(found, show))

    @routes.get(
        "/v1/audit/export",
        dependencies=[admin],
        response_class=StreamingResponse,
        response_model=AuditEntryObject,
        openapi_extra=stream_of(AuditEntryObject, "application/jsonl"),
    )
    async def export_audit(which: Annotated[AuditParameters, Query()]) -> Response:
        return json_lines(audit_log.each(which.filter()), show)


def show(entry: AuditEntry) -> AuditEntryObject:
    """The JSON of an entry."""
    return {
        "object": "audit.entry",
        "id": entry.id,
        "at": entry.at.timestamp(),
        "actor": entry.actor,
        "key_id": entry.key_id,
        "action": entry.action,
        "target": entry.target,
        "outcome": entry.outcome,
        "request_id": entry.request_id,
        "remote": entry.remote,
    }
