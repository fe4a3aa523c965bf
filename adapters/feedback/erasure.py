"""Erasure: a user's rows when an operator asks for it, and every row when its retention is over.

Interactions are deleted. Feedback is append-only: its text goes (corrections, comments, metadata, who gave it), and
what identifies nobody stays, thumbs, scores and preferences, so that an experiment counts the same afterwards. Which
versions learned from erased rows stays on record (``lineage``) and is part of the result. Text also stands in files, in
data sets and the folders of jobs: what is to go from there is recorded in the same transaction, as `PendingErasure`,
until the training worker has erased it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, func, not_, or_, select, update

from graftwork.adapters.feedback.feedback import ERASED_VALUES, feedback_table
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import interactions_table
from graftwork.adapters.feedback.lineage import Lineage, versions_trained_on
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage import settings
from graftwork.adapters.storage.database import Database

_PENDING = "erasure-"
_AT_ONCE = 500
"""Rows that one transaction takes: the one writer's place is free again in between."""


@dataclass(frozen=True, kw_only=True)
class ErasureResult:
    """What was erased. ``learned_from`` are the versions trained on any of it; ``continued`` those that were not, but
    continue one that was."""

    num_interactions: int
    num_feedback: int
    learned_from: tuple[str, ...] = ()
    continued: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PendingErasure:
    """Answers whose text has yet to be erased from files: of a user who was erased, or who gave feedback on them."""

    name: str
    answers: frozenset[str]


class Erasure:
    """Over one database. ``base_id`` is what policies call the bare base."""

    def __init__(self, database: Database, ids: InteractionIds, registry: Registry, *, base_id: str) -> None:
        self._database = database
        self._ids = ids
        self._registry = registry
        self._lineage = Lineage(database)
        self._base_id = base_id

    def erase_user(self, user: str) -> ErasureResult:
        """Erase what requests and feedback that named this user left behind; in one transaction, all of it or nothing.

        Feedback is found by its own ``user``, by its interaction, and by the id of the answer, which carries a keyed
        hash of the user who asked: also when the interaction was never logged.
        """
        logged = interactions_table.c.end_user == user
        about_user = or_(
            feedback_table.c.end_user == user,
            feedback_table.c.unit == self._ids.unit(user=user),
            feedback_table.c.interaction_id.in_(select(interactions_table.c.id).where(logged)),
        )
        with self._database.write() as connection:
            answers = {
                *connection.scalars(select(interactions_table.c.id).where(logged)),
                *connection.scalars(select(feedback_table.c.interaction_id).where(about_user).distinct()),
            }
            erasing = (
                update(feedback_table)
                .where(about_user, _has_words())
                .values(**ERASED_VALUES, erased_at=datetime.now(UTC))
            )
            num_feedback = connection.execute(erasing).rowcount
            num_interactions = connection.execute(delete(interactions_table).where(logged)).rowcount
            if answers:
                settings.put(connection, f"{_PENDING}{secrets.token_hex(8)}", json.dumps(sorted(answers)))
        learned, continued = versions_trained_on(self._registry, self._lineage.data_digests(answers))
        return ErasureResult(
            num_interactions=num_interactions,
            num_feedback=num_feedback,
            learned_from=tuple(version.id for version in learned),
            continued=tuple(version.id for version in continued),
        )

    def expire(self, policies: LogPolicies, *, now: datetime | None = None) -> ErasureResult:
        """Forget what is older than the policies that are about it, or else the default, let it become."""
        now = now or datetime.now(UTC)
        aged = _aged(policies, now)
        rows = aged(
            interactions_table,
            interactions_table.c.created_at,
            func.coalesce(interactions_table.c.adapter, interactions_table.c.base),
        )
        words = aged(feedback_table, feedback_table.c.at, func.coalesce(feedback_table.c.adapter, self._base_id))
        old_rows = select(interactions_table.c.id).where(rows).limit(_AT_ONCE)
        old_words = select(feedback_table.c.id).where(words, _has_words()).limit(_AT_ONCE)
        return ErasureResult(
            num_interactions=self._in_parts(
                lambda ids: delete(interactions_table).where(interactions_table.c.id.in_(ids)), old_rows
            ),
            num_feedback=self._in_parts(
                lambda ids: (
                    update(feedback_table).where(feedback_table.c.id.in_(ids)).values(**ERASED_VALUES, erased_at=now)
                ),
                old_words,
            ),
        )

    def _in_parts(self, change: Callable[[Sequence[Any]], Any], those: Any) -> int:
        total = 0
        while True:
            # Looked for by a reader, so that a look that finds nothing, which most do, takes nobody's place.
            with self._database.read() as connection:
                ids = connection.scalars(those).all()
            if ids:
                with self._database.write() as connection:
                    total += connection.execute(change(ids)).rowcount
            if len(ids) < _AT_ONCE:
                return total


def pending_erasures(database: Database) -> list[PendingErasure]:
    """What files have yet to forget, the oldest first."""
    pending = settings.find_by_prefix(database, _PENDING)
    return [PendingErasure(name=name, answers=frozenset(json.loads(answers))) for name, answers in pending.items()]


def finish_erasure(database: Database, what: PendingErasure) -> None:
    """The files have forgotten it."""
    settings.remove(database, what.name)


def _has_words() -> ColumnElement[bool]:
    return or_(*[feedback_table.c[name].is_not(None) for name in ERASED_VALUES])


def _aged(
    policies: LogPolicies, now: datetime
) -> Callable[[Table, ColumnElement[Any], ColumnElement[Any]], ColumnElement[bool]]:
    """A function from a table, its time and its answerer's name to the condition that a row's time is over."""
    limited = [(policy, policy.retention_days) for policy in policies.all() if policy.retention_days is not None]

    def aged(table: Table, at: ColumnElement[Any], name: ColumnElement[Any]) -> ColumnElement[bool]:
        subject = {"adapter": name, "key": table.c.key_id}
        theirs = [(subject[policy.scope] == policy.subject, days) for policy, days in limited]
        over = [and_(about, at < now - timedelta(days=days)) for about, days in theirs]
        if policies.retention_days is not None:
            nobodys = [not_(about) for about, _ in theirs]
            over.append(and_(at < now - timedelta(days=policies.retention_days), *nobodys))
        return _any(over)

    return aged


def _any(conditions: Iterable[ColumnElement[bool]]) -> ColumnElement[bool]:
    return or_(False, *conditions)
