"""Which users and prompts versions were trained on: their answers to these are no evidence of quality.

A version was trained on its own data set and on those of the versions that it continues. Users are identified by the
keyed hash in the ids of their answers, prompts by their exact text. A prompt is learned by heart, for good. Users are
left out for some time only: of a closed group, whom every version learns from, there would never be any evidence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from graftwork.adapters.errors import NotFound
from graftwork.adapters.feedback.feedback import FeedbackLog
from graftwork.adapters.feedback.interactions import Interactions, prompt_as_sent
from graftwork.adapters.feedback.lineage import Lineage, continued_version, interaction_hash
from graftwork.adapters.names import split_model
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database


@dataclass(frozen=True)
class TrainedOn:
    """What some versions were trained on.

    Attributes:
        units: Users and sessions, each with the time of the latest of its answers that was learned from.
        prompts: By ``prompt_hash``.
    """

    units: Mapping[str, datetime] = field(default_factory=dict)
    prompts: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.units or self.prompts)


def learned_from(
    registry: Registry,
    versions: Iterable[str],
    *,
    database: Database,
    interactions: Interactions,
    feedback: FeedbackLog,
) -> TrainedOn:
    """What these versions, by id, and all versions that they continue were trained on.

    Reads the whole log unless there is nothing: not for use while a request waits.
    """
    hashes = Lineage(database).hashes(_data_digests(registry, versions))
    if not hashes:
        return TrainedOn()
    units: dict[str, datetime] = {}
    prompts: set[str] = set()

    def add(unit: str | None, answered_at: datetime) -> None:
        if unit is not None:
            units[unit] = max(answered_at, units.get(unit, answered_at))

    for interaction in interactions.each():
        if interaction_hash(interaction.id) in hashes:
            add(interaction.unit, interaction.created_at)
            prompts.add(prompt_hash(interaction.prompt))
    # Interactions that were erased or never logged still have feedback with their unit.
    for row in feedback.each():
        if interaction_hash(row.interaction_id) in hashes:
            add(row.unit, row.interaction_at)
    return TrainedOn(units, frozenset(prompts))


def prompt_hash(prompt: Mapping[str, Any]) -> str:
    """A hash of an interaction's ``prompt``, the same in every arm."""
    text = json.dumps(prompt_as_sent(prompt), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _data_digests(registry: Registry, versions: Iterable[str]) -> set[str]:
    digests: set[str] = set()
    seen: set[str] = set()
    ahead = list(versions)
    while ahead:
        id = ahead.pop()
        if id in seen:
            continue
        seen.add(id)
        name, number = split_model(id)
        try:
            version = registry.version(name, int(number))
        except (NotFound, ValueError):
            continue  # a pushed folder's metadata may hold anything
        if version.data_digest is not None:
            digests.add(version.data_digest)
        if (older := continued_version(version)) is not None:
            ahead.append(older)
    return digests
