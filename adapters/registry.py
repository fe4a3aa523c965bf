"""Which versions of which adapters exist, what their aliases point at, and what happened to them when.

A version is immutable: a number of its adapter, identified by the digest of its files. An alias is a movable name for
a version. Every change is an event, written in the same transaction as the change and never altered.

`Registry.resolve` runs for every request. It answers from memory; only when the database says that something was
committed does it ask whether that was an event, and then reads the adapters which the new events name.

Knows nothing of files, of the base beyond its id and digest, nor of what is loaded where.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain, groupby, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Named,
    Row,
    Table,
    Text,
    TypedColumns,
    func,
    insert,
    select,
    update,
)

from graftwork.adapters import names
from graftwork.adapters.db import Database, Page, UtcDateTime, check_limit, schema
from graftwork.adapters.errors import Conflict, InvalidAdapter, InvalidRequest, NotFound
from graftwork.adapters.names import LIVE, is_trial
from graftwork.adapters.remembered import Remembered

if TYPE_CHECKING:
    from graftwork.adapters.base import BaseInfo
    from graftwork.adapters.peft_format import AdapterSpec

MAX_METADATA_BYTES = 64 * 1024

Action = Literal["push", "promote", "rollback", "retire"]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One pushed adapter folder. ``verified``: its config named the base; otherwise only the shapes fit."""

    name: str
    number: int
    digest: str
    base_digest: str
    verified: bool
    rank: int
    num_parameters: int
    num_bytes: int
    config: dict[str, Any]
    parent: int | None
    data_digest: str | None
    metadata: dict[str, Any]
    created_at: datetime
    retired_at: datetime | None = None

    @property
    def id(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, kw_only=True)
class AliasEvent:
    """One line of an adapter's history. ``alias`` is None where no alias moved: a push, a retirement."""

    id: int
    at: datetime
    action: Action
    name: str
    alias: str | None
    from_version: int | None
    to_version: int | None
    actor: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter with everything that it has; ``aliases`` maps to version numbers, ``versions`` is in their order."""

    name: str
    created_at: datetime
    aliases: Mapping[str, int]
    versions: tuple[Version, ...]


class _AdapterColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    created_at = Column(UtcDateTime, nullable=False)


class _VersionColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    number: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    digest: Named[str] = Column(Text)
    base_digest: Named[str] = Column(Text)
    verified: Named[bool] = Column(Boolean)
    rank: Named[int] = Column(Integer)
    num_parameters: Named[int] = Column(BigInteger)
    num_bytes: Named[int] = Column(BigInteger)
    config = Column(JSON, nullable=False)
    parent: Named[int | None] = Column(Integer)
    data_digest: Named[str | None] = Column(Text)
    metadata = Column(JSON, nullable=False)
    created_at = Column(UtcDateTime, nullable=False)
    retired_at = Column(UtcDateTime, nullable=True)


class _AliasColumns(TypedColumns):
    name: Named[str] = Column(Text, primary_key=True)
    alias: Named[str] = Column(Text, primary_key=True)
    number: Named[int] = Column(Integer)


class _EventColumns(TypedColumns):
    id: Named[int] = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at = Column(UtcDateTime, nullable=False)
    action: Named[str] = Column(Text)
    name: Named[str] = Column(Text)
    alias: Named[str | None] = Column(Text)
    from_version: Named[int | None] = Column(Integer)
    to_version: Named[int | None] = Column(Integer)
    actor: Named[str] = Column(Text)
    reason: Named[str | None] = Column(Text)


_adapters = Table("adapters", schema, _AdapterColumns)
_versions = Table("versions", schema, _VersionColumns)
_aliases = Table("aliases", schema, _AliasColumns)
_events = Table("alias_events", schema, _EventColumns)


@dataclass(frozen=True)
class _Entry:
    """An adapter as requests see it: ``served`` maps what may follow the @ to the version that answers."""

    adapter: Adapter
    served: Mapping[str, Version]


@dataclass(frozen=True)
class _Snapshot:
    """The registry at one moment. Replaced as a whole, so that no reader meets half a change."""

    last_event: int
    entries: Mapping[str, _Entry]  # sorted by name
    trials: Mapping[str, _Entry]  # beside them: nobody is shown what is only tried


class Guard(Protocol):
    """Who else must agree to a change. Asked inside the change's transaction; refuses by raising Conflict."""

    def check_move(self, connection: Connection, name: str, alias: str) -> None: ...
    def check_retirement(self, connection: Connection, name: str, number: int) -> None: ...


