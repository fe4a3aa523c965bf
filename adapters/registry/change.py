"""Changes to one adapter in one transaction, and the events that record them."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from sqlalchemy import ColumnElement, Connection, Table, func, insert, select, update

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import LIVE, is_trial
from graftwork.adapters.registry.records import AliasAction, AliasEvent, Version
from graftwork.adapters.registry.tables import (
    adapters_table,
    alias_events_table,
    aliases_table,
    event_of,
    version_of,
    versions_table,
)
from graftwork.adapters.registry.wording import unknown_version_message


class RegistryGuard(Protocol):
    """May refuse a change to the registry. Called in the change's transaction."""

    def check_move(self, connection: Connection, name: str, alias: str) -> None:
        """Check whether an alias may move.

        Raises:
            Conflict: It may not.
        """

    def check_retirement(self, connection: Connection, name: str, number: int) -> None:
        """Check whether a version may be retired.

        Raises:
            Conflict: It may not.
        """


class Change:
    """One transaction's changes to one adapter. Each becomes an event, all with the same time, actor and reason.

    Args:
        connection: In a write transaction.
        name: The adapter's.
        actor: For the events.
        reason: For the events.
        guard: May refuse moves and retirements.
    """

    def __init__(
        self, connection: Connection, name: str, actor: str, reason: str | None, guard: RegistryGuard | None = None
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._name = name
        self._actor = actor
        self._reason = reason
        # A clock that was set back must not order this before earlier events: ``at`` goes by times, ``stack`` by ids.
        last = connection.scalar(select(alias_events_table.c.at).order_by(alias_events_table.c.id.desc()).limit(1))
        now = datetime.now(UTC)
        self._at = max(now, last) if last else now

    def last_number(self) -> int:
        """The number of the newest version; 0 without any."""
        return self._connection.scalar(select(func.max(versions_table.c.number)).where(self._mine(versions_table))) or 0

    def version(self, number: int) -> Version | None:
        """A version by number, if there is one; also a retired one."""
        # Checked first: a number too large for the database's integers is an error in the driver.
        return self.version_where(versions_table.c.number == number) if 1 <= number <= self.last_number() else None

    def version_where(self, condition: ColumnElement[bool]) -> Version | None:
        """The one version that a condition on ``versions_table`` selects, if there is one."""
        row = self._connection.execute(
            select(versions_table).where(self._mine(versions_table), condition)
        ).one_or_none()
        return version_of(row) if row else None

    def retired(self) -> set[int]:
        """The numbers of retired versions."""
        query = select(versions_table.c.number).where(
            self._mine(versions_table), versions_table.c.retired_at.is_not(None)
        )
        return set(self._connection.scalars(query))

    def aliases(self) -> dict[str, int]:
        """The version number of every alias."""
        query = (
            select(aliases_table.c.alias, aliases_table.c.number)
            .where(self._mine(aliases_table))
            .order_by(aliases_table.c.alias)
        )
        return {row.alias: row.number for row in self._connection.execute(query)}

    def stack(self, alias: str) -> list[int]:
        """The versions that rollbacks can return to, the current one last; empty if there is no such alias."""
        moves = (
            select(alias_events_table.c.action, alias_events_table.c.to_version)
            .where(self._mine(alias_events_table), alias_events_table.c.alias == alias)
            .order_by(alias_events_table.c.id)
        )
        stack: list[int] = []
        for row in self._connection.execute(moves):
            if row.action == "promote":
                stack.append(row.to_version)
            else:
                # Versions in between were skipped, being retired.
                stack.pop()
                while stack[-1] != row.to_version:
                    stack.pop()
        return stack

    def add(self, version: Version) -> Version:
        """Add a version under the next number; the first one of a name becomes live.

        Raises:
            InvalidRequest: There is no version ``parent``.
        """
        last = self.last_number()
        if version.parent is not None and not 1 <= version.parent <= last:
            raise InvalidRequest(
                f"parent: {unknown_version_message(self._name, version.parent, last)}",
                param="parent",
                code="version_not_found",
            )
        version = replace(version, number=last + 1, created_at=self._at)
        if last == 0:
            self._connection.execute(insert(adapters_table).values(name=self._name, created_at=self._at))
        self._connection.execute(insert(versions_table).values(asdict(version)))
        self._record("push", to_version=version.number)
        if last == 0 and not is_trial(self._name):
            self.move("promote", LIVE, version.number)
        return version

    def move(self, action: Literal["promote", "rollback"], alias: str, number: int) -> AliasEvent:
        """Point an alias to a version.

        Returns:
            The event; the last one if the alias points there already.

        Raises:
            Conflict: The guard refuses.
        """
        current = self.aliases().get(alias)
        if current == number:
            last_move = (
                select(alias_events_table)
                .where(self._mine(alias_events_table), alias_events_table.c.alias == alias)
                .order_by(alias_events_table.c.id.desc())
                .limit(1)
            )
            return event_of(self._connection.execute(last_move).one())
        if self._guard is not None:
            self._guard.check_move(self._connection, self._name, alias)
        if current is None:
            self._connection.execute(insert(aliases_table).values(name=self._name, alias=alias, number=number))
        else:
            this = self._mine(aliases_table), aliases_table.c.alias == alias
            self._connection.execute(update(aliases_table).where(*this).values(number=number))
        return self._record(action, alias=alias, from_version=current, to_version=number)

    def retire(self, version: Version) -> Version:
        """Retire a version.

        Raises:
            Conflict: The guard refuses.
        """
        if self._guard is not None:
            self._guard.check_retirement(self._connection, self._name, version.number)
        this = self._mine(versions_table), versions_table.c.number == version.number
        self._connection.execute(update(versions_table).where(*this).values(retired_at=self._at))
        self._record("retire", from_version=version.number)
        return replace(version, retired_at=self._at)

    def _record(
        self,
        action: AliasAction,
        *,
        alias: str | None = None,
        from_version: int | None = None,
        to_version: int | None = None,
    ) -> AliasEvent:
        event = AliasEvent(
            id=0,
            at=self._at,
            action=action,
            name=self._name,
            alias=alias,
            from_version=from_version,
            to_version=to_version,
            actor=self._actor,
            reason=self._reason,
        )
        values = asdict(event)
        del values["id"]  # assigned by the database
        event_id = self._connection.execute(
            insert(alias_events_table).values(values).returning(alias_events_table.c.id)
        ).scalar_one()
        return replace(event, id=event_id)

    def _mine(self, table: Table[Any]) -> ColumnElement[bool]:
        mine: ColumnElement[bool] = table.c.name == self._name
        return mine
