"""The client's types compared with the server's OpenAPI document."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest

from graftwork.clients import types as client_types
from graftwork.clients.types.adapters import Adapter, AdapterEvent, AdapterLimits, PushedVersion, Version
from graftwork.clients.types.audit import AuditEntry
from graftwork.clients.types.batches import Batch
from graftwork.clients.types.embeddings import Embeddings
from graftwork.clients.types.experiments import Experiment
from graftwork.clients.types.feedback import Feedback, SentFeedback
from graftwork.clients.types.files import Deleted, UploadedFile
from graftwork.clients.types.generation import (
    ChatCompletion,
    ChatDelta,
    Completion,
    CompletionDelta,
    Detokenized,
    FunctionCallDelta,
    Score,
    Tokenized,
    ToolCallDelta,
)
from graftwork.clients.types.interactions import ErasureResult, Interaction
from graftwork.clients.types.keys import Key, KeyUsage
from graftwork.clients.types.learning.jobs import Job, JobCheckpoint, JobEvent
from graftwork.clients.types.learning.learning_policies import LearningPolicy
from graftwork.clients.types.learning.rounds import Round, RoundPlan
from graftwork.clients.types.log_policies import LogPolicy, LogPolicyList
from graftwork.clients.types.pages import Page
from graftwork.clients.types.service import Health, Model, Readiness, ServerVersion
from graftwork.clients.types.webhooks import Webhook, WebhookDelivery
from tests.server.documented import document

Seen = dict[Any, set[str]]
"""Types of the client, and the fields that the document has for them."""

ANSWERS: dict[tuple[str, str], Any] = {
    ("get", "/health"): Health,
    ("get", "/ready"): Readiness,
    ("get", "/version"): ServerVersion,
    ("get", "/v1/models"): Page[Model],
    ("get", "/v1/models/{model}"): Model,
    ("get", "/v1/adapters"): Page[Adapter],
    ("get", "/v1/adapters/{name}"): Adapter,
    ("get", "/v1/adapters/{name}/history"): Page[AdapterEvent],
    ("post", "/v1/adapters/{name}/versions"): PushedVersion,
    ("put", "/v1/adapters/{name}/aliases/{alias}"): AdapterEvent,
    ("post", "/v1/adapters/{name}/rollback"): AdapterEvent,
    ("delete", "/v1/adapters/{name}/versions/{number}"): Version,
    ("get", "/v1/audit"): Page[AuditEntry],
    ("get", "/v1/audit/export"): AuditEntry,
    ("get", "/v1/adapters/{name}/limits"): AdapterLimits,
    ("put", "/v1/adapters/{name}/limits"): AdapterLimits,
    ("get", "/v1/keys"): Page[Key],
    ("post", "/v1/keys"): Key,
    ("get", "/v1/keys/{key_id}"): Key,
    ("get", "/v1/keys/{key_id}/usage"): KeyUsage,
    ("patch", "/v1/keys/{key_id}"): Key,
    ("post", "/v1/keys/{key_id}/rotate"): Key,
    ("delete", "/v1/keys/{key_id}"): Key,
    ("post", "/v1/feedback"): SentFeedback,
    ("get", "/v1/feedback"): Page[Feedback],
    ("get", "/v1/feedback/export"): Feedback,
    ("get", "/v1/interactions"): Page[Interaction],
    ("get", "/v1/interactions/export"): Interaction,
    ("get", "/v1/interactions/{interaction_id}"): Interaction,
    ("delete", "/v1/interactions"): ErasureResult,
    ("get", "/v1/log_policies"): LogPolicyList,
    ("put", "/v1/log_policies/{scope}/{subject}"): LogPolicy,
    ("delete", "/v1/log_policies/{scope}/{subject}"): LogPolicy,
    ("post", "/v1/experiments"): Experiment,
    ("get", "/v1/experiments"): Page[Experiment],
    ("get", "/v1/experiments/{name}"): Experiment,
    ("patch", "/v1/experiments/{name}"): Experiment,
    ("post", "/v1/experiments/{name}/arms"): Experiment,
    ("post", "/v1/experiments/{name}/stop"): Experiment,
    ("post", "/v1/files"): UploadedFile,
    ("get", "/v1/files"): Page[UploadedFile],
    ("get", "/v1/files/{file_id}"): UploadedFile,
    ("delete", "/v1/files/{file_id}"): Deleted,
    ("post", "/v1/batches"): Batch,
    ("get", "/v1/batches"): Page[Batch],
    ("get", "/v1/batches/{batch_id}"): Batch,
    ("post", "/v1/batches/{batch_id}/cancel"): Batch,
    ("post", "/v1/fine_tuning/jobs"): Job,
    ("get", "/v1/fine_tuning/jobs"): Page[Job],
    ("get", "/v1/fine_tuning/jobs/{job_id}"): Job,
    ("post", "/v1/fine_tuning/jobs/{job_id}/cancel"): Job,
    ("get", "/v1/fine_tuning/jobs/{job_id}/events"): Page[JobEvent],
    ("get", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): Page[JobCheckpoint],
    ("get", "/v1/rounds"): Page[Round],
    ("post", "/v1/rounds"): Round,
    ("get", "/v1/rounds/{id}"): Round,
    ("post", "/v1/rounds/{id}/undo"): Round,
    ("get", "/v1/adapters/{name}/next_round"): RoundPlan,
    ("get", "/v1/webhooks"): Page[Webhook],
    ("post", "/v1/webhooks"): Webhook,
    ("delete", "/v1/webhooks/{id}"): Webhook,
    ("post", "/v1/webhooks/{id}/test"): Webhook,
    ("get", "/v1/webhooks/{id}/deliveries"): Page[WebhookDelivery],
    ("get", "/v1/learning_policies"): Page[LearningPolicy],
    ("get", "/v1/adapters/{name}/learning_policy"): LearningPolicy,
    ("put", "/v1/adapters/{name}/learning_policy"): LearningPolicy,
    ("delete", "/v1/adapters/{name}/learning_policy"): LearningPolicy,
    ("post", "/v1/chat/completions"): ChatCompletion,
    ("post", "/v1/completions"): Completion,
    ("post", "/v1/embeddings"): Embeddings,
    ("post", "/tokenize"): Tokenized,
    ("post", "/detokenize"): Detokenized,
}
"""What the client reads from each route's answer."""

