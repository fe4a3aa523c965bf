"""The server itself: whether it is there, whether it is ready, its metrics, and what can be named as ``model``."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.pages import Page
from graftwork.clients.types.service import Health, Model, Readiness


def health() -> Call[Health]:
    """Whether the server's process answers."""
    return Call(request=CallRequest(method="GET", path="/health"), read=reader_of(Health))


def ready() -> Call[Readiness]:
    """Whether requests are served now; a server that is not ready is an answer here, not an error."""
    return Call(
        request=CallRequest(method="GET", path="/ready", accepted_statuses=frozenset({503})), read=reader_of(Readiness)
    )


def metrics() -> Call[str]:
    """The server's metrics in Prometheus' text format."""
    return Call(request=CallRequest(method="GET", path="/metrics"), read=lambda reply: reply.text)


def models() -> Call[Page[Model]]:
    """Everything that can be named as ``model``: the base first, then adapters and their versions."""
    return Call(request=CallRequest(method="GET", path="/v1/models"), read=reader_of(Page[Model]))


def model(id: str) -> Call[Model]:
    """One model; raises ``NotFoundError`` for a name that nothing answers to."""
    return Call(request=CallRequest(method="GET", path=path_of("models", id)), read=reader_of(Model))
