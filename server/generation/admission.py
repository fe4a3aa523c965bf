"""A request that was admitted: its id, its route, its body and what its log row needs."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.experiments.routing import Route
from graftwork.adapters.feedback.ids import IdKind
from graftwork.server.openai.requests.generation import GenerationRequest


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that is taken in: its id, which says where it goes and who asked, and what its log row needs.

    ``store``: whether it may be logged, as far as the request goes. ``num_bytes``: of its body.
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
