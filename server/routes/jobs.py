"""``/v1/fine_tuning/jobs``: OpenAI's fine-tuning API. An operator's: a job makes a version.

``model`` is the base's id, or what to continue from; ``suffix`` is the adapter's name; ``training_file`` is the id of a
file, or ``feedback``: what was said of the adapter's answers. Beyond OpenAI's: ``init_from``, the methods ``kto``,
``weighted_sft``, ``pretrain`` and ``auto``, further hyperparameters, and ``graftwork`` in a job. What is not supported
is refused by name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters import names, trackers
from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.jobs import FEEDBACK, Checkpoint, Event, Job, Method, NewJob
from graftwork.adapters.keys import Role
from graftwork.server.auth import Principal
from graftwork.server.routes.lists import Json, Parameters, as_page, beside
from graftwork.server.schemas import Label, Metadata, Text, Wire, parse
from graftwork.server.services import Services

log = logging.getLogger(__name__)

IDEMPOTENCY_HEADER = "idempotency-key"
AUTO: Final = "auto"
METHODS: Final[Mapping[str, Method]] = {
    "supervised": "sft",
    "dpo": "dpo",
    "kto": "kto",
    "weighted_sft": "weighted_sft",
    "pretrain": "pretrain",
    AUTO: AUTO,
}
OPENAI_METHODS: Final = {"sft": "supervised", "dpo": "dpo"}
"""Those that the official client knows; its strict mode takes no other in a job."""

HYPERPARAMETERS: Final[Mapping[str, tuple[type, float, float]]] = {
    "n_epochs": (int, 1, 1000),
    "batch_size": (int, 1, 4096),
    "learning_rate_multiplier": (float, 1e-6, 1e6),
    "learning_rate": (float, 1e-12, 1.0),
    "beta": (float, 1e-6, 100.0),
    "rank": (int, 1, 256),
    "alpha": (int, 1, 4096),
    "max_length": (int, 2, 1 << 20),
    "warmup": (float, 0.0, 0.99),
    "weight_decay": (float, 0.0, 10.0),
    "max_grad_norm": (float, 1e-6, 1e6),
    "dropout": (float, 0.0, 0.99),
    "anchor": (float, 0.0, 100.0),
    "sft_share": (float, 0.0, 100.0),
    "replay": (float, 0.0, 0.99),
    "forgetting": (float, 0.0, 100.0),
    "validation": (float, 0.0, 0.9),
    "micro_batch_tokens": (int, 1, 1 << 20),
    "checkpoint_steps": (int, 1, 1_000_000),
    "search": (int, 2, 100),
}
"""By name: the type, the least and the largest value. Each may also be ``"auto"``."""

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "balance": ("none", "sqrt", "full"),
    "curriculum": ("none", "short_first"),
    "variant": ("lora", "rslora", "dora"),
    "quantization": ("none", "nf4"),
    "precision": ("bfloat16", "float32"),
    "reference": ("parent", "base"),
}
"""Hyperparameters that are words: by name, which ones. Each may also be ``"auto"``."""

LAYERS: Final = "layers"
"""Numbers of the layers that get an adapter, from 0."""

MOST_LAYERS: Final = 1000

REPORT_TO: Final = "report_to"
"""The trackers that are told the measurements, one or a list."""

_CURSOR = re.compile(r"[a-z]+-([1-9][0-9]{0,17})")


class NewFineTuning(Wire):
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
    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    adapter: Label | None = None


class RecordParameters(Parameters):
    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


def add(routes: APIRouter, services: Services) -> None:
    jobs, base_id = services.jobs, services.base.id
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.post("/v1/fine_tuning/jobs")
    async def create_job(request: Request, who: Principal = operator) -> Response:
        new = await beside(_checked, services, parse(NewFineTuning, await request.body()))
        job, is_new = await beside(
            jobs.submit,
            new,
            actor=who.name,
            key_id=who.key_id,
            idempotency_key=request.headers.get(IDEMPOTENCY_HEADER) or None,
        )
        if is_new:
            log.info("%s submitted %s: %s for %s", who.name, job.id, job.method, job.name)
        return JSONResponse(show(job, base_id))

    @routes.get("/v1/fine_tuning/jobs", dependencies=[operator])
    async def list_jobs(page: Annotated[JobsParameters, Query()]) -> Response:
        found = await beside(jobs.find, after=page.after, limit=page.limit, name=page.adapter)
        return JSONResponse(as_page(found, lambda job: show(job, base_id)))

    @routes.get("/v1/fine_tuning/jobs/{job_id}", dependencies=[operator])
    async def get_job(job_id: str) -> Response:
        return JSONResponse(show(await beside(jobs.get, job_id), base_id))

    @routes.post("/v1/fine_tuning/jobs/{job_id}/cancel")
    async def cancel_job(job_id: str, who: Principal = operator) -> Response:
        job = await beside(jobs.cancel, job_id, actor=who.name)
        log.info("%s cancelled %s", who.name, job.id)
        return JSONResponse(show(job, base_id))

    @routes.get("/v1/fine_tuning/jobs/{job_id}/events", dependencies=[operator])
    async def list_events(job_id: str, page: Annotated[RecordParameters, Query()]) -> Response:
        found = await beside(jobs.events, job_id, after=_cursor(page.after), limit=page.limit)
        return JSONResponse(as_page(found, show_event))

    @routes.get("/v1/fine_tuning/jobs/{job_id}/checkpoints", dependencies=[operator])
    async def list_checkpoints(job_id: str, page: Annotated[RecordParameters, Query()]) -> Response:
        found = await beside(jobs.checkpoints, job_id, after=_cursor(page.after), limit=page.limit)
        job = await beside(jobs.get, job_id)
        return JSONResponse(as_page(found, lambda point: show_checkpoint(point, job)))


# ------------------------------------------------------------------------------------------------- what is asked


def _checked(services: Services, body: NewFineTuning) -> NewJob:
    if body.integrations:
        raise InvalidRequest(
            "integrations are not supported: read the events, or name trackers in the hyperparameter report_to",
            param="integrations",
        )
    parent = _parent(services, body)
    name = body.suffix or ("" if parent is None else parent.partition("@")[0])
    if name:
        _as_param("suffix", lambda: names.check_name(name, base_id=services.base.id))
    method, hyperparameters = _method(body)
    if body.training_file == FEEDBACK:
        if not name:
            raise InvalidRequest(
                "feedback on which adapter's answers? Name it as suffix, or as the model to continue", param="suffix"
            )
    else:
        _as_param("training_file", lambda: services.files.get(body.training_file))
    if body.validation_file is not None:
        validation_file = body.validation_file
        _as_param("validation_file", lambda: services.files.get(validation_file))
    return NewJob(
        model=body.model,
        name=name,
        parent=parent,
        method=method,
        hyperparameters=hyperparameters,
        seed=body.seed or 0,
        training_file=body.training_file,
        validation_file=body.validation_file,
        metadata=dict(body.metadata or {}),
    )


def _parent(services: Services, body: NewFineTuning) -> str | None:
    """The version to continue, ``name@n``; None to begin with the base."""

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
    """What ``check`` finds wrong is wrong in the body's field ``param``."""
    try:
        return check()
    except (NotFound, InvalidRequest) as error:
        raise InvalidRequest(error.message, param=param, code=error.code) from None


