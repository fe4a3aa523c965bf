"""The registry at one moment, in memory, to resolve requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from graftwork.adapters import names
from graftwork.adapters.access.scope import Scope
from graftwork.adapters.errors import NotFound
from graftwork.adapters.names import is_trial
from graftwork.adapters.registry.records import Adapter, Version
from graftwork.adapters.registry.tables import (
    adapters_table,
    alias_events_table,
    aliases_table,
    version_of,
    versions_table,
)
from graftwork.adapters.registry.wording import unknown_adapter_message, unknown_model_message, unknown_version_message
from graftwork.adapters.storage.database import Page, check_limit


@dataclass(frozen=True)
class Entry:
    """An adapter for look-up: ``served`` maps what may follow the @ to the version that answers."""

    adapter: Adapter
    served: Mapping[str, Version]


@dataclass(frozen=True)
class RegistrySnapshot:
    """The registry at one moment. Replaced as a whole, so that no reader sees half a change.

    Attributes:
        last_event: The newest event that it includes.
        entries: Adapters by name, sorted.
        tried: Temporary adapters, which are in no list.
    """

    last_event: int
    entries: Mapping[str, Entry]
    tried: Mapping[str, Entry]

    def within(self, scope: Scope) -> RegistrySnapshot:
        """The part of it that a caller with this scope may see."""
        if scope is None:
            return self
        seen = {name: self.entries[name] for name in sorted(scope) if name in self.entries}
        return replace(self, entries=seen, tried={})

    def resolve(self, model: str) -> Version:
        """See ``Registry.resolve``."""
        name, selector = names.split_model(model)
        entry = self.entries.get(name) or self.tried.get(name)
        version = entry.served.get(selector) if entry else None
        if version is None:
            known = self.entries.get(name)
            message = (
                unknown_model_message(model, known.adapter) if known else unknown_adapter_message(name, self.entries)
            )
            raise NotFound(message, param="model", code="model_not_found")
        return version

    def adapter(self, name: str) -> Adapter:
        """See ``Registry.adapter``."""
        if name not in self.entries:
            raise NotFound(unknown_adapter_message(name, self.entries), param="name", code="adapter_not_found")
        return self.entries[name].adapter

    def find(self, name: str) -> Adapter | None:
        """See ``Registry.find``."""
        entry = self.entries.get(name)
        return None if entry is None else entry.adapter

    def trials(self) -> list[Version]:
        """See ``Registry.trials``."""
        versions = (version for entry in self.tried.values() for version in entry.adapter.versions)
        return [version for version in versions if version.retired_at is None]

    def adapters(self, *, after: str | None = None, limit: int = 20) -> Page[Adapter]:
        """See ``Registry.adapters``."""
        check_limit(limit)
        following = (entry.adapter for name, entry in self.entries.items() if after is None or name > after)
        return Page.of(list(islice(following, limit + 1)), limit)

    def with_digest(self, digest: str) -> list[Version]:
        """See ``Registry.with_digest``."""
        entries = chain(self.entries.values(), self.tried.values())
        versions = (version for entry in entries for version in entry.adapter.versions)
        return [version for version in versions if version.digest == digest]

    def version(self, name: str, number: int) -> Version:
        """See ``Registry.version``."""
        trial = self.tried.get(name)
        versions = (trial.adapter if trial else self.adapter(name)).versions
        # Numbers run from 1 without gaps, and rows are never deleted.
        if not 1 <= number <= len(versions):
            raise NotFound(
                unknown_version_message(name, number, len(versions)), param="version", code="version_not_found"
            )
        return versions[number - 1]


EMPTY_SNAPSHOT: Final = RegistrySnapshot(last_event=0, entries={}, tried={})


def refreshed(connection: Connection, old: RegistrySnapshot) -> RegistrySnapshot:
    """``old`` with all later events. Most commits are not the registry's: those cost one query of the newest event."""
    last_event = connection.scalar(select(func.max(alias_events_table.c.id))) or 0
    if last_event == old.last_event:
        return old
    changed = _entries(connection, since_event=old.last_event)
    tried = {**old.tried, **{name: entry for name, entry in changed.items() if is_trial(name)}}
    entries = dict(sorted({**old.entries, **{n: e for n, e in changed.items() if n not in tried}}.items()))
    return RegistrySnapshot(last_event=last_event, entries=entries, tried=tried)


def _entries(connection: Connection, *, since_event: int) -> dict[str, Entry]:
    """The adapters that have events after ``since_event``."""
    changed = select(alias_events_table.c.name).where(alias_events_table.c.id > since_event)
    versions = (
        select(versions_table)
        .where(versions_table.c.name.in_(changed))
        .order_by(versions_table.c.name, versions_table.c.number)
    )
    aliases = (
        select(aliases_table)
        .where(aliases_table.c.name.in_(changed))
        .order_by(aliases_table.c.name, aliases_table.c.alias)
    )
    adapters = select(adapters_table).where(adapters_table.c.name.in_(changed))
    versions_of = {name: tuple(map(version_of, rows)) for name, rows in _by_name(connection, versions)}
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


def _entry(adapter: Adapter) -> Entry:
    served = {str(version.number): version for version in adapter.versions if version.retired_at is None}
    served |= {alias: adapter.versions[number - 1] for alias, number in adapter.aliases.items()}
    return Entry(adapter, served)