class Registry:
    """The adapters of one database; any number of threads and processes may have one each."""

    def __init__(self, database: Database, *, guard: Guard | None = None) -> None:
        self._database = database
        self._guard = guard
        self._snapshot = Remembered(database, _Snapshot(last_event=0, entries={}, trials={}), self._refreshed)

    # What requests ask

    def resolve(self, model: str) -> Version:
        """The version that answers for ``model``: ``intents`` (live), ``intents@7`` or ``intents@candidate``.

        NotFound, with the code ``model_not_found``, says what there is instead.
        """
        name, selector = names.split(model)
        now = self._snapshot.now()
        entry = now.entries.get(name) or now.trials.get(name)
        version = entry.served.get(selector) if entry else None
        if version is None:
            raise NotFound(_why_not(model, now.entries), param="model", code="model_not_found")
        return version

    def adapter(self, name: str) -> Adapter:
        entries = self._snapshot.now().entries
        if name not in entries:
            raise NotFound(_no_adapter(name, entries), param="name", code="adapter_not_found")
        return entries[name].adapter

    def trials(self) -> list[Version]:
        """What is being tried, or was when whoever tried it was killed: versions under such names (`names.is_trial`)
        that are not retired."""
        versions = (version for entry in self._snapshot.now().trials.values() for version in entry.adapter.versions)
        return [version for version in versions if version.retired_at is None]

    def adapters(self, *, after: str | None = None, limit: int = 20) -> Page[Adapter]:
        """Adapters by name: the first ``limit`` (1 to 100) of those that come after the name ``after``."""
        check_limit(limit)
        entries = self._snapshot.now().entries
        following = (entry.adapter for name, entry in entries.items() if after is None or name > after)
        return Page.of(list(islice(following, limit + 1)), limit)

    def with_digest(self, digest: str) -> list[Version]:
        """The versions, of any name, whose files have this digest; also retired ones."""
        now = self._snapshot.now()
        entries = chain(now.entries.values(), now.trials.values())
        versions = (version for entry in entries for version in entry.adapter.versions)
        return [version for version in versions if version.digest == digest]

    def version(self, name: str, number: int) -> Version:
        """Also a retired one."""
        trial = self._snapshot.now().trials.get(name)
        versions = (trial.adapter if trial else self.adapter(name)).versions
        # Numbers run from 1 without gaps, and rows are never deleted.
        if not 1 <= number <= len(versions):
            raise NotFound(_no_version(name, number, len(versions)), param="version", code="version_not_found")
        return versions[number - 1]

    # What operators do

    def add_version(
        self,
        name: str,
        spec: AdapterSpec,
        *,
        base: BaseInfo,
        alias: str | None,
        parent: int | None = None,
        data_digest: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        actor: str = "system",
    ) -> tuple[Version, bool]:
        """Register an adapter whose files are published, and say whether that made a version.

        The same bytes under the same name are the version they were before: (it, False), and what else is said of
        them this time is not recorded. Either way ``alias`` then points at it; a first version is live as well.
        What is tried (`names.is_trial`) has no alias.

        Conflict: these bytes are a version that was retired (which is for good: what somebody took out of service must
        not come back because a pipeline ran again), or one that was registered for another base.
        """
        if not is_trial(name):
            names.check_name(name, base_id=base.id)
        elif alias is not None:
            raise InvalidRequest("what is tried has no alias: leave it away", param="alias")
        if alias is not None:
            names.check_alias(alias)
        if data_digest is not None:
            names.check_text(data_digest, param="data_digest", max_chars=200)
        if spec.base_digest is not None and spec.base_digest != base.digest:
            raise InvalidAdapter(
                f"the adapter was trained on the base {spec.base_digest}, and this server runs {base.id}, "
                f"{base.digest}: push it to a server with its own base, or train it again on this one",
                param="base_digest",
            )
        new = Version(
            name=name,
            number=1,
            digest=spec.digest,
            base_digest=base.digest,
            verified=spec.base_digest is not None,
            rank=spec.rank,
            num_parameters=spec.num_parameters,
            num_bytes=spec.num_bytes,
            config=_as_json(spec.config, param="adapter_config.json"),
            parent=parent,
            data_digest=data_digest,
            metadata=_as_json(metadata or {}, param="metadata", max_bytes=MAX_METADATA_BYTES),
            created_at=datetime.now(UTC),
        )
        with self._change(name, actor) as change:
            known = change.version_where(_versions.c.digest == spec.digest)
            if known is not None:
                _refuse_retired(known, "push a changed adapter")
                if known.base_digest != base.digest:
                    raise Conflict(
                        f"these bytes are {known.id}, which was registered for the base {known.base_digest}, and this "
                        f"server runs {base.id}, {base.digest}: push them under another name"
                    )
            version = known or change.add(new)
            if alias is not None:
                change.move("promote", alias, version.number)
        return version, known is None

    def set_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        actor: str,
        reason: str | None = None,
        within: Connection | None = None,
    ) -> AliasEvent:
        """Point ``alias`` at a version. If it does already nothing happens, and the event that did it is returned.

        ``within`` makes it part of a write of the caller's, who then need not ask the guard.
        InvalidRequest: there is no such version. Conflict: it was retired, or the guard refuses.
        """
        self.adapter(name)
        names.check_alias(alias)
        with self._change(name, actor, reason, within) as change:
            version = change.version(number)
            if version is None:
                raise InvalidRequest(
                    _no_version(name, number, change.last_number()), param="version", code="version_not_found"
                )
            _refuse_retired(version, "choose another version")
            return change.move("promote", alias, number)

    def rollback(
        self,
        name: str,
        *,
        alias: str = LIVE,
        actor: str,
        reason: str | None = None,
        within: Connection | None = None,
    ) -> AliasEvent:
        """Point ``alias`` at the version it pointed to before; done again, at the one before that.

        The alias's past is a stack: a promotion puts a version on it, a rollback takes off what it leaves. So rolling
        back twice never leads forward again, and after 1, 2, a rollback, and 3, the way back is 1. Versions that were
        retired since are passed over. Conflict: there is nothing left to go back to.
        """
        self.adapter(name)
        names.check_alias(alias)
        with self._change(name, actor, reason, within) as change:
            stack = change.stack(alias)
            if not stack:
                raise InvalidRequest(
                    f"{name!r} has no alias {alias!r}: it has {_listed(change.aliases())}",
                    param="alias",
                    code="alias_not_found",
                )
            current = stack.pop()
            retired = change.retired() & set(stack)
            before = next((number for number in reversed(stack) if number not in {current, *retired}), None)
            if before is None:
                passed = f" (retired: {', '.join(map(str, sorted(retired)))})" if retired else ""
                raise Conflict(
                    f"{name}@{alias} is version {current}, with none before it to go back to{passed}: "
                    "promote the version you want"
                )
            return change.move("rollback", alias, before)

    def retire(self, name: str, number: int, *, actor: str, reason: str | None = None) -> Version:
        """Take a version out of service for good; its row and its history stay. Retiring twice changes nothing.

        Conflict: an alias points at it.
        """
        self.version(name, number)
        with self._change(name, actor, reason) as change:
            version = change.version(number)
            assert version is not None  # no version is ever deleted
            pointing = [alias for alias, target in change.aliases().items() if target == number]
            if pointing:
                raise Conflict(
                    f"{version.id} is still pointed at by {', '.join(pointing)}: promote another version there first"
                )
            return version if version.retired_at is not None else change.retire(version)

    # What happened

    def history(self, name: str, *, after: int | None = None, limit: int = 20) -> Page[AliasEvent]:
        """An adapter's events, newest first: the first ``limit`` (1 to 100) of those older than the event ``after``."""
        check_limit(limit)
        self.adapter(name)
        query = select(_events).where(_events.c.name == name).order_by(_events.c.id.desc()).limit(limit + 1)
        # A cursor beyond any id, and any integer of the database's, is the newest end.
        if after is not None and after < 2**63:
            query = query.where(_events.c.id < after)
        with self._database.read() as connection:
            return Page.of([_event(row) for row in connection.execute(query)], limit)

    def at(self, name: str, alias: str, when: datetime) -> Version:
        """The version that ``name@alias`` meant at ``when`` (with a time zone), whatever became of it since."""
        if when.tzinfo is None:
            raise InvalidRequest(f"{when.isoformat()} has no time zone: add one, or Z for UTC", param="when")
        names.check_alias(alias)
        self.adapter(name)
        query = (
            select(_events.c.to_version)
            .where(_events.c.name == name, _events.c.alias == alias, _events.c.at <= when)
            .order_by(_events.c.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            number = connection.scalar(query)
        if number is None:
            raise NotFound(
                f"{name}@{alias} pointed at nothing on {when.isoformat()}: its history says since when it does",
                param="alias",
                code="alias_not_found",
            )
        return self.version(name, number)

    @contextmanager
    def _change(
        self, name: str, actor: str, reason: str | None = None, within: Connection | None = None
    ) -> Iterator[_Change]:
        names.check_text(actor, param="actor", max_chars=200)
        if reason is not None:
            names.check_text(reason, param="reason", max_chars=2000)
        if within is not None:
            yield _Change(within, name, actor, reason)
            return
        with self._database.write() as connection:
            yield _Change(connection, name, actor, reason, self._guard)

    def _refreshed(self, old: _Snapshot) -> _Snapshot:
        """``old`` brought up to date. Most commits are not the registry's: those cost a look at the newest event."""
        with self._database.read() as connection:
            last_event = connection.scalar(select(func.max(_events.c.id))) or 0
            if last_event == old.last_event:
                return old
            changed = _entries(connection, since_event=old.last_event)
        trials = {**old.trials, **{name: entry for name, entry in changed.items() if is_trial(name)}}
        entries = dict(sorted({**old.entries, **{n: e for n, e in changed.items() if n not in trials}}.items()))
        return _Snapshot(last_event=last_event, entries=entries, trials=trials)


class _Change:
    """What one transaction does to one adapter. Whatever it does becomes an event, at one time, by one actor."""

    def __init__(
        self, connection: Connection, name: str, actor: str, reason: str | None, guard: Guard | None = None
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._name = name
        self._actor = actor
        self._reason = reason
        # A clock that was set back must not put this before what it follows: at() reads times, the stack reads order.
        last = connection.scalar(select(_events.c.at).order_by(_events.c.id.desc()).limit(1))
        now = datetime.now(UTC)
        self._at = max(now, last) if last else now

    def last_number(self) -> int:
        return self._connection.scalar(select(func.max(_versions.c.number)).where(self._mine(_versions))) or 0

    def version(self, number: int) -> Version | None:
        # Asked first whether it can be: a number too large for the database's integers is an error in the driver.
        return self.version_where(_versions.c.number == number) if 1 <= number <= self.last_number() else None

    def version_where(self, condition: ColumnElement[bool]) -> Version | None:
        row = self._connection.execute(select(_versions).where(self._mine(_versions), condition)).one_or_none()
        return _version(row) if row else None

    def retired(self) -> set[int]:
        query = select(_versions.c.number).where(self._mine(_versions), _versions.c.retired_at.is_not(None))
        return set(self._connection.scalars(query))

    def aliases(self) -> dict[str, int]:
        query = select(_aliases.c.alias, _aliases.c.number).where(self._mine(_aliases)).order_by(_aliases.c.alias)
        return {row.alias: row.number for row in self._connection.execute(query)}

    def stack(self, alias: str) -> list[int]:
        """The versions that rollbacks can go through, the current one last; empty if there is no such alias."""
        moves = (
            select(_events.c.action, _events.c.to_version)
            .where(self._mine(_events), _events.c.alias == alias)
            .order_by(_events.c.id)
        )
        stack: list[int] = []
        for row in self._connection.execute(moves):
            if row.action == "promote":
                stack.append(row.to_version)
            else:
                # What lies between was passed over, being retired: it could not have been this version.
                stack.pop()
                while stack[-1] != row.to_version:
                    stack.pop()
        return stack

    def add(self, version: Version) -> Version:
        """``version`` as the next number; the first one of a name is live."""
        last = self.last_number()
        if version.parent is not None and not 1 <= version.parent <= last:
            raise InvalidRequest(
                f"parent: {_no_version(self._name, version.parent, last)}",
                param="parent",
                code="version_not_found",
            )
        version = replace(version, number=last + 1, created_at=self._at)
        if last == 0:
            self._connection.execute(insert(_adapters).values(name=self._name, created_at=self._at))
        self._connection.execute(insert(_versions).values(asdict(version)))
        self._record("push", to_version=version.number)
        if last == 0 and not is_trial(self._name):
            self.move("promote", LIVE, version.number)
        return version

    def move(self, action: Literal["promote", "rollback"], alias: str, number: int) -> AliasEvent:
        current = self.aliases().get(alias)
        if current == number:
            last_move = (
                select(_events)
                .where(self._mine(_events), _events.c.alias == alias)
                .order_by(_events.c.id.desc())
                .limit(1)
            )
            return _event(self._connection.execute(last_move).one())
        if self._guard is not None:
            self._guard.check_move(self._connection, self._name, alias)
        if current is None:
            self._connection.execute(insert(_aliases).values(name=self._name, alias=alias, number=number))
        else:
            this = self._mine(_aliases), _aliases.c.alias == alias
            self._connection.execute(update(_aliases).where(*this).values(number=number))
        return self._record(action, alias=alias, from_version=current, to_version=number)

    def retire(self, version: Version) -> Version:
        if self._guard is not None:
            self._guard.check_retirement(self._connection, self._name, version.number)
        this = self._mine(_versions), _versions.c.number == version.number
        self._connection.execute(update(_versions).where(*this).values(retired_at=self._at))
        self._record("retire", from_version=version.number)
        return replace(version, retired_at=self._at)

    def _record(
        self,
        action: Action,
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
        del values["id"]  # the database's to give
        event_id = self._connection.execute(insert(_events).values(values).returning(_events.c.id)).scalar_one()
        return replace(event, id=event_id)

    def _mine(self, table: Table[Any]) -> ColumnElement[bool]:
        mine: ColumnElement[bool] = table.c.name == self._name
        return mine


def _entries(connection: Connection, *, since_event: int) -> dict[str, _Entry]:
    """The adapters to which something happened after the event ``since_event``."""
    changed = select(_events.c.name).where(_events.c.id > since_event)
    versions = select(_versions).where(_versions.c.name.in_(changed)).order_by(_versions.c.name, _versions.c.number)
    aliases = select(_aliases).where(_aliases.c.name.in_(changed)).order_by(_aliases.c.name, _aliases.c.alias)
    adapters = select(_adapters).where(_adapters.c.name.in_(changed))
    versions_of = {name: tuple(map(_version, rows)) for name, rows in _by_name(connection, versions)}
    aliases_of = {name: {row.alias: row.number for row in rows} for name, rows in _by_name(connection, aliases)}
    return {
        row.name: _entry(
            Adapter(
                name=row.name,
                created_at=row.created_at,
                aliases=MappingProxyType(aliases_of.get(row.name, {})),
                versions=versions_of[row.name],
            )
        )
        for row in connection.execute(adapters)
    }


def _by_name(connection: Connection, query: Any) -> Iterator[tuple[str, Iterator[Row[*tuple[Any, ...]]]]]:
    return groupby(connection.execute(query), key=lambda row: row.name)


def _entry(adapter: Adapter) -> _Entry:
    served = {str(version.number): version for version in adapter.versions if version.retired_at is None}
    served |= {alias: adapter.versions[number - 1] for alias, number in adapter.aliases.items()}
    return _Entry(adapter, served)


def _version(row: Row[*tuple[Any, ...]]) -> Version:
    return Version(**row._mapping)


def _event(row: Row[*tuple[Any, ...]]) -> AliasEvent:
    return AliasEvent(**row._mapping)


def _as_json(value: Mapping[str, Any], *, param: str, max_bytes: int | None = None) -> dict[str, Any]:
    """``value`` as it will be read back; InvalidRequest if it cannot be."""
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} cannot be kept as JSON ({error}): leave that out", param=param) from error
    if max_bytes is not None and len(text) > max_bytes:
        raise InvalidRequest(f"{param} has {len(text)} bytes: shorten it to {max_bytes} at most", param=param)
    stored: dict[str, Any] = json.loads(text)
    return stored


def _refuse_retired(version: Version, advice: str) -> None:
    if version.retired_at is not None:
        raise Conflict(
            f"{version.id} was retired on {_day(version.retired_at)}, and a retired version stays retired: {advice}",
            code="version_retired",
        )


# What messages say


def _why_not(model: str, entries: Mapping[str, _Entry]) -> str:
    name, selector = names.split(model)
    if name not in entries:
        return _no_adapter(name, entries)
    adapter = entries[name].adapter
    for version in adapter.versions:
        if str(version.number) == selector and version.retired_at is not None:
            return f"{version.id} was retired on {_day(version.retired_at)}: {name!r} has {_listed(adapter.aliases)}"
    return (
        f"{names.quoted(model)} names nothing: {name!r} has {_up_to(len(adapter.versions))}, "
        f"and the aliases {_listed(adapter.aliases)}"
    )


def _no_adapter(name: str, entries: Mapping[str, _Entry]) -> str:
    # Only a name that could be right is compared, and not with more than takes a millisecond or two.
    close = difflib.get_close_matches(name, islice(entries, 500), n=1) if names.is_name(name) else []
    there_is_none = f"there is no adapter {names.quoted(name)}"
    if close:
        return f"{there_is_none}: did you mean {close[0]!r}?"
    if not entries:
        return f"{there_is_none}, nor any other yet: push one first (graftwork adapters push)"
    return f"{there_is_none}: graftwork adapters list shows what there is, graftwork adapters push adds one"


def _no_version(name: str, number: int, last: int) -> str:
    # str() of an integer with thousands of digits is an error of its own.
    return f"{name!r} has no version {number if number.bit_length() < 64 else 'so large'}: it has {_up_to(last)}"


def _up_to(last: int) -> str:
    return {0: "none yet", 1: "version 1"}.get(last, f"versions 1 to {last}")


def _listed(aliases: Mapping[str, int]) -> str:
    return ", ".join(f"{alias} (version {number})" for alias, number in aliases.items())


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"