def _method(body: NewFineTuning) -> tuple[Method, dict[str, Any]]:
    """The method and its hyperparameters, from ``method`` or from the older top-level field."""
    given: Any = {"type": AUTO if body.training_file == FEEDBACK else "supervised", **(body.method or {})}
    kind = given.pop("type")
    if not isinstance(kind, str) or kind not in METHODS:
        raise InvalidRequest(
            f"the method {names.quoted(str(kind))} is not supported: choose {', '.join(METHODS)}", param="method.type"
        )
    if strange := sorted(given.keys() - {kind}):
        raise InvalidRequest(
            f"method.{strange[0][:64]} does not belong to the method {kind}: leave it out",
            param=f"method.{strange[0][:64]}",
            code="unknown_parameter",
        )
    details = given.get(kind) or {}
    if not isinstance(details, dict) or details.keys() - {"hyperparameters"}:
        raise InvalidRequest(f"method.{kind} takes an object with hyperparameters", param=f"method.{kind}")
    nested = details.get("hyperparameters") or {}
    if body.hyperparameters and nested:
        raise InvalidRequest(
            "hyperparameters came twice: give them inside method, or at the top", param="hyperparameters"
        )
    place = f"method.{kind}.hyperparameters" if nested else "hyperparameters"
    return METHODS[kind], checked_hyperparameters(nested or body.hyperparameters or {}, place)


