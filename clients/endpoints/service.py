"""The server: health, readiness, version, metrics and models."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.http.wire import parse
from graftwork.clients.types.pages import Page
from graftwork.clients.types.service import Health, Model, Readiness, ServerVersion


def health() -> Call[Health]:
    """Get the liveness of the server."""
    return Call(request=CallRequest(method="GET", path="/health"), read=reader_of(Health))


def ready() -> Call[Readiness]:
    """Get the readiness of the server. A server that is not ready is not an error."""
    return Call(
        request=CallRequest(method="GET", path="/ready", accepted_statuses=frozenset({503})), read=reader_of(Readiness)
    )


def version() -> Call[str]:
    """Get the version of the server."""
    request = CallRequest(method="GET", path="/version")
    return Call(request=request, read=lambda reply: parse(ServerVersion, reply.json()).version)


def metrics() -> Call[str]:
    """Get the server's metrics in Prometheus' text format."""
    return Call(request=CallRequest(method="GET", path="/metrics"), read=lambda reply: reply.text)


def models() -> Call[Page[Model]]:
    """List the models: the base first, then adapters and their versions."""
    return Call(request=CallRequest(method="GET", path="/v1/models"), read=reader_of(Page[Model]))


def model(id: str) -> Call[Model]:
    """Get a model by its id.

    Raises:
        NotFoundError: if there is no such model.
    """
    return Call(request=CallRequest(method="GET", path=path_of("models", id)), read=reader_of(Model))
