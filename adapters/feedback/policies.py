"""What is logged, for how long, and of which share of it users are asked for feedback.

There is a default, and there are policies for single adapters (or the base) and keys. An interaction is logged if
every policy that applies allows it: its adapter's and its key's. Without one, the default applies. It is stored for the
shorter of their retentions; where neither sets one, for the default. Of their shares to ask about, the smaller one
holds; where neither sets one, nobody is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    and_,
    delete,
    insert,
    select,
)

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest, NotFound
from graftwork.adapters.storage.cache import DatabaseCache
from graftwork.adapters.storage.database import Database, UtcDateTime, schema

PolicyScope = Literal["adapter", "key"]

MAX_RETENTION_DAYS = 36_500


@dataclass(frozen=True, kw_only=True)
class LogPolicy:
    """The policy of one ``subject``: an adapter's name or the base's id, or a key's id.

    ``retention_days`` is ``None`` where the default applies. ``ask_feedback`` is the share, 0 to 1, of its answers
    whose users are asked for feedback; ``None`` where it does not say.
    """

    scope: PolicyScope
    subject: str
    log: bool
    retention_days: float | None
    ask_feedback: float | None = None
    actor: str
    updated_at: datetime


class _LogPolicyColumns(TypedColumns):
    scope: Named[str] = Column(Text, primary_key=True)
    subject: Named[str] = Column(Text, primary_key=True)
    log: Named[bool] = Column(Boolean)
    retention_days: Named[float | None] = Column(Double)
    ask_feedback: Named[float | None] = Column(Double)
    actor: Named[str] = Column(Text)
    updated_at = Column(UtcDateTime, nullable=False)


_policies = Table("log_policies", schema, _LogPolicyColumns)


class LogPolicies:
    """The policies of one database.

    Args:
        database: Where they are stored.
        log: Whether interactions are logged where no policy applies.
        retention_days: How long they are stored where no policy says; ``None`` is for good.
        draw: A new random number from 0 to below 1. It knows of no answer: whose user is asked is chance alone.
    """

    def __init__(
        self,
        database: Database,
        *,
        log: bool = True,
        retention_days: float | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.log = log
        self.retention_days = retention_days
        self._database = database
        self._draw = draw
        self._by_subject: DatabaseCache[dict[tuple[str, str], LogPolicy]] = DatabaseCache(
            database, "log_policies", {}, lambda old: {(policy.scope, policy.subject): policy for policy in self.all()}
        )

    def all(self) -> tuple[LogPolicy, ...]:
        """All policies, by scope and subject."""
        with self._database.read() as connection:
            rows = connection.execute(select(_policies).order_by(_policies.c.scope, _policies.c.subject)).all()
        return tuple(_policy(row) for row in rows)

    def set(
        self,
        scope: PolicyScope,
        subject: str,
        *,
        log: bool,
        retention_days: float | None = None,
        ask_feedback: float | None = None,
        actor: str,
    ) -> LogPolicy:
        """Set the policy of a subject. A shorter retention also applies to rows that are there.

        Raises:
            InvalidRequest: ``retention_days`` or ``ask_feedback`` is out of range, or asks about what is not logged.
        """
        if retention_days is not None and not 0 < retention_days <= MAX_RETENTION_DAYS:
            raise InvalidRequest(
                f"retention_days is {retention_days}: use more than 0 and at most {MAX_RETENTION_DAYS}, "
                "or leave it out for the server's default",
                param="retention_days",
            )
        if ask_feedback is not None and not 0 <= ask_feedback <= 1:
            raise InvalidRequest(
                f"ask_feedback is {ask_feedback}: use the share of the answers to ask about, 0 (none) to 1 (all), or "
                "leave it out",
                param="ask_feedback",
            )
        if ask_feedback and not log:
            raise InvalidRequest(
                "ask_feedback marks answers that are logged, and log is false: let them be logged, or leave it out",
                param="ask_feedback",
            )
        policy = LogPolicy(
            scope=scope,
            subject=subject,
            log=log,
            retention_days=retention_days,
            ask_feedback=ask_feedback,
            actor=actor,
            updated_at=datetime.now(UTC),
        )
        with self._database.write() as connection:
            connection.execute(delete(_policies).where(_is(scope, subject)))
            connection.execute(insert(_policies).values(vars(policy)))
        return policy

    def remove(self, scope: PolicyScope, subject: str) -> LogPolicy:
        """Remove the policy of a subject: the default applies again.

        Raises:
            NotFound: It has none.
        """
        with self._database.write() as connection:
            row = connection.execute(select(_policies).where(_is(scope, subject))).one_or_none()
            connection.execute(delete(_policies).where(_is(scope, subject)))
        if row is None:
            raise NotFound(
                f"the {scope} {names.quoted(subject)} has no policy of its own: the list of policies shows which have",
                param="subject",
                code="policy_not_found",
            )
        return _policy(row)

    def is_logged(self, *, adapter: str, key_id: str) -> bool:
        """Whether requests of this key to this adapter, or to the base by its id, are logged.

        Answers from memory while no policy has changed, else reads: not for the event loop.
        """
        policies = self._by_subject.get()
        applying = [
            policy.log for policy in (policies.get(("adapter", adapter)), policies.get(("key", key_id))) if policy
        ]
        return all(applying) if applying else self.log

    def draws_feedback(self, *, adapter: str, key_id: str) -> bool:
        """Draw whether the user of one answer is asked for feedback on it: a random share of the answers, by policy."""
        policies = self._by_subject.get()
        applying = (policies.get(("adapter", adapter)), policies.get(("key", key_id)))
        shares = [policy.ask_feedback for policy in applying if policy and policy.ask_feedback is not None]
        share = min(shares, default=0.0)
        return share > 0 and self._draw() < share

    def may_ask(self, adapter: str) -> bool:
        """Whether ``draws_feedback`` can be true for answers of this adapter, or of the base by its id."""
        policies = self._by_subject.get()
        own = policies.get(("adapter", adapter))
        if own is not None and own.ask_feedback is not None:
            return own.ask_feedback > 0
        return any(scope == "key" and policy.ask_feedback for (scope, _), policy in policies.items())


def _is(scope: PolicyScope, subject: str) -> Any:
    return and_(_policies.c.scope == scope, _policies.c.subject == subject)


def _policy(row: Row[*tuple[Any, ...]]) -> LogPolicy:
    return LogPolicy(
        scope=row.scope,
        subject=row.subject,
        log=row.log,
        retention_days=row.retention_days,
        ask_feedback=row.ask_feedback,
        actor=row.actor,
        updated_at=row.updated_at,
    )
