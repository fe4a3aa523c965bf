"""Helpers that routes share: lists, pages, exports, parameters, and calls in threads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.feedback.interactions import BARE_BASE
from graftwork.adapters.storage.database import Page
from graftwork.server.bodies import write_json
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

T = TypeVar("T")
ShownT = TypeVar("ShownT")

_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the years 1 to 9999 in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A moment with its time zone, or in seconds since 1970."""


class Parameters(BaseModel):
    """Base of query parameters: an unknown one is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class PageParameters(Parameters):
    """The page of a list: ``limit`` entries behind the one with the id ``after``."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def list_body(data: Sequence[T], *, has_more: bool = False) -> ListObject[T]:
    """The JSON of a list."""
    return {"object": "list", "data": data, "has_more": has_more}


def page_body(page: Page[T], show: Callable[[T], ShownT]) -> ListObject[ShownT]:
    """The JSON of a page; ``show`` makes an entry's."""
    return list_body([show(item) for item in page], has_more=page.has_more)


def json_lines(rows: Iterator[T], show: Callable[[T], object]) -> Response:
    """A streamed response of JSON lines, read and sent in groups of 100 rows."""

    def parts() -> Iterator[bytes]:
        while some := list(islice(rows, 100)):
            yield b"".join(write_json(show(row)) + b"\n" for row in some)

    # Starlette iterates a plain iterator in a thread: reading the disk does not block the event loop.
    return StreamingResponse(parts(), media_type="application/jsonl")


def answered_by(services: Services, text: str | None) -> str | None:
    """An ``adapter`` parameter as filters take it: the name of an adapter, a version ``name@n``, or the bare base.

    Args:
        services: The registry and the base.
        text: An adapter, a version, ``name@alias``, the base's id, or ``None``.

    Raises:
        InvalidRequest: Nothing has that name: an empty list would hide the mistake.
    """
    if text is None:
        return None
    if text == services.base.id:
        return BARE_BASE
    name, at, selector = text.partition("@")
    try:
        adapter = services.registry.adapter(name)
        if not at:
            return name
        if selector in adapter.aliases:
            return f"{name}@{adapter.aliases[selector]}"
        return services.registry.version(name, int(selector) if _VERSION.fullmatch(selector) else 0).id
    except NotFound as error:
        raise InvalidRequest(error.message, param="adapter", code=error.code) from None


async def in_thread(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function that may block, in a thread."""
    return await to_thread.run_sync(partial(function, *arguments, **options))
