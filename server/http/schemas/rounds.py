"""The JSON of answers: rounds of learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from graftwork.adapters.learning.rounds.round import RoundState


class RoundGatesObject(TypedDict):
    """What the gates said of a candidate: ``refusals`` and ``doubts`` say why."""

    outcome: Literal["pass", "refuse", "inconclusive"]
    refusals: Sequence[str]
    doubts: Sequence[str]


class RoundDecisionObject(TypedDict):
    """What was decided about a candidate. ``replaced`` is the version that was live before it."""

    by: str
    at: float
    reason: str | None
    replaced: str | None


class RoundObject(TypedDict):
    """A round of learning. ``control``: it begins with the base; otherwise it ``continues`` a version. ``judgements``
    are the new ones that it began with, by kind; ``gates`` null: the candidate was not held against gates (yet).
    """

    object: Literal["round"]
    id: str
    adapter: str
    number: int
    state: RoundState
    reason: str | None
    control: bool
    continues: str | None
    live: str
    judgements: Mapping[str, int]
    policy: Mapping[str, Any]
    job: str
    data_digest: str | None
    rows: Mapping[str, int] | None
    candidate: str | None
    gates: RoundGatesObject | None
    experiment: str | None
    decision: RoundDecisionObject | None
    created_by: str
    created_at: float
    updated_at: float
    ended_at: float | None


class RoundPlanObject(TypedDict):
    """What the next round of an adapter would be: nothing was begun. ``waits_for`` null: it is ``due``."""

    object: Literal["round.plan"]
    adapter: str
    number: int
    control: bool
    continues: str | None
    live: str
    judgements: Mapping[str, int]
    due: bool
    waits_for: str | None
    policy: Mapping[str, Any]
