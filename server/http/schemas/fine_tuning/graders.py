"""OpenAI's answers about graders that are tried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict


class GraderErrorsObject(TypedDict):
    """What failed."""

    formula_parse_error: bool
    invalid_variable_error: bool
    model_grader_parse_error: bool
    model_grader_refusal_error: bool
    model_grader_server_error: bool
    model_grader_server_error_details: str | None
    other_error: bool
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool


class GraderMetadataObject(TypedDict):
    """How the grade came about."""

    errors: GraderErrorsObject
    execution_time: float
    name: str
    sampled_model_name: str | None
    scores: Mapping[str, Any]
    token_usage: int | None
    type: str


class GraderRunObject(TypedDict):
    """The grade of one answer, and of each part of the grader."""

    metadata: GraderMetadataObject
    model_grader_token_usage_per_model: Mapping[str, Any]
    reward: float
    sub_rewards: Mapping[str, Any]


class GraderObject(TypedDict):
    """A grader as a job would take it."""

    grader: Mapping[str, Any]
