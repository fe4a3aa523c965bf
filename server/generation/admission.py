"""An admitted request."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.experiments.routing import Route
from graftwork.adapters.feedback.ids import IdKind
from graftwork.server.openai.requests.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that was accepted, before it is queued.

    Attributes:
        kind: ``chatcmpl`` or ``cmpl``.
        id: The answer's id, which encodes its route.
        created: Unix time in seconds.
        unit: The unit of experiments that it belongs to: its user or session.
        route: The version that answers, or the arm of an experiment.
        body: The parsed body.
        key_id: The caller's key.
        store: Whether it may be logged, as far as the request says.
        num_bytes: Size of its body.
    """

    kind: IdKind
    id: str
    created: int
    unit: str | None
    route: Route
    body: GenerationRequest
    key_id: str
    store: bool
    num_bytes: int
