"""Learning policies: when adapters are trained by themselves, and the rounds of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict


class LearningRoundObject(TypedDict):
    """One round: its job and its result. ``control``: it began with the base; otherwise it ``continues`` a version.
    ``gates`` null, as ``gates_passed``: it was not evaluated against gates.
    """

    number: int
    job: str
    control: bool
    continues: str | None
    status: str
    submitted_at: float
    finished_at: float | None
    version: str | None
    gates: Literal["pass", "refuse", "inconclusive"] | None
    gates_passed: bool | None
    refusals: Sequence[str]
    doubts: Sequence[str]
    error: str | None


class LearningPolicyObject(TypedDict):
    """A round begins ``after`` so many new judgements, or ``every_days`` with ``at_least`` so many; null is off."""

    object: Literal["learning_policy"]
    adapter: str
    after: int | None
    every_days: float | None
    at_least: int
    control_every: int | None
    method: str
    hyperparameters: Mapping[str, Any]
    actor: str
    created_at: float
    updated_at: float
    judgements: int
    due: bool
    waits_for: str | None
    rounds: int
    next_is_control: bool
    last_round: LearningRoundObject | None