NO_OBJECTS = {"/", "/metrics", "/openapi.json", "/v1/files/{file_id}/content"}
"""The client reads text and bytes there, or nothing."""

OTHER_CLIENTS = ("/v1/responses", "/v1/messages", "/v1/fine_tuning/alpha")
"""Shapes of a chat for OpenAI's and Anthropic's own clients, and what OpenAI's tries graders out with; this one has
chats."""

OWN = {"PushedVersion.created", "SentFeedback.created"}
"""Fields that the client makes of the status."""

NOT_READ = {
    "UploadedFile.expires_at",  # OpenAI's fields whose value is always the same
    "UploadedFile.status_details",
    "Job.organization_id",
    "Job.integrations",
    "LogPolicyList.has_more",  # it never has
    "Model.type",  # Anthropic's clients read these
    "Model.display_name",
    "Model.created_at",
    "Model.lifecycle",
    "Model.max_input_tokens",
    "Page.first_id",  # of the entries themselves
    "Page.last_id",
    "ChatMessage.refusal",
    "ChatLogprobs.refusal",
    "Job.method",  # in graftwork.method by its own name
    "JobDetails.created_by",
    "JobDetails.started_at",
    "JobCheckpoint.fine_tuning_job_id",  # asked for by it
    "ChatCompletion.system_fingerprint",
    "Completion.system_fingerprint",
}
"""The document's fields that the client leaves out, beside ``object``."""

MADE_BY_THE_CLIENT = {Score, ChatDelta, CompletionDelta, ToolCallDelta, FunctionCallDelta}
"""Types that are no object of the wire: a reading of completions and of their chunks."""


def schema_of(method: str, path: str) -> dict[str, Any]:
    answers = document()["paths"][path][method]["responses"]
    (content,) = [answer["content"] for status, answer in answers.items() if status.startswith("2")][:1]
    schema: dict[str, Any] = content.get("application/json", content.get("application/jsonl"))["schema"]
    return schema


def resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").removeprefix("#/components/schemas/")
    return document()["components"]["schemas"][name] if name else schema


