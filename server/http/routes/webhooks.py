"""``/v1/webhooks``: addresses that are told what happens. They take an operator's key."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.webhooks.webhooks import Delivery, Webhook
from graftwork.server.bodies import Label, StrictModel, Text, parse
from graftwork.server.http.lists import Parameters, in_thread, list_body, page_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.schemas.webhooks import WebhookDeliveryObject, WebhookObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)


class NewWebhook(StrictModel):
    """The body that creates a webhook. No ``events``: it is told of all."""

    url: Text
    events: Annotated[list[Label], Field(max_length=100)] = Field(default_factory=list)


class DeliveryParameters(Parameters):
    """The page of a list of deliveries."""

    after: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of webhooks."""
    webhooks = services.webhooks
    operator = Depends(services.authenticator.require(Role.OPERATOR, unscoped=True))

    @routes.post("/v1/webhooks", status_code=201, response_model=WebhookObject, openapi_extra=json_body(NewWebhook))
    async def create_webhook(request: Request, who: Principal = operator) -> Response:
        body = parse(NewWebhook, await request.body())
        created = await in_thread(webhooks.create, body.url, events=body.events, actor=who.name)
        log.info("%s created the webhook %s", who.name, created.id)
        return JSONResponse({**_webhook(created), "secret": created.secret}, 201)

    @routes.get("/v1/webhooks", dependencies=[operator], response_model=ListObject[WebhookObject])
    async def list_webhooks() -> Response:
        return JSONResponse(list_body([_webhook(each) for each in await in_thread(webhooks.all)]))

    @routes.delete("/v1/webhooks/{id}", response_model=WebhookObject)
    async def delete_webhook(id: str, who: Principal = operator) -> Response:
        deleted = await in_thread(webhooks.delete, id)
        log.info("%s deleted the webhook %s", who.name, id)
        return JSONResponse({**_webhook(deleted), "deleted": True})

    @routes.post("/v1/webhooks/{id}/test", status_code=202, response_model=WebhookObject)
    async def test_webhook(id: str, who: Principal = operator) -> Response:
        return JSONResponse(_webhook(await in_thread(webhooks.test, id, actor=who.name)), 202)

    @routes.get(
        "/v1/webhooks/{id}/deliveries",
        dependencies=[operator],
        response_model=ListObject[WebhookDeliveryObject],
    )
    async def list_deliveries(id: str, page: Annotated[DeliveryParameters, Query()]) -> Response:
        found = await in_thread(webhooks.deliveries, id, after=page.after, limit=page.limit)
        return JSONResponse(page_body(found, _delivery))


def _webhook(webhook: Webhook) -> WebhookObject:
    return {
        "object": "webhook",
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "created_by": webhook.created_by,
        "created_at": webhook.created_at.timestamp(),
    }


def _delivery(delivery: Delivery) -> WebhookDeliveryObject:
    return {
        "object": "webhook.delivery",
        "id": delivery.number,
        "event": delivery.event,
        "type": delivery.type,
        "at": delivery.at.timestamp(),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "next_at": None if delivery.next_at is None else delivery.next_at.timestamp(),
        "delivered_at": None if delivery.delivered_at is None else delivery.delivered_at.timestamp(),
        "error": delivery.error,
    }
