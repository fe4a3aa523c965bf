"""``/v1/fine_tuning/jobs``: OpenAI's fine-tuning API. It takes an operator's key: a job makes a version.

``model`` is the base's id, or the version to continue from; ``suffix`` is the adapter's name; ``training_file`` is the
id of a file, a stored data set, or ``feedback``: the feedback on the adapter's answers. OpenAI's method
``reinforcement`` is ``grpo`` with a grader. Beyond OpenAI's: ``init_from``, the methods that are not in OPENAI_METHODS,
further hyperparameters, and ``graftwork`` in a job. What is not supported is refused by name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, model_validator
from starlette.responses import JSONResponse, Response

from graftwork.adapters import names
from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.learning import data_sets, hyperparameters
from graftwork.adapters.learning.graders import reinforcement
from graftwork.adapters.learning.graders.reading import GraderRules
from graftwork.adapters.learning.job import FEEDBACK_FILE, METHODS, Checkpoint, Job, JobEvent, Method, NewJob
from graftwork.adapters.names import split_model
from graftwork.adapters.registry import reward_models
from graftwork.server.bodies import Label, Metadata, StrictModel, Text, parse
from graftwork.server.http.lists import Parameters, in_thread, page_body
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.fine_tuning.jobs import (
    JobCheckpointObject,
    JobErrorObject,
    JobEventObject,
    JobObject,
)
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

IDEMPOTENCY_HEADER = "idempotency-key"
NOT_ADAPTERS: Final[Mapping[str, str]] = {
    "full": "what it makes cannot be swapped while serving: export it with graftwork train --local --full",
    "prompt_tuning": "serving knows no learned prompts",
    "prefix_tuning": "serving knows no learned prefixes",
}
"""Other methods that people ask for, and why jobs do not support them."""

OPENAI_METHODS: Final = {"sft": "supervised", "dpo": "dpo"}
"""Methods that OpenAI's client accepts in a job; its strict mode takes no other."""

_CURSOR = re.compile(r"[a-z]+-([1-9][0-9]{0,17})")