def without_null(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The schema of what is there, and whether it may be null."""
    if schema.get("type") == "null":
        return {}, True
    if "anyOf" not in schema:
        return schema, False
    kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
    return (kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), len(kinds) < len(schema["anyOf"])


def differences(kind: Any, schema: Mapping[str, Any], place: str, seen: Seen) -> Iterator[str]:
    """Where a client that reads ``kind`` would not understand what is described by ``schema``, or would drop it."""
    if kind is Any:
        return
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    schema, nullable = without_null(schema)
    optional = origin in (types.UnionType, typing.Union)
    if optional:
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if nullable and not optional:
        yield f"{place} may be null"
    schema = resolved(schema)
    if dataclasses.is_dataclass(origin):
        yield from differing_fields(origin, arguments, schema, seen)
    elif origin is tuple:
        # An embedding is in base64 for clients that ask for it.
        schema = next((kind for kind in schema.get("anyOf", ()) if kind.get("type") == "array"), schema)
        if schema.get("type") != "array":
            yield f"{place} is a {schema.get('type')}, not a list"
        else:
            yield from differences(arguments[0], schema["items"], f"{place}[]", seen)
    elif origin is Mapping:
        if schema.get("type") != "object":
            yield f"{place} is a {schema.get('type')}, not an object"
        elif arguments[1] is not Any:
            yield from differences(arguments[1], schema["additionalProperties"], f"{place}{{}}", seen)
    else:
        accepted = {str: {"string"}, bool: {"boolean"}, int: {"integer"}}.get(kind, {"number", "integer"})
        assert kind in (str, bool, int, float, datetime), place
        if schema.get("type") not in accepted:
            yield f"{place} is a {schema.get('type')}, not a {kind.__name__}"


def differing_fields(kind: Any, arguments: tuple[Any, ...], schema: Mapping[str, Any], seen: Seen) -> Iterator[str]:
    seen.setdefault(kind, set()).update(schema["properties"])
    hints, described = typing.get_type_hints(kind), schema["properties"]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in fields.items():
        place = f"{kind.__name__}.{name}"
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
        if name not in described:
            if not has_default and place not in OWN:
                yield f"{place} is not in the document"
            continue
        if name not in schema.get("required", ()) and not has_default:
            yield f"{place} may be absent"
        hint = hints[name]
        if getattr(hint, "__parameters__", ()):
            hint = hint[arguments]
        yield from differences(hint, described[name], place, seen)
    for base in (kind, *kind.__mro__):
        left_out = {place.partition(".")[2] for place in NOT_READ if place.partition(".")[0] == base.__name__}
        described = {name: each for name, each in described.items() if name not in left_out}
    for name in described.keys() - fields.keys() - {"object"}:
        yield f"{kind.__name__}.{name} is not in the client"


@pytest.mark.parametrize(("method", "path"), ANSWERS)
def test_the_client_reads_what_the_document_says(method: str, path: str) -> None:
    assert list(differences(ANSWERS[method, path], schema_of(method, path), path, {})) == []


def test_every_answer_has_its_type_and_every_type_its_answer() -> None:
    paths = {path: each for path, each in document()["paths"].items() if not path.startswith(OTHER_CLIENTS)}
    documented = {(method, path) for path, each in paths.items() for method in each}
    assert documented - ANSWERS.keys() == {("get", path) for path in NO_OBJECTS}
    modules = [
        importlib.import_module(f"{client_types.__name__}.{m.name}")
        for m in pkgutil.iter_modules(client_types.__path__)
    ]
    defined = {
        kind
        for module in modules
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }
    seen = seen_types()
    assert defined - seen.keys() == MADE_BY_THE_CLIENT
    # What some answers leave out has a default; some answer has it.
    fields = {f"{kind.__name__}.{field.name}" for kind in seen for field in dataclasses.fields(kind)}
    assert fields - {f"{kind.__name__}.{name}" for kind, names in seen.items() for name in names} == OWN


@pytest.mark.parametrize("place", sorted(NOT_READ | OWN))
def test_the_exceptions_are_needed(place: str) -> None:
    name, _, field = place.partition(".")
    (kind,) = (kind for kind in seen_types() if kind.__name__ == name)
    assert (field in {each.name for each in dataclasses.fields(kind)}) == (place in OWN)
    assert (field in seen_types()[kind]) == (place in NOT_READ)


def seen_types() -> Seen:
    seen: Seen = {}
    for (method, path), kind in ANSWERS.items():
        list(differences(kind, schema_of(method, path), path, seen))
    return seen
