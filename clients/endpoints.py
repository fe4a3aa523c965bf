"""Every call the server knows, each written once: its method, path, body and how its answer is read.

A call is a description and does nothing; ``Client`` and ``AsyncClient`` carry the same ones out, and take their
methods' signatures and docstrings from here.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from graftwork.clients.calls import SLOW, Call, LinesCall, Progress, Reply, Request, StreamCall, Upload
from graftwork.clients.errors import GraftworkProtocolError, InvalidArgumentError, LocalFileError
from graftwork.clients.experiment_types import Experiment
from graftwork.clients.job_types import Deleted, File, Job, JobCheckpoint, JobEvent, LearningPolicy
from graftwork.clients.streams import ChatChunk, CompletionChunk
from graftwork.clients.types import (
    Adapter,
    ChatCompletion,
    ChatDelta,
    Completion,
    CompletionDelta,
    Erasure,
    Event,
    Feedback,
    Health,
    Interaction,
    Key,
    LogPolicies,
    LogPolicy,
    Model,
    Page,
    PushedVersion,
    Readiness,
    Score,
    SentFeedback,
    Version,
)
from graftwork.clients.wire import parse

T = TypeVar("T")

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

Messages = str | Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int]


class GenerationOptions(TypedDict, total=False):
    """How to generate. What is left out, or ``None``, is the server's choice.

    ``session`` names a conversation or visitor, so that an experiment gives it the same arm each time.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    n: int | None
    ignore_eos: bool | None
    user: str | None
    store: bool | None
    metadata: Mapping[str, str] | None
    session: str | None


class ChatOptions(GenerationOptions, total=False):
    """``GenerationOptions`` and what only chat has."""

    logprobs: bool | None
    top_logprobs: int | None
    response_format: Mapping[str, Any] | None


class CompletionOptions(GenerationOptions, total=False):
    """``GenerationOptions`` and what only completions have."""

    logprobs: int | None
    echo: bool | None


Moment = datetime | float | str


class FeedbackFilter(TypedDict, total=False):
    """Which feedback. ``kind``: thumb, score, correction, preferred_over, comment or metadata; ``since`` is included,
    ``until`` is not: a moment with a time zone, unix seconds, or ISO 8601."""

    interaction_id: str | None
    adapter: str | None
    experiment: str | None
    arm: str | None
    kind: str | None
    user: str | None
    since: Moment | None
    until: Moment | None


class InteractionFilter(TypedDict, total=False):
    """Which interactions. ``status``: ok, error or cancelled; ``since`` and ``until`` as for feedback."""

    adapter: str | None
    experiment: str | None
    arm: str | None
    status: str | None
    user: str | None
    key_id: str | None
    since: Moment | None
    until: Moment | None


def health() -> Call[Health]:
    """Whether the server's process answers."""
    return Call(request=Request(method="GET", path="/health"), read=_one(Health))


def ready() -> Call[Readiness]:
    """Whether requests are served now; a server that is not ready is an answer here, not an error."""
    return Call(request=Request(method="GET", path="/ready", accept=frozenset({503})), read=_one(Readiness))


def metrics() -> Call[str]:
    """The server's metrics in Prometheus' text format."""
    return Call(request=Request(method="GET", path="/metrics"), read=lambda reply: reply.text)


def models() -> Call[Page[Model]]:
    """Everything that can be named as ``model``: the base first, then adapters and their versions."""
    return Call(request=Request(method="GET", path="/v1/models"), read=_one(Page[Model]))


def model(id: str) -> Call[Model]:
    """One model; raises ``NotFoundError`` for a name that nothing answers to."""
    return Call(request=Request(method="GET", path=_path("models", id)), read=_one(Model))