class NewFineTuning(StrictModel):
    """The body that submits a job."""

    model: Annotated[Text, Field(min_length=1)]
    training_file: Annotated[Text, Field(min_length=1)]
    validation_file: Label | None = None
    suffix: Annotated[Text, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    metadata: Metadata = None
    method: dict[str, Any] | None = None
    hyperparameters: dict[str, Any] | None = None
    integrations: list[Any] | None = None
    init_from: Label | None = None


class JobsParameters(Parameters):
    """The filter and page of a list of jobs."""

    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    adapter: Label | None = None
    metadata: Metadata = None

    @model_validator(mode="before")
    @classmethod
    def _with_pairs(cls, given: Any) -> Any:
        """Read ``metadata[owner]=ann``, as OpenAI's clients send a filter; ``metadata=null``: jobs without any."""
        pairs = {name: value for name, value in given.items() if name.startswith("metadata[") and name.endswith("]")}
        if not pairs:
            return {**given, "metadata": {}} if given.get("metadata") == "null" else given
        rest = {name: value for name, value in given.items() if name not in pairs}
        return {"metadata": {name[len("metadata[") : -1]: value for name, value in pairs.items()}, **rest}


class RecordParameters(Parameters):
    """The page of a job's events or checkpoints."""

    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of jobs."""
    jobs, base_id = services.jobs, services.base.id
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.post("/v1/fine_tuning/jobs", response_model=JobObject, openapi_extra=json_body(NewFineTuning))
    async def create_job(request: Request, who: Principal = operator) -> Response:
        new = await in_thread(_checked, services, parse(NewFineTuning, await request.body()), who)
        job, is_new = await in_thread(
            jobs.submit,
            new,
            actor=who.name,
            key_id=who.key_id,
            idempotency_key=request.headers.get(IDEMPOTENCY_HEADER) or None,
        )
        if is_new:
            log.info("%s submitted %s: %s for %s", who.name, job.id, job.method, job.name)
        return JSONResponse(show(job, base_id))

    @routes.get("/v1/fine_tuning/jobs", dependencies=[operator], response_model=ListObject[JobObject])
    async def list_jobs(page: Annotated[JobsParameters, Query()]) -> Response:
        found = await in_thread(
            jobs.find, after=page.after, limit=page.limit, name=page.adapter, metadata=page.metadata
        )
        return JSONResponse(page_body(found, lambda job: show(job, base_id)))

    @routes.get("/v1/fine_tuning/jobs/{job_id}", dependencies=[operator], response_model=JobObject)
    async def get_job(job_id: str) -> Response:
        return JSONResponse(show(await in_thread(jobs.get, job_id), base_id))

    @routes.post("/v1/fine_tuning/jobs/{job_id}/cancel", response_model=JobObject)
    async def cancel_job(job_id: str, who: Principal = operator) -> Response:
        job = await in_thread(jobs.cancel, job_id, actor=who.name)
        log.info("%s cancelled %s", who.name, job.id)
        return JSONResponse(show(job, base_id))

    @routes.get(
        "/v1/fine_tuning/jobs/{job_id}/events",
        dependencies=[operator],
        response_model=ListObject[JobEventObject],
    )
    async def list_events(job_id: str, page: Annotated[RecordParameters, Query()]) -> Response:
        found = await in_thread(jobs.events, job_id, after=_cursor(page.after), limit=page.limit)
        return JSONResponse(page_body(found, show_event))

    @routes.get(
        "/v1/fine_tuning/jobs/{job_id}/checkpoints",
        dependencies=[operator],
        response_model=ListObject[JobCheckpointObject],
    )
    async def list_checkpoints(job_id: str, page: Annotated[RecordParameters, Query()]) -> Response:
        found = await in_thread(jobs.checkpoints, job_id, after=_cursor(page.after), limit=page.limit)
        job = await in_thread(jobs.get, job_id)
        return JSONResponse(page_body(found, lambda point: show_checkpoint(point, job)))


# ------------------------------------------------------------------------------------------------------ requests


def _checked(services: Services, body: NewFineTuning, who: Principal) -> NewJob:
    if body.integrations:
        raise InvalidRequest(
            "integrations are not supported: read the events, or name trackers in the hyperparameter report_to",
            param="integrations",
        )
    parent = _parent(services, body)
    name = body.suffix or ("" if parent is None else parent.partition("@")[0])
    if name:
        _as_param("suffix", lambda: names.check_name(name, base_id=services.base.id))
    _check_scope(services, body, name, who)
    method, chosen = _method(body, services.allowed_roots, services.grader_rules)
    for param, adapter in (("model", "" if parent is None else split_model(parent)[0]), ("suffix", name)):
        _as_param(param, partial(reward_models.check_method, method, adapter, services.registry))
    if "rewards" in chosen:
        chosen["rewards"] = _as_param("rewards", partial(reward_models.pinned, chosen["rewards"], services.registry))
    if body.training_file == FEEDBACK_FILE:
        if not name:
            raise InvalidRequest(
                "feedback on which adapter's answers? Name it as suffix, or as the model to continue", param="suffix"
            )
    elif data_sets.is_reference(body.training_file):
        _as_param("training_file", lambda: data_sets.find(services.home, body.training_file))
        if body.validation_file is not None:
            raise InvalidRequest("a data set has held-out rows of its own: leave it out", param="validation_file")
    return NewJob(
        model=body.model,
        name=name,
        parent=parent,
        method=method,
        hyperparameters=chosen,
        seed=body.seed or 0,
        training_file=body.training_file,
        validation_file=body.validation_file,
        metadata=dict(body.metadata or {}),
    )


def _check_scope(services: Services, body: NewFineTuning, name: str, who: Principal) -> None:
    """Refuse a job for an adapter out of the caller's scope, and one of rows that the caller may not see."""
    if who.scope is None:
        return
    if not name:
        raise InvalidRequest(
            "your key is limited to some adapters: name the one that the job is for as suffix", param="suffix"
        )
    _as_param("suffix", partial(services.registry.check_visible, name))
    for param, file in (("training_file", body.training_file), ("validation_file", body.validation_file)):
        if file is not None and file != FEEDBACK_FILE:
            # Stored data sets belong to no key.
            _as_param(param, partial(services.files.get, file, owner=who.owner))


def _parent(services: Services, body: NewFineTuning) -> str | None:
    """The version to continue, ``name@n``; ``None`` to begin with the base."""

    def version(model: str) -> str | None:
        return None if model == services.base.id else services.registry.resolve(model).id

    # An unknown model is 404, as everywhere; an id of anything else inside a body is 400.
    parent = version(body.model)
    if body.init_from is None:
        return parent
    init_from = body.init_from
    started: str | None = _as_param("init_from", lambda: version(init_from))
    if parent is not None and parent != started:
        raise InvalidRequest(
            f"model says to continue {parent}, init_from {started or 'the base'}: say one of the two",
            param="init_from",
        )
    return started


def _as_param(param: str, check: Callable[[], Any]) -> Any:
    """Call ``check``; what it finds wrong is reported for the body's field ``param``."""
    try:
        return check()
    except (NotFound, InvalidRequest) as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None


def _method(body: NewFineTuning, roots: Sequence[Path], rules: GraderRules) -> tuple[Method, dict[str, Any]]:
    """The method and its hyperparameters, from ``method`` or from OpenAI's older top-level field."""
    given: Any = {"type": "auto" if body.training_file == FEEDBACK_FILE else "supervised", **(body.method or {})}
    kind = given.pop("type")
    known = (*METHODS, reinforcement.METHOD)
    if not isinstance(kind, str) or kind not in known:
        why = NOT_ADAPTERS.get(str(kind))
        if why is not None:
            raise InvalidRequest(f"the method {kind} is not supported: {why}", param="method.type")
        raise InvalidRequest(
            f"the method {names.quoted(str(kind))} is not supported: choose {', '.join(known)}", param="method.type"
        )
    if strange := sorted(given.keys() - {kind}):
        raise InvalidRequest(
            f"method.{strange[0][:64]} does not belong to the method {kind}: leave it out",
            param=f"method.{strange[0][:64]}",
            code="unknown_parameter",
        )
    details = given.get(kind) or {}
    if kind == reinforcement.METHOD:
        return _reinforcement(body, details, roots, rules)
    if not isinstance(details, dict) or details.keys() - {"hyperparameters"}:
        raise InvalidRequest(f"method.{kind} takes an object with hyperparameters", param=f"method.{kind}")
    nested = details.get("hyperparameters") or {}
    if body.hyperparameters and nested:
        raise InvalidRequest(
            "hyperparameters came twice: give them inside method, or at the top", param="hyperparameters"
        )
    place = f"method.{kind}.hyperparameters" if nested else "hyperparameters"
    return METHODS[kind], hyperparameters.validate_hyperparameters(
        nested or body.hyperparameters or {}, place, method=METHODS[kind], roots=roots, rules=rules
    )


def _reinforcement(
    body: NewFineTuning, details: Any, roots: Sequence[Path], rules: GraderRules
) -> tuple[Method, dict[str, Any]]:
    place = f"method.{reinforcement.METHOD}"
    if not isinstance(details, dict):
        raise InvalidRequest(f"{place} must be an object with a grader", param=place, code="invalid_type")
    if body.hyperparameters:
        raise InvalidRequest(
            f"hyperparameters at the top are for older methods: give them as {place}.hyperparameters",
            param="hyperparameters",
        )
    if body.training_file == FEEDBACK_FILE:
        raise InvalidRequest(
            "reinforcement learns from questions in a file or data set: feedback says itself how good answers are, "
            "and the method auto learns from it",
            param="training_file",
        )
    return "grpo", hyperparameters.validate_hyperparameters(
        reinforcement.to_grpo(details, place),
        f"{place}.hyperparameters",
        method="grpo",
        roots=roots,
        rules=rules,
        elsewhere={name: f"{place}.{name}" for name in reinforcement.DETAILS},
    )


def _cursor(after: str | None) -> int | None:
    if after is None:
        return None
    found = _CURSOR.fullmatch(after)
    if found is None:
        raise InvalidRequest("after is no id of an entry: give the last one of the page before", param="after")
    return int(found[1])


# ----------------------------------------------------------------------------------------------------- responses


def show(job: Job, base_id: str) -> JobObject:
    """OpenAI's JSON of a job, and under ``graftwork`` what it has no field for."""
    known = {name: job.hyperparameters.get(name, hyperparameters.AUTO) for name in ("n_epochs", "batch_size")}
    known["learning_rate_multiplier"] = job.hyperparameters.get("learning_rate_multiplier", hyperparameters.AUTO)
    eta = job.progress.get("eta_seconds")
    progress_at = job.progress.get("at")
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at.timestamp()),
        "finished_at": None if job.finished_at is None else int(job.finished_at.timestamp()),
        "estimated_finish": int(progress_at + eta) if job.status == "running" and eta and progress_at else None,
        "status": job.status,
        "error": None if job.error is None else cast(JobErrorObject, dict(job.error)),
        "model": job.model,
        "fine_tuned_model": job.version,
        "organization_id": "graftwork",
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": list(job.result_files),
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "hyperparameters": {**known, **job.hyperparameters},
        "method": _show_method(job, {**known, **job.hyperparameters}),
        "metadata": dict(job.metadata),
        "integrations": [],
        "graftwork": {
            "adapter": job.name,
            "parent": job.parent,
            "method": job.method,
            "created_by": job.created_by,
            "attempts": job.attempts,
            "started_at": None if job.started_at is None else job.started_at.timestamp(),
            "progress": dict(job.progress),
            "metrics": dict(job.metrics),
        },
    }


def _show_method(job: Job, chosen: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """OpenAI's JSON of a job's method; None for one that it does not have."""
    if reinforcement.is_graded(job.hyperparameters):
        return {"type": reinforcement.METHOD, reinforcement.METHOD: reinforcement.from_grpo(job.hyperparameters)}
    kind = OPENAI_METHODS.get(job.method)
    return None if kind is None else {"type": kind, kind: {"hyperparameters": chosen}}


def show_event(event: JobEvent) -> JobEventObject:
    """The JSON of a job's event."""
    return {
        "id": f"ftevent-{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.at.timestamp()),
        "level": event.level,
        "message": event.message,
        "type": "metrics" if event.data else "message",
        "data": dict(event.data),
    }


def show_checkpoint(point: Checkpoint, job: Job) -> JobCheckpointObject:
    """The JSON of a checkpoint. It has a model's name, as OpenAI's has, but is not served: the job's result is."""
    return {
        "id": f"ftckpt-{point.id}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(point.at.timestamp()),
        "fine_tuned_model_checkpoint": f"{job.name}:ckpt-step-{point.step}",
        "fine_tuning_job_id": job.id,
        "step_number": point.step,
        "metrics": dict(point.metrics),
    }
