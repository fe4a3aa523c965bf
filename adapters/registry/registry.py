"""The registry: resolved by requests, changed by operators.

``Registry.resolve`` runs for every request. It answers from memory; only after the registry has changed in the
database does it look for new events, and then reads the adapters that they name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from graftwork.adapters import names
from graftwork.adapters.access import audit, scope
from graftwork.adapters.base.info import BaseInfo
from graftwork.adapters.errors import Conflict, InvalidAdapter, InvalidRequest, NotFound
from graftwork.adapters.names import LIVE, is_trial
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry.change import Change, RegistryGuard
from graftwork.adapters.registry.records import Adapter, AliasEvent, Version
from graftwork.adapters.registry.snapshot import EMPTY_SNAPSHOT, RegistrySnapshot, refreshed
from graftwork.adapters.registry.tables import alias_events_table, event_of, versions_table
from graftwork.adapters.registry.wording import day, listed, unknown_version_message
from graftwork.adapters.storage.cache import DatabaseCache
from graftwork.adapters.storage.database import Database, Page
from graftwork.adapters.storage.paging import newest_page

MAX_METADATA_BYTES = 64 * 1024


class Registry:
    """The adapters of one database. Threads and processes may each have an instance.

    Args:
        database: Where they are stored.
        guard: May refuse to move aliases and to retire versions.
    """

    def __init__(self, database: Database, *, guard: RegistryGuard | None = None) -> None:
        self._database = database
        self._guard = guard
        self._snapshot = DatabaseCache(database, "registry", EMPTY_SNAPSHOT, self._refreshed)

    # -- for requests --------------------------------------------------------------------------------------------
    def resolve(self, model: str) -> Version:
        """The version that answers for ``model``: ``intents`` (live), ``intents@7`` or ``intents@candidate``.

        Raises:
            NotFound: There is none, or it is retired; the message names what there is instead.
        """
        return self._seen.resolve(model)

    def adapter(self, name: str) -> Adapter:
        """An adapter by name; none of those that are temporary.

        Raises:
            NotFound: It does not exist.
        """
        return self._seen.adapter(name)

    def find(self, name: str) -> Adapter | None:
        """An adapter by name, if it exists; none of those that are temporary."""
        return self._seen.find(name)

    def trials(self) -> list[Version]:
        """Versions of temporary adapters (``names.is_trial``) that are not retired.

        Evaluations that were killed leave such versions behind.
        """
        return self._snapshot.get().trials()

    def adapters(self, *, after: str | None = None, limit: int = 20) -> Page[Adapter]:
        """A page of adapters, by name.

        Args:
            after: The last name of the page before.
            limit: 1 to 100.
        """
        return self._seen.adapters(after=after, limit=limit)

    @property
    def _seen(self) -> RegistrySnapshot:
        """What the present caller may see."""
        return self._snapshot.get().within(scope.current())

    def check_visible(self, name: str) -> None:
        """Check that the present caller may add versions to an adapter, whether or not it is there.

        Raises:
            NotFound: It is out of the caller's scope.
        """
        if not scope.visible(name):
            self.adapter(name)

    def with_digest(self, digest: str) -> list[Version]:
        """All versions, of any name, whose files have this digest; also retired ones."""
        return self._snapshot.get().with_digest(digest)

    def is_registered(self, digest: str) -> bool:
        """Whether any version has these files, as the database says at this moment.

        Raises:
            Unavailable: The database cannot say.
        """
        query = select(versions_table.c.number).where(versions_table.c.digest == digest).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def version(self, name: str, number: int) -> Version:
        """A version by name and number; also a retired one.

        Raises:
            NotFound: It does not exist.
        """
        return self._seen.version(name, number)

    # -- changes -------------------------------------------------------------------------------------------------
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
        """Register an adapter whose files are published.

        Args:
            name: Of the adapter. A temporary one (``names.is_trial``) has no alias.
            spec: As ``read_spec`` read it from the files.
            base: The served base.
            alias: Points to the version afterwards; the first version of a name becomes live as well.
            parent: The number of the version that this one continues.
            data_digest: Of the data set that it was trained on.
            metadata: Anything that JSON can hold, up to ``MAX_METADATA_BYTES``.
            actor: For the history.

        Returns:
            The version, and whether it is new. The same bytes under the same name are the version that they were
                before,
            and ``parent``, ``data_digest`` and ``metadata`` of this call are not recorded.

        Raises:
            InvalidRequest: A name, alias or text is invalid.
            InvalidAdapter: It was trained on another base.
            Conflict: These bytes are a version that was retired (which is for good: it must not come back because a
                pipeline ran again), or one that was registered for another base; or it is a reward model and the other
                versions are not, or the other way round.
        """
        self.check_visible(name)
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
            first = change.version(1)
            if first is not None and first.is_reward_model != new.is_reward_model:
                raise Conflict(
                    f"the versions of {name} are reward models, and this is none: push it under another name"
                    if first.is_reward_model
                    else f"this is a reward model, and the versions of {name} are none: push it under another name"
                )
            known = change.version_where(versions_table.c.digest == spec.digest)
            if known is not None:
                _refuse_retired(known, "push a changed adapter")
                if known.base_digest != base.digest:
                    raise Conflict(
                        f"these bytes are {known.id}, which was registered for the base {known.base_digest}, and this "
                        f"server runs {base.id}, {base.digest}: push them under another name"
                    )
            version = known or change.add(new)
            audit.made(str(version.number))
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
        """Point ``alias`` to the version ``number``.

        Args:
            name: The adapter's.
            alias: Is created if it does not exist.
            number: The version's.
            actor: For the history.
            reason: For the history.
            within: A write transaction of the caller's to be part of; the guard is not asked then.

        Returns:
            The event, or the earlier one if the alias points there already.

        Raises:
            NotFound: There is no such adapter.
            InvalidRequest: There is no such version, or the alias is invalid.
            Conflict: It was retired, or the guard refuses.
        """
        self.adapter(name)
        names.check_alias(alias)
        with self._change(name, actor, reason, within) as change:
            version = change.version(number)
            if version is None:
                raise InvalidRequest(
                    unknown_version_message(name, number, change.last_number()),
                    param="version",
                    code="version_not_found",
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
        """Point ``alias`` to the version that it pointed to before; called again, to the one before that.

        The alias's past is a stack: a promotion pushes a version, a rollback pops the one that it leaves. So rolling
        back twice never leads forward again, and after 1, 2, a rollback, and 3, the way back is 1. Versions that were
        retired since are skipped.

        Raises:
            NotFound: There is no such adapter.
            InvalidRequest: There is no such alias.
            Conflict: There is nothing left to go back to, or the guard refuses.
        """
        self.adapter(name)
        names.check_alias(alias)
        with self._change(name, actor, reason, within) as change:
            stack = change.stack(alias)
            if not stack:
                raise InvalidRequest(
                    f"{name!r} has no alias {alias!r}: it has {listed(change.aliases())}",
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
        """Take a version out of service for good; its row and its history stay. Idempotent.

        Raises:
            NotFound: There is no such version.
            Conflict: An alias points to it, or the guard refuses.
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

    # -- history -------------------------------------------------------------------------------------------------
    def history(self, name: str, *, after: int | None = None, limit: int = 20) -> Page[AliasEvent]:
        """A page of an adapter's events, newest first.

        Args:
            name: The adapter's.
            after: The last id of the page before.
            limit: 1 to 100.

        Raises:
            NotFound: There is no such adapter.
        """
        self.adapter(name)
        query = select(alias_events_table).where(alias_events_table.c.name == name)
        return newest_page(self._database, query, alias_events_table.c.id, event_of, after=after, limit=limit)

    def at(self, name: str, alias: str, when: datetime) -> Version:
        """The version that ``name@alias`` pointed to at ``when``, which has a time zone.

        Raises:
            InvalidRequest: ``when`` has no time zone, or the alias is invalid.
            NotFound: There is no such adapter, or the alias pointed to nothing then.
        """
        if when.tzinfo is None:
            raise InvalidRequest(f"{when.isoformat()} has no time zone: add one, or Z for UTC", param="when")
        names.check_alias(alias)
        self.adapter(name)
        query = (
            select(alias_events_table.c.to_version)
            .where(
                alias_events_table.c.name == name, alias_events_table.c.alias == alias, alias_events_table.c.at <= when
            )
            .order_by(alias_events_table.c.id.desc())
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
    ) -> Iterator[Change]:
        names.check_text(actor, param="actor", max_chars=200)
        if reason is not None:
            names.check_text(reason, param="reason", max_chars=2000)
        if within is not None:
            yield Change(within, name, actor, reason)
            return
        with self._database.write() as connection:
            yield Change(connection, name, actor, reason, self._guard)

    def _refreshed(self, old: RegistrySnapshot) -> RegistrySnapshot:
        with self._database.read() as connection:
            return refreshed(connection, old)


def _as_json(value: Mapping[str, Any], *, param: str, max_bytes: int | None = None) -> dict[str, Any]:
    """``value`` as it will be read back.

    Raises:
        InvalidRequest: JSON cannot hold it, or it is too large; ``param`` names the field.
    """
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
            f"{version.id} was retired on {day(version.retired_at)}, and a retired version stays retired: {advice}",
            code="version_retired",
        )