def chat(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> Call[ChatCompletion]:
    """A whole chat answer. ``messages`` is a list of role and content, or a string: one turn of the user."""
    return Call(request=_chat_request(model, messages, options), read=_one(ChatCompletion))


def chat_stream(model: str, messages: Messages, **options: Unpack[ChatOptions]) -> StreamCall[ChatDelta]:
    """A chat answer as it is written: iterate over the deltas; afterwards ``usage`` is there too."""
    return StreamCall(request=_chat_request(model, messages, options, stream=True), chunk=ChatChunk)


def complete(model: str, prompt: Prompt, **options: Unpack[CompletionOptions]) -> Call[Completion]:
    """A whole continuation of a text or of token ids."""
    return Call(request=_completion_request(model, prompt, options), read=_one(Completion))


def complete_stream(model: str, prompt: Prompt, **options: Unpack[CompletionOptions]) -> StreamCall[CompletionDelta]:
    """A continuation as it is written: iterate over the deltas; afterwards ``usage`` is there too."""
    return StreamCall(request=_completion_request(model, prompt, options, stream=True), chunk=CompletionChunk)


def score(model: str, prompt: Prompt, *, top: int = 1) -> Call[Score]:
    """The log-probability of each token of a text, and the ``top`` most likely tokens at its place; writes nothing."""
    options = CompletionOptions(echo=True, logprobs=top, max_tokens=0, temperature=0.0)
    return Call(request=_completion_request(model, prompt, options), read=_read_score)


def list_adapters(*, after: str | None = None, limit: int | None = None) -> Call[Page[Adapter]]:
    """A page of adapters by name; ``after`` is the last name of the page before."""
    request = Request(method="GET", path=_path("adapters"), query=_given(after=after, limit=limit))
    return Call(request=request, read=_one(Page[Adapter]))


def get_adapter(name: str) -> Call[Adapter]:
    """An adapter with its versions, aliases, residency and traffic."""
    return Call(request=Request(method="GET", path=_path("adapters", name)), read=_one(Adapter))


def push_adapter(
    name: str,
    folder: str | Path | None = None,
    *,
    server_path: str | Path | None = None,
    alias: str | None = None,
    parent: int | None = None,
    data_digest: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Call[PushedVersion]:
    """Push a PEFT folder as the adapter's next version.

    ``folder`` is on this machine and is uploaded, streamed from disk; ``progress`` is told the bytes sent and the bytes
    in all. ``server_path`` names a folder that the server can read itself instead. ``alias`` is moved to the version
    once it has passed the server's checks; the first version of a name becomes ``live`` by itself.
    """
    path, query = _path("adapters", name, "versions"), _given(alias=alias)
    facts = _given(parent=parent, data_digest=data_digest, metadata=metadata)
    if (folder is None) == (server_path is None):
        raise InvalidArgumentError("push takes a folder of this machine or a server_path, one of the two")
    if server_path is not None:
        body = {"path": str(server_path), **facts}
        request = Request(method="POST", path=path, query=query, json=body, read_timeout=SLOW)
    else:
        fields = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
        upload = Upload(files=_adapter_files(Path(str(folder))), fields=fields, progress=progress)
        request = Request(method="POST", path=path, query=query, upload=upload, read_timeout=SLOW)
    return Call(request=request, read=_read_pushed)


def promote(
    name: str, version: int, *, alias: str = "live", reason: str | None = None, end_experiment: bool | None = None
) -> Call[Event]:
    """Move an alias to a version: new requests get it, those that run finish on the version they began with.

    Raises ``ConflictError`` while an experiment needs the alias as it is, unless ``end_experiment`` ends that.
    """
    path = _path("adapters", name, "aliases", alias)
    body = {"version": version, **_given(reason=reason, end_experiment=end_experiment)}
    return Call(request=Request(method="PUT", path=path, json=body, read_timeout=SLOW), read=_one(Event))


def rollback(
    name: str, *, alias: str = "live", reason: str | None = None, end_experiment: bool | None = None
) -> Call[Event]:
    """Move an alias back to the version it pointed at before; experiments are in the way as for ``promote``."""
    path = _path("adapters", name, "rollback")
    body = {"alias": alias, **_given(reason=reason, end_experiment=end_experiment)}
    return Call(request=Request(method="POST", path=path, json=body, read_timeout=SLOW), read=_one(Event))


def retire(name: str, version: int) -> Call[Version]:
    """Take a version out of service; raises ``ConflictError`` while an alias points at it."""
    request = Request(method="DELETE", path=_path("adapters", name, "versions", str(version)))
    return Call(request=request, read=_one(Version))


def history(name: str, *, after: int | None = None, limit: int | None = None) -> Call[Page[Event]]:
    """A page of what happened to an adapter, newest first; ``after`` is the last event's id of the page before."""
    request = Request(method="GET", path=_path("adapters", name, "history"), query=_given(after=after, limit=limit))
    return Call(request=request, read=_one(Page[Event]))


def start_experiment(
    name: str,
    adapter: str,
    arms: Sequence[Mapping[str, Any]],
    metric: str | Mapping[str, Any],
    *,
    guardrails: Sequence[Mapping[str, Any]] | None = None,
    decision: Mapping[str, Any] | None = None,
    ramp: Mapping[str, Any] | None = None,
    window_seconds: float | None = None,
    alpha: float | None = None,
    unrated: str | None = None,
    allocation: str | None = None,
) -> Call[Experiment]:
    """Start an experiment: requests that name the adapter alone are answered by its arms from now on.

    ``arms``, the control first, are like ``{"version": 7}`` and ``{"version": "candidate", "weight": 0.5}``; ``metric``
    is a name, or an object with one. Everything else is the server's default where it is not given.
    """
    body = {
        "name": name,
        "adapter": adapter,
        "arms": [dict(arm) for arm in arms],
        "metric": metric if isinstance(metric, str) else dict(metric),
        **_given(
            guardrails=None if guardrails is None else [dict(rail) for rail in guardrails],
            decision=None if decision is None else dict(decision),
            ramp=None if ramp is None else dict(ramp),
            window_seconds=window_seconds,
            alpha=alpha,
            unrated=unrated,
            allocation=allocation,
        ),
    }
    return Call(request=Request(method="POST", path=_path("experiments"), json=body), read=_one(Experiment))


def list_experiments(
    *, status: str | None = None, after: str | None = None, limit: int | None = None
) -> Call[Page[Experiment]]:
    """A page of experiments by name; ``status`` is running or ended, ``after`` the last name of the page before."""
    query = _given(status=status, after=after, limit=limit)
    return Call(request=Request(method="GET", path=_path("experiments"), query=query), read=_one(Page[Experiment]))


def get_experiment(name: str) -> Call[Experiment]:
    """An experiment with its history, and how it stood over time."""
    return Call(request=Request(method="GET", path=_path("experiments", name)), read=_one(Experiment))


def set_weights(name: str, weights: Mapping[str, float], *, reason: str | None = None) -> Call[Experiment]:
    """Widen treatments of a running experiment, or take them out with 0; the control gets what is left."""
    body = {"weights": dict(weights), **_given(reason=reason)}
    return Call(request=Request(method="PATCH", path=_path("experiments", name), json=body), read=_one(Experiment))


def stop_experiment(name: str, *, promote: str | None = None, reason: str | None = None) -> Call[Experiment]:
    """End an experiment, for good; ``promote`` names the arm whose version becomes live."""
    request = Request(
        method="POST", path=_path("experiments", name, "stop"), json=_given(promote=promote, reason=reason)
    )
    return Call(request=request, read=_one(Experiment))


def create_key(name: str, *, role: str = "app") -> Call[Key]:
    """Make an API key; its ``secret`` is in this answer and never shown again. Roles: app, operator, admin."""
    request = Request(method="POST", path=_path("keys"), json={"name": name, "role": role})
    return Call(request=request, read=_one(Key))


def list_keys(*, after: str | None = None, limit: int | None = None) -> Call[Page[Key]]:
    """A page of the API keys, without their secrets."""
    request = Request(method="GET", path=_path("keys"), query=_given(after=after, limit=limit))
    return Call(request=request, read=_one(Page[Key]))


def revoke_key(id: str) -> Call[Key]:
    """Make a key useless from now on."""
    return Call(request=Request(method="DELETE", path=_path("keys", id)), read=_one(Key))


def send_feedback(
    interaction_id: str,
    *,
    thumb: str | None = None,
    score: float | None = None,
    correction: str | None = None,
    preferred_over: str | None = None,
    comment: str | None = None,
    metadata: Mapping[str, str] | None = None,
    choice: int | None = None,
    preferred_over_choice: int | None = None,
    user: str | None = None,
    idempotency_key: str | None = None,
) -> Call[SentFeedback]:
    """Say something of an answer, by its ``id``, now or at any later time.

    At least one of: ``thumb`` (up, down), ``score`` (0 to 1), ``correction`` (what the answer should have been),
    ``preferred_over`` (the id of an answer to the same prompt that was worse), ``comment``, ``metadata``. ``choice`` is
    its index where there were several. Sent again with the same ``idempotency_key`` it is not kept twice; without one,
    the call makes one up, so that it may try again by itself when a connection breaks.
    """
    said = _given(
        thumb=thumb,
        score=score,
        correction=correction,
        preferred_over=preferred_over,
        comment=comment,
        metadata=metadata,
        choice=choice,
        preferred_over_choice=preferred_over_choice,
        user=user,
    )
    request = Request(
        method="POST",
        path=_path("feedback"),
        json={"interaction_id": interaction_id, **said, "idempotency_key": idempotency_key or uuid.uuid4().hex},
        repeatable=True,
    )
    return Call(request=request, read=_read_sent)


def list_feedback(
    *, after: int | None = None, limit: int | None = None, **which: Unpack[FeedbackFilter]
) -> Call[Page[Feedback]]:
    """A page of feedback, newest first; ``after`` is the last one's id of the page before."""
    query = {**_which(which), **_given(after=after, limit=limit)}
    return Call(request=Request(method="GET", path=_path("feedback"), query=query), read=_one(Page[Feedback]))


def export_feedback(**which: Unpack[FeedbackFilter]) -> LinesCall[Feedback]:
    """All feedback, oldest first, read while it is iterated."""
    return _export("feedback", which, Feedback)


def list_interactions(
    *, after: str | None = None, limit: int | None = None, **which: Unpack[InteractionFilter]
) -> Call[Page[Interaction]]:
    """A page of logged requests and answers, newest first; ``after`` is the last one's id of the page before."""
    query = {**_which(which), **_given(after=after, limit=limit)}
    return Call(request=Request(method="GET", path=_path("interactions"), query=query), read=_one(Page[Interaction]))


def get_interaction(id: str) -> Call[Interaction]:
    """A logged request and its answers, with what was said of them."""
    return Call(request=Request(method="GET", path=_path("interactions", id)), read=_one(Interaction))


def export_interactions(**which: Unpack[InteractionFilter]) -> LinesCall[Interaction]:
    """All logged requests and answers, oldest first, read while they are iterated."""
    return _export("interactions", which, Interaction)


def erase_interactions(*, user: str) -> Call[Erasure]:
    """Erase what a user left behind: interactions, and the words of feedback. Says which versions learned from it."""
    request = Request(method="DELETE", path=_path("interactions"), query={"user": user}, read_timeout=SLOW)
    return Call(request=request, read=_one(Erasure))


def list_log_policies() -> Call[LogPolicies]:
    """What is logged of single adapters and keys, for how long, and the default."""
    return Call(request=Request(method="GET", path=_path("log_policies")), read=_one(LogPolicies))


def set_log_policy(
    *, adapter: str | None = None, key: str | None = None, log: bool = True, retention_days: float | None = None
) -> Call[LogPolicy]:
    """Say whether what an adapter (or the base, by its id) answers, or a key asks, is logged, and for how long."""
    body = {"log": log, **_given(retention_days=retention_days)}
    return Call(request=Request(method="PUT", path=_policy_path(adapter, key), json=body), read=_one(LogPolicy))


def remove_log_policy(*, adapter: str | None = None, key: str | None = None) -> Call[LogPolicy]:
    """Let the default hold again for an adapter or a key."""
    return Call(request=Request(method="DELETE", path=_policy_path(adapter, key)), read=_one(LogPolicy))


def upload_file(path: str | Path, *, progress: Progress | None = None) -> Call[File]:
    """Upload rows to learn from, streamed from disk; ``progress`` is told the bytes sent and the bytes in all."""
    upload = Upload(files=(Path(path),), fields={"purpose": "fine-tune"}, progress=progress, field="file")
    return Call(request=Request(method="POST", path=_path("files"), upload=upload, read_timeout=SLOW), read=_one(File))


def list_files(*, purpose: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[File]]:
    """A page of files, newest first; ``purpose`` is fine-tune or fine-tune-results."""
    query = _given(purpose=purpose, after=after, limit=limit)
    return Call(request=Request(method="GET", path=_path("files"), query=query), read=_one(Page[File]))


def get_file(id: str) -> Call[File]:
    """One file."""
    return Call(request=Request(method="GET", path=_path("files", id)), read=_one(File))


def file_content(id: str) -> Call[str]:
    """What a file holds, as text."""
    request = Request(method="GET", path=_path("files", id, "content"), read_timeout=SLOW)
    return Call(request=request, read=lambda reply: reply.text)


def delete_file(id: str) -> Call[Deleted]:
    """Delete a file; raises ``ConflictError`` while a job needs it."""
    return Call(request=Request(method="DELETE", path=_path("files", id)), read=_one(Deleted))


def create_job(
    *,
    model: str,
    training_file: str,
    name: str | None = None,
    validation_file: str | None = None,
    method: str | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> Call[Job]:
    """Train a version of the adapter ``name``, on top of the base or of the version that ``model`` names.

    ``training_file`` is an uploaded file's id, or ``feedback``: what was said of the adapter's answers. ``method``:
    supervised, dpo, kto, weighted_sft, pretrain or auto. Sent again with the same ``idempotency_key`` it is one job;
    without one, the call makes one up, so that it may try again by itself when a connection breaks.
    """
    body = {
        "model": model,
        "training_file": training_file,
        **_given(
            suffix=name,
            validation_file=validation_file,
            method=None if method is None else {"type": method},
            hyperparameters=hyperparameters and dict(hyperparameters),
            seed=seed,
            metadata=metadata,
        ),
    }
    request = Request(
        method="POST",
        path=_path("fine_tuning", "jobs"),
        json=body,
        headers={"idempotency-key": idempotency_key or uuid.uuid4().hex},
        repeatable=True,
    )
    return Call(request=request, read=_one(Job))


def list_jobs(*, adapter: str | None = None, after: str | None = None, limit: int | None = None) -> Call[Page[Job]]:
    """A page of jobs, newest first; ``after`` is the last one's id of the page before."""
    query = _given(adapter=adapter, after=after, limit=limit)
    return Call(request=Request(method="GET", path=_path("fine_tuning", "jobs"), query=query), read=_one(Page[Job]))


def get_job(id: str) -> Call[Job]:
    """One job, as it stands."""
    return Call(request=Request(method="GET", path=_path("fine_tuning", "jobs", id)), read=_one(Job))


def cancel_job(id: str) -> Call[Job]:
    """End a job now; nothing of it is published."""
    return Call(request=Request(method="POST", path=_path("fine_tuning", "jobs", id, "cancel")), read=_one(Job))


def job_events(id: str, *, after: str | None = None, limit: int | None = None) -> Call[Page[JobEvent]]:
    """A page of what happened to a job, newest first; ``after`` is the last event's id of the page before."""
    path, query = _path("fine_tuning", "jobs", id, "events"), _given(after=after, limit=limit)
    return Call(request=Request(method="GET", path=path, query=query), read=_one(Page[JobEvent]))


def job_checkpoints(id: str, *, after: str | None = None, limit: int | None = None) -> Call[Page[JobCheckpoint]]:
    """A page of the steps after which a run was saved, newest first."""
    path, query = _path("fine_tuning", "jobs", id, "checkpoints"), _given(after=after, limit=limit)
    return Call(request=Request(method="GET", path=path, query=query), read=_one(Page[JobCheckpoint]))


def list_learning_policies() -> Call[Page[LearningPolicy]]:
    """All adapters that learn by themselves, and how they stand."""
    return Call(request=Request(method="GET", path=_path("learning_policies")), read=_one(Page[LearningPolicy]))


def get_learning_policy(adapter: str) -> Call[LearningPolicy]:
    """When an adapter learns by itself, and how that stands; raises ``NotFoundError`` when it does not."""
    return Call(request=Request(method="GET", path=_learning_path(adapter)), read=_one(LearningPolicy))


def set_learning_policy(
    adapter: str,
    *,
    after: int | None = 50,
    every_days: float | None = 7.0,
    at_least: int = 10,
    control_every: int | None = None,
    method: str = "auto",
    hyperparameters: Mapping[str, Any] | None = None,
) -> Call[LearningPolicy]:
    """Let an adapter learn by itself: ``after`` so many new judgements, or ``every_days`` with ``at_least`` so many;
    ``None`` turns one of the two off. Every ``control_every``-th round begins with the base, to compare with.
    ``method`` and ``hyperparameters`` are those of its jobs."""
    body = {
        "after": after,
        "every_days": every_days,
        "at_least": at_least,
        "control_every": control_every,
        "method": method,
        "hyperparameters": dict(hyperparameters or {}),
    }
    return Call(request=Request(method="PUT", path=_learning_path(adapter), json=body), read=_one(LearningPolicy))


def remove_learning_policy(adapter: str) -> Call[LearningPolicy]:
    """Let an adapter learn on command alone. A round that is under way goes on."""
    return Call(request=Request(method="DELETE", path=_learning_path(adapter)), read=_one(LearningPolicy))


def _learning_path(adapter: str) -> str:
    return _path("adapters", adapter, "learning_policy")


def _export(noun: str, which: Mapping[str, Any], kind: type[T]) -> LinesCall[T]:
    request = Request(method="GET", path=_path(noun, "export"), query=_which(which), read_timeout=SLOW)
    return LinesCall(request=request, read=lambda line: parse(kind, _decoded(line)))


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise GraftworkProtocolError(f"the export has a line that is no JSON: {line[:200]!r}") from error


def _which(given: Mapping[str, Any]) -> dict[str, Any]:
    """A filter as a query. Moments travel as unix seconds, or as the text that they were given as."""
    moments = {name: value.timestamp() for name, value in given.items() if isinstance(value, datetime)}
    return _given(**{**given, **moments})


def _policy_path(adapter: str | None, key: str | None) -> str:
    if (adapter is None) == (key is None):
        raise InvalidArgumentError("a policy is about an adapter or a key, one of the two")
    return (
        _path("log_policies", "adapters", adapter) if adapter is not None else _path("log_policies", "keys", key or "")
    )


def _read_sent(reply: Reply) -> SentFeedback:
    return parse(SentFeedback, {**parse(dict, reply.json()), "created": reply.status == 201})


def _one(kind: type[T]) -> Callable[[Reply], T]:
    return lambda reply: parse(kind, reply.json())


def _read_pushed(reply: Reply) -> PushedVersion:
    return parse(PushedVersion, {**parse(dict, reply.json()), "created": reply.status == 201})


def _read_score(reply: Reply) -> Score:
    completion = parse(Completion, reply.json())
    logprobs = completion.choices[0].logprobs if completion.choices else None
    if logprobs is None:
        raise GraftworkProtocolError("the server's answer has no log-probabilities, though echo and logprobs asked")
    return Score(
        tokens=logprobs.tokens,
        logprobs=logprobs.token_logprobs,
        top=logprobs.top_logprobs,
        usage=completion.usage,
        adapter=completion.adapter,
    )


def _chat_request(model: str, messages: Messages, options: ChatOptions, *, stream: bool = False) -> Request:
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return _generation("/v1/chat/completions", {"model": model, "messages": turns}, options, stream)


def _completion_request(model: str, prompt: Prompt, options: CompletionOptions, *, stream: bool = False) -> Request:
    ids_or_text = prompt if isinstance(prompt, str) else list(prompt)
    return _generation("/v1/completions", {"model": model, "prompt": ids_or_text}, options, stream)


def _generation(path: str, body: dict[str, Any], options: Mapping[str, Any], stream: bool) -> Request:
    given = _given(**options)
    session = given.pop("session", None)
    if stream:
        given |= {"stream": True, "stream_options": {"include_usage": True}}
    return Request(
        method="POST",
        path=path,
        json=body | given,
        headers={"x-graftwork-session": session} if session else {},
        read_timeout=None if stream else SLOW,
    )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _path(*segments: str) -> str:
    for segment in segments:
        if segment in ("", ".", ".."):
            raise InvalidArgumentError(f"{segment!r} names nothing")
    return "/v1/" + "/".join(quote(segment, safe="@") for segment in segments)


def _adapter_files(folder: Path) -> tuple[Path, ...]:
    """The files of a PEFT folder that the server wants, in the order it wants them: the small one first."""
    if not folder.is_dir():
        raise LocalFileError(f"{folder} is no folder; push takes the folder that PEFT's save_pretrained wrote")
    files = tuple(folder / name for name in (CONFIG_FILE, WEIGHTS_FILE))
    for file in files:
        if not file.is_file():
            pickled = file.name == WEIGHTS_FILE and (folder / "adapter_model.bin").is_file()
            advice = (
                "its adapter_model.bin is a pickle, which no server takes: save it with safe_serialization=True"
                if pickled
                else "push takes the folder that PEFT's save_pretrained wrote"
            )
            raise LocalFileError(f"{folder} has no {file.name}; {advice}")
    return files
