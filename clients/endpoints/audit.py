"""The audit log: who changed what."""

from __future__ import annotations

from typing import TypedDict, Unpack

from graftwork.clients.endpoints.parts import Timestamp, export_call, path_of, query_of, reader_of, without_none
from graftwork.clients.http.calls import Call, CallRequest, LinesCall
from graftwork.clients.types.audit import AuditEntry
from graftwork.clients.types.pages import Page


class AuditFilter(TypedDict, total=False):
    """A filter for the audit log. ``actor`` is the name or the id of a key; ``target`` is what was changed, or what
    that is a part of: ``adapters/intents``; ``since`` is inclusive and ``until`` exclusive."""

    actor: str | None
    action: str | None
    target: str | None
    since: Timestamp | None
    until: Timestamp | None


def list(*, after: int | None = None, limit: int | None = None, **which: Unpack[AuditFilter]) -> Call[Page[AuditEntry]]:
    """List changes, newest first; ``after`` is the last id of the previous page."""
    query = {**query_of(which), **without_none(after=after, limit=limit)}
    return Call(request=CallRequest(method="GET", path=path_of("audit"), query=query), read=reader_of(Page[AuditEntry]))


def export(**which: Unpack[AuditFilter]) -> LinesCall[AuditEntry]:
    """Export all changes that match a filter, oldest first. They are read while iterating."""
    return export_call("audit", which, AuditEntry)
