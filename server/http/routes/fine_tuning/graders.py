"""``/v1/fine_tuning/alpha/graders``: graders tried out before a job learns from them, as OpenAI's client asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.learning.graders.reading import checked_grader
from graftwork.server.bodies import StrictModel, Text, parse
from graftwork.server.http.lists import in_thread
from graftwork.server.http.openapi import json_body
from graftwork.server.http.schemas.fine_tuning.graders import GraderErrorsObject, GraderObject, GraderRunObject
from graftwork.server.http.services import Services

TRIALS_AT_ONCE: Final = 2


class NewGrader(StrictModel):
    """The body that has a grader checked."""

    grader: dict[str, Any]


class NewGraderRun(StrictModel):
    """The body that has an answer graded."""

    grader: dict[str, Any]
    model_sample: Text
    item: dict[str, Any] = Field(default_factory=dict)


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of graders."""
    operator = Depends(services.authenticator.require(Role.OPERATOR, changes=False))
    trials = CapacityLimiter(TRIALS_AT_ONCE)  # each is a process, and holds a thread of those that all routes share

    @routes.post(
        "/v1/fine_tuning/alpha/graders/validate",
        dependencies=[operator],
        response_model=GraderObject,
        openapi_extra=json_body(NewGrader),
    )
    async def validate_grader(request: Request) -> Response:
        body = parse(NewGrader, await request.body())
        await in_thread(checked_grader, body.grader, "grader", services.grader_rules)
        return JSONResponse({"grader": body.grader})

    @routes.post(
        "/v1/fine_tuning/alpha/graders/run",
        dependencies=[operator],
        response_model=GraderRunObject,
        openapi_extra=json_body(NewGraderRun),
    )
    async def run_grader(request: Request) -> Response:
        body = parse(NewGraderRun, await request.body())
        grader = await in_thread(checked_grader, body.grader, "grader", services.grader_rules)
        began = time.monotonic()
        async with trials:
            found = await in_thread(services.grader_trials.run, grader, item=body.item, sample=body.model_sample)
        return JSONResponse(show(grader, found, time.monotonic() - began))


def show(grader: Mapping[str, Any], found: Mapping[str, Any], seconds: float) -> GraderRunObject:
    """OpenAI's JSON of a grade, or of what failed."""
    return {
        "metadata": {
            "errors": _errors(grader["type"], found.get("error")),
            "execution_time": seconds,
            "name": grader["name"],
            "sampled_model_name": grader.get("model"),
            "scores": found.get("parts") or {},
            "token_usage": None,
            "type": grader["type"],
        },
        "model_grader_token_usage_per_model": {},
        "reward": found.get("grade") or 0.0,
        "sub_rewards": found.get("parts") or {},
    }


def _errors(kind: str, message: str | None) -> GraderErrorsObject:
    """Which of OpenAI's errors it was."""
    failed = message is not None
    by_model, by_program = kind in ("score_model", "label_model"), kind == "python"
    return {
        "formula_parse_error": failed and kind == "multi",
        "invalid_variable_error": False,
        "model_grader_parse_error": False,
        "model_grader_refusal_error": False,
        "model_grader_server_error": failed and by_model,
        "model_grader_server_error_details": message if by_model else None,
        "other_error": failed and kind not in ("multi", "python") and not by_model,
        "python_grader_runtime_error": failed and by_program,
        "python_grader_runtime_error_details": message if by_program else None,
        "python_grader_server_error": False,
        "python_grader_server_error_type": None,
        "sample_parse_error": False,
        "truncated_observation_error": False,
        "unresponsive_reward_error": False,
    }
