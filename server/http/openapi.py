"""``GET /openapi.json``: FastAPI's document, completed by the bodies that routes parse themselves.

Routes read bytes and return a ``Response``, so that errors are worded in one place and nothing is serialized twice. For
the document they declare ``response_model`` and, with the functions here, ``openapi_extra``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from graftwork.server.http.schemas.lists import ErrorObject
from graftwork.version import __version__

Json = dict[str, Any]

_REF: Final = "#/components/schemas/{model}"
_DESCRIPTION: Final = (
    "One quantized base model, many live LoRA adapters: serve, learn from feedback, A/B test, promote. "
    "Errors of every route are `ErrorObject`."
)


class DocumentedRoute(APIRoute):
    """A route that returns a ``Response``, so that its ``response_model`` is for the document alone.

    FastAPI would build a serializer of each ``response_model`` that nothing uses: most of the time that routes take.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], *, response_model: Any = None, **options: Any) -> None:
        super().__init__(path, endpoint, response_model=None, **options)
        self.response_model = response_model


def json_body(model: type[BaseModel], *, required: bool = True) -> Json:
    """For ``openapi_extra``: the request's body is a ``model`` as JSON."""
    return _request_body({"application/json": model}, required=required)


def form_body(model: type[BaseModel]) -> Json:
    """For ``openapi_extra``: the request's body is a multipart form with a ``model``'s fields."""
    return _request_body({"multipart/form-data": model}, required=True)


def json_or_form_body(model: type[BaseModel], form: type[BaseModel]) -> Json:
    """For ``openapi_extra``: the request's body is a ``model`` as JSON, or a multipart form with ``form``'s fields."""
    return _request_body({"application/json": model, "multipart/form-data": form}, required=True)


def stream_of(kind: Any, media_type: str = "text/event-stream") -> Json:
    """For ``openapi_extra``: the response may be a stream, each event or line of which is a ``kind``, a TypedDict."""
    return {"responses": {"200": {"content": {media_type: {"schema": _schema(kind, "serialization")}}}}}


def error_answer(kind: Any = ErrorObject) -> Json:
    """For ``responses``: the body of every error, a ``kind``, which is a TypedDict."""
    content = {"application/json": {"schema": _schema(kind, "serialization")}}
    return {"description": "An error; its message says what to do", "content": content}


def openapi_document(app: FastAPI) -> bytes:
    """The OpenAPI document of all routes of ``app``, as JSON."""
    return json.dumps(openapi_schema(app), separators=(",", ":")).encode()


def openapi_schema(app: FastAPI) -> Json:
    """The OpenAPI document of all routes of ``app``.

    Raises:
        ValueError: Two different schemas have the same name.
    """
    document = get_openapi(title="Graftwork", version=__version__, description=_DESCRIPTION, routes=app.routes)
    for route in app.routes:
        if isinstance(route, DocumentedRoute) and route.include_in_schema and route.response_model is not None:
            for method in route.methods or ():
                _document_response(document["paths"][route.path_format][method.lower()], route)
    components = document["components"]["schemas"]
    for path in document["paths"].values():
        for operation in path.values():
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for content in [content for body in bodies for content in body.get("content", {}).values()]:
                content["schema"] = dict(content["schema"])  # those of `_schema` are kept
                for name, definition in content["schema"].pop("$defs", {}).items():
                    if components.setdefault(name, definition) != definition:
                        raise ValueError(f"two schemas are called {name}")
    return document


def _document_response(operation: Json, route: DocumentedRoute) -> None:
    """Add a route's ``response_model`` to its operation, if it answers in JSON."""
    content = operation["responses"][str(route.status_code or 200)].get("content", {})
    if content.get("application/json") == {"schema": {}}:
        content["application/json"] = {"schema": _schema(route.response_model, "serialization")}


def _request_body(models: dict[str, type[BaseModel]], *, required: bool) -> Json:
    content = {media_type: {"schema": _schema(model, "validation")} for media_type, model in models.items()}
    return {"requestBody": {"required": required, "content": content}}


@functools.cache
def _schema(kind: Any, mode: Any) -> Json:
    """A reference to ``kind``, with the definitions that it needs under ``$defs``; ``openapi_schema`` moves them."""
    references, definitions = TypeAdapter.json_schemas([(0, mode, TypeAdapter(kind))], ref_template=_REF)
    return {**references[0, mode], "$defs": definitions.get("$defs", {})}
