"""The server's state, and the models that it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class HealthObject(TypedDict):
    """Liveness: the process answers."""

    status: Literal["ok"]


class ReadinessObject(TypedDict):
    """Whether requests are served now."""

    status: Literal["starting", "ready", "degraded", "recovering", "draining"]
    base: str
    reason: NotRequired[str]


class ServerVersionObject(TypedDict):
    """The server's version."""

    version: str


class ModelObject(TypedDict):
    """The base, with ``graftwork`` about how it was loaded; or an adapter, version or alias, whose ``parent`` it is.

    ``max_model_len`` is vLLM's name for the tokens of the context, prompt and answer together. From ``type`` on the
    members are for Anthropic's clients.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parent: NotRequired[str]
    root: NotRequired[str]
    graftwork: NotRequired[Mapping[str, Any]]
    type: NotRequired[Literal["model"]]
    display_name: NotRequired[str]
    created_at: NotRequired[str]
    lifecycle: NotRequired[Literal["active"]]
    max_input_tokens: NotRequired[int]


class ModelListObject(TypedDict):
    """All models. The ids of the first and the last are for Anthropic's clients."""

    object: Literal["list"]
    data: Sequence[ModelObject]
    has_more: bool
    first_id: NotRequired[str]
    last_id: NotRequired[str]