def checked_hyperparameters(given: Any, place: str) -> dict[str, Any]:
    """Those that a job may have, each in its bounds; ``place`` is where they stood."""
    if not isinstance(given, dict):
        raise InvalidRequest(f"{place} must be an object", param=place, code="invalid_type")
    checked = dict(given)
    for name, value in given.items():
        param = f"{place}.{name[:64]}"
        if name == REPORT_TO:
            checked[name] = _trackers(value, param)
            continue
        if name == LAYERS:
            checked[name] = _layers(value, param)
            continue
        if name in CHOICES:
            if value != AUTO and value not in CHOICES[name]:
                raise InvalidRequest(
                    f'{param} must be "auto" or one of {", ".join(CHOICES[name])}, got {names.quoted(str(value))}',
                    param=param,
                )
            continue
        if name not in HYPERPARAMETERS:
            there = ", ".join((*HYPERPARAMETERS, *CHOICES, LAYERS, REPORT_TO))
            raise InvalidRequest(
                f"{names.quoted(name)} is no hyperparameter: choose among {there}",
                param=param,
                code="unknown_parameter",
            )
        kind, least, most = HYPERPARAMETERS[name]
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if value != AUTO and not (number and least <= value <= most):
            raise InvalidRequest(
                f'{param} must be "auto" or {"a whole number" if kind is int else "a number"} from {least:g} to '
                f"{most:g}, got {names.quoted(str(value))}",
                param=param,
            )
    return checked


def _layers(value: Any, param: str) -> Any:
    if value == AUTO:
        return value
    numbers = value if isinstance(value, list) else []
    whole = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < MOST_LAYERS for each in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise InvalidRequest(
            f'{param} must be "auto" or a list of different layers\' numbers, from 0, such as [20, 21, 22]',
            param=param,
            code="invalid_type",
        )
    return numbers


def _trackers(value: Any, param: str) -> list[str]:
    wanted = [value] if isinstance(value, str) else value
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise InvalidRequest(f"{param} must be a tracker's name, or a list of them", param=param, code="invalid_type")
    if wanted == [AUTO]:
        return []
    trackers.check(wanted, param=param)
    return wanted


def _cursor(after: str | None) -> int | None:
    if after is None:
        return None
    found = _CURSOR.fullmatch(after)
    if found is None:
        raise InvalidRequest("after is no id of an entry: give the last one of the page before", param="after")
    return int(found[1])


# ------------------------------------------------------------------------------------------------- what is answered


def show(job: Job, base_id: str) -> Json:
    """OpenAI's job, and under ``graftwork`` what it has no field for."""
    known = {name: job.hyperparameters.get(name, AUTO) for name in ("n_epochs", "batch_size")}
    known["learning_rate_multiplier"] = job.hyperparameters.get("learning_rate_multiplier", AUTO)
    eta = job.progress.get("eta_seconds")
    openai_method = OPENAI_METHODS.get(job.method)
    details = {"hyperparameters": {**known, **job.hyperparameters}}
    progress_at = job.progress.get("at")
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at.timestamp()),
        "finished_at": None if job.finished_at is None else int(job.finished_at.timestamp()),
        "estimated_finish": int(progress_at + eta) if job.status == "running" and eta and progress_at else None,
        "status": job.status,
        "error": None if job.error is None else dict(job.error),
        "model": job.model,
        "fine_tuned_model": job.version,
        "organization_id": "graftwork",
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": list(job.result_files),
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "hyperparameters": {**known, **job.hyperparameters},
        "method": None if openai_method is None else {"type": openai_method, openai_method: details},
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


def show_event(event: Event) -> Json:
    return {
        "id": f"ftevent-{event.id}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.at.timestamp()),
        "level": event.level,
        "message": event.message,
        "type": "metrics" if event.data else "message",
        "data": dict(event.data),
    }


def show_checkpoint(point: Checkpoint, job: Job) -> Json:
    """A checkpoint's model has a name, as OpenAI's has, but is not served: the job's result is."""
    return {
        "id": f"ftckpt-{point.id}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(point.at.timestamp()),
        "fine_tuned_model_checkpoint": f"{job.name}:ckpt-step-{point.step}",
        "fine_tuning_job_id": job.id,
        "step_number": point.step,
        "metrics": dict(point.metrics),
    }
