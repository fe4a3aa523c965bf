"""What routes share: lists and their pages, parameters, and how to wait without holding up others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field

from graftwork.adapters.db import Page

T = TypeVar("T")
Json = dict[str, Any]


class Parameters(BaseModel):
    """A query's parameters: a misspelt one is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


class PageParameters(Parameters):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def listed(data: Sequence[Json], *, has_more: bool = False) -> Json:
    return {"object": "list", "data": data, "has_more": has_more}


def as_page(page: Page[T], show: Callable[[T], Json]) -> Json:
    return listed([show(item) for item in page], has_more=page.has_more)


async def beside(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call what may wait for the disk without holding up the event loop."""
    return await to_thread.run_sync(partial(function, *arguments, **options))
