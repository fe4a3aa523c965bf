"""``/v1/responses``: generated, and shown and deleted where they were logged."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.feedback.interactions import Completion, Interaction, prompt_as_sent
from graftwork.adapters.names import quoted
from graftwork.server.bodies import parse
from graftwork.server.generation.service import GenerationService
from graftwork.server.http.auth import Authenticator
from graftwork.server.http.lists import in_thread
from graftwork.server.http.openapi import json_body, stream_of
from graftwork.server.http.routes.generation.chat import respond
from graftwork.server.http.schemas.generation.responses import (
    DeletedResponseObject,
    ResponseEventObject,
    ResponseObject,
)
from graftwork.server.http.services import Records
from graftwork.server.openai.answers.parts import Part
from graftwork.server.openai.answers.responses import ResponsesAnswer, output_item, response_object, usage_object
from graftwork.server.openai.answers.tool_calls import ToolCall
from graftwork.server.openai.requests.responses import ResponsesRequest, shown_tool


def add(routes: APIRouter, authenticator: Authenticator, service: GenerationService, records: Records) -> None:
    """Add the routes of responses."""
    reader = Depends(authenticator.require(Role.APP, changes=False))
    deleter = Depends(authenticator.require(Role.APP))

    @routes.post(
        "/v1/responses",
        response_model=ResponseObject,
        openapi_extra={**json_body(ResponsesRequest), **stream_of(ResponseEventObject)},
    )
    async def respond_(request: Request, who: Principal = reader) -> Response:
        asked = parse(ResponsesRequest, await request.body())
        before: list[dict[str, Any]] = []
        if asked.previous_response_id is not None:
            try:
                before = _history(await _logged(records, asked.previous_response_id, who))
            except NotFound as missing:
                raise InvalidRequest(
                    f"previous_response_id: {missing.message}",
                    param="previous_response_id",
                    code="previous_response_not_found",
                ) from None
        return await respond(service, request, "resp", asked.chat(before), partial(ResponsesAnswer, echo=asked.echo()))

    @routes.get("/v1/responses/{response_id}", response_model=ResponseObject)
    async def get_response(response_id: str, who: Principal = reader) -> Response:
        return JSONResponse(_show(await _logged(records, response_id, who)))

    @routes.delete("/v1/responses/{response_id}", response_model=DeletedResponseObject)
    async def delete_response(response_id: str, who: Principal = deleter) -> Response:
        row = await _logged(records, response_id, who)
        await in_thread(records.erasure.erase_interaction, row.id)
        return JSONResponse({"id": row.id, "object": "response.deleted", "deleted": True})


async def _logged(records: Records, id: str, who: Principal) -> Interaction:
    """A response that was logged; an app sees those of its own key.

    Raises:
        NotFound: There is none.
    """
    await in_thread(records.log.wait_until_durable, id)
    found = (await in_thread(records.interactions.get_many, [id])).get(id) if id.startswith("resp_") else None
    if found is None or (who.role < Role.OPERATOR and found.key_id != who.key_id):
        raise NotFound(
            f"there is no response {quoted(id)}: check the id; what was sent with store false or under a policy is not "
            "kept, and what is kept goes when its time is over",
            param="response_id",
            code="response_not_found",
        )
    return found


def _history(row: Interaction) -> list[dict[str, Any]]:
    """The conversation up to a response, and the response. Its instructions, and the system message of an arm, were for
    itself only.
    """
    sent = prompt_as_sent(row.prompt)
    messages = sent["messages"][1 if sent.get("instructions") else 0 :]
    completion = row.completions[0]
    answer: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.tool_calls:
        answer["tool_calls"] = completion.tool_calls
    return [*messages, answer]


def _parts(completion: Completion) -> list[Part]:
    complete = completion.finish_reason in ("stop", "tool_calls")
    texts = [completion.text] if completion.text or not completion.tool_calls else []
    calls = [
        (ToolCall(call["id"], call["function"]["name"]), call["function"]["arguments"])
        for call in completion.tool_calls
    ]
    parts = [(None, text) for text in texts] + calls
    return [Part(index, call, text, complete) for index, (call, text) in enumerate(parts)]


def _show(row: Interaction) -> dict[str, Any]:
    """The JSON of a response that was logged."""
    completion, sent, sampling = row.completions[0], prompt_as_sent(row.prompt), row.sampling
    cut = completion.finish_reason == "length"
    instructions = sent["messages"][0]["content"] if sent.get("instructions") else None
    status = {"ok": "incomplete" if cut else "completed", "error": "failed"}.get(row.status, "cancelled")
    return {
        **response_object(
            id=row.id,
            created=int(row.created_at.timestamp()),
            model=row.model,
            status=status,
            output=[output_item(row.id, part) for part in _parts(completion)],
            usage=usage_object(row.prompt_tokens, row.completion_tokens, 0),
            graftwork={"adapter": row.adapter or row.base},
            echo={
                "instructions": instructions,
                "max_output_tokens": sampling.get("max_completion_tokens"),
                "metadata": dict(row.metadata or {}),
                "parallel_tool_calls": sampling.get("parallel_tool_calls", True),
                "previous_response_id": None,
                "store": True,
                "temperature": sampling.get("temperature", 1.0),
                "text": {"format": {"type": "text"}, "verbosity": "medium"},
                "tool_choice": "auto",
                "tools": [shown_tool(tool) for tool in row.prompt.get("tools", ())],
                "top_logprobs": sampling.get("top_logprobs", 0),
                "top_p": sampling.get("top_p", 1.0),
                "user": row.user,
            },
        ),
        "error": None if row.error is None else {"code": "server_error", "message": row.error},
    }
