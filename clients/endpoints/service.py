"""The server itself: whether it is there, whether it is ready, its metrics, and what can be named as ``model``."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import one, path_of
from graftwork.clients.http.calls import Call, Request
from graftwork.clients.types.pages import Page
from graftwork.clients.types.service import Health, Model, Readiness


def health() -> Call[Health]:
    """Whether the server's process answers."""
    return Call(request=Request(method="GET", path="/health"), read=one(Health))


def ready() -> Call[Readiness]:
    """Whether requests are served now; a server that is not ready is an answer here, not an error."""
    return Call(request=Request(method="GET", path="/ready", accept=frozenset({503})), read=one(Readiness))


def metrics() -> Call[str]:
    """The server's metrics in Prometheus' text format."""
    return Call(request=Request(method="GET", path="/metrics"), read=lambda reply: reply.text)


def models() -> Call[Page[Model]]:
    """Everything that can be named as ``model``: the base first, then adapters and their versions."""
    return Call(request=Request(method="GET", path="/v1/models"), read=one(Page[Model]))


def model(id: str) -> Call[Model]:
    """One model; raises ``NotFoundError`` for a name that nothing answers to."""
    return Call(request=Request(method="GET", path=path_of("models", id)), read=one(Model))
