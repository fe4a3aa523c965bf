"""Which answers a data set was made of, and so which versions were trained on them; also after the rows are erased.

What is stored are hashes of ids, which identify no user and cannot be inverted. They belong to a data set's digest, and
a version names its digest (``data_digest``). So they can be written before a run begins, and no version is ever without
a record.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from sqlalchemy import Column, Named, Table, Text, TypedColumns, insert, select

from graftwork.adapters.errors import NotFound
from graftwork.adapters.names import split_model
from graftwork.adapters.registry import Registry, Version
from graftwork.adapters.storage.database import Database, schema


class _LearnedColumns(TypedColumns):
    data_digest: Named[str] = Column(Text, primary_key=True)
    interaction_sha256: Named[str] = Column(Text, primary_key=True)


_learned = Table("learned_from", schema, _LearnedColumns)

_AT_ONCE = 500


class Lineage:
    """The records of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, data_digest: str, interaction_ids: Iterable[str]) -> None:
        """Record that a data set has rows made of these interactions, before a run trains on it. Idempotent."""
        hashes = {interaction_hash(id) for id in interaction_ids}
        with self._database.write() as connection:
            known = select(_learned.c.interaction_sha256).where(_learned.c.data_digest == data_digest)
            new = sorted(hashes.difference(connection.scalars(known)))
            if new:
                rows = [{"data_digest": data_digest, "interaction_sha256": sha256} for sha256 in new]
                connection.execute(insert(_learned), rows)

    def data_digests(self, interaction_ids: Iterable[str]) -> set[str]:
        """The digests of the data sets that have rows made of any of these interactions."""
        hashes = sorted({interaction_hash(id) for id in interaction_ids})
        found: set[str] = set()
        with self._database.read() as connection:
            for start in range(0, len(hashes), _AT_ONCE):
                some = _learned.c.interaction_sha256.in_(hashes[start : start + _AT_ONCE])
                found.update(connection.scalars(select(_learned.c.data_digest).where(some).distinct()))
        return found

    def hashes(self, data_digests: Iterable[str]) -> frozenset[str]:
        """The hashes, by ``interaction_hash``, of the interactions that these data sets were made of."""
        with self._database.read() as connection:
            query = select(_learned.c.interaction_sha256).where(_learned.c.data_digest.in_(sorted(set(data_digests))))
            return frozenset(connection.scalars(query))


def versions_trained_on(registry: Registry, data_digests: set[str]) -> tuple[list[Version], list[Version]]:
    """Versions that were trained on data sets.

    Returns:
        Those trained on one of ``data_digests``, and those that were not but continue one that was, also one of another
        adapter.
    """
    versions = list(_versions(registry)) if data_digests else []
    children: defaultdict[str | None, list[str]] = defaultdict(list)
    for version in versions:
        children[continued_version(version)].append(version.id)
    direct = [version for version in versions if version.data_digest in data_digests]
    learned = {version.id for version in direct}
    ahead = list(learned)
    while ahead:
        new = [child for child in children[ahead.pop()] if child not in learned]
        learned.update(new)
        ahead += new
    return direct, [v for v in versions if v.id in learned and v.data_digest not in data_digests]


def continued_version(version: Version) -> str | None:
    """The id of the version that this one continues, if it does.

    One of another adapter is no parent in the registry: training writes it into the metadata.
    """
    if version.parent is not None:
        return f"{version.name}@{version.parent}"
    parent = version.metadata.get("continues")
    return parent if isinstance(parent, str) else None


def jobs_behind(registry: Registry, version: Version) -> tuple[str, ...]:
    """The ids of the jobs that made a version and those that it continues, as far as they are known."""
    jobs: list[str] = []
    seen: set[str] = set()
    behind: Version | None = version
    while behind is not None and behind.id not in seen:
        seen.add(behind.id)
        job = behind.metadata.get("job")
        jobs += [job] if isinstance(job, str) else []
        behind = _continued(registry, behind)
    return tuple(jobs)


def _continued(registry: Registry, version: Version) -> Version | None:
    name, number = split_model(continued_version(version) or "")
    if not (number.isdecimal() and len(number) < 10):  # metadata may be anything
        return None
    try:
        return registry.version(name, int(number))
    except NotFound:
        return None


def _versions(registry: Registry) -> Iterator[Version]:
    after: str | None = None
    while True:
        page = registry.adapters(after=after, limit=100)
        for adapter in page:
            yield from adapter.versions
        if not page.has_more:
            return
        after = page[-1].name


def interaction_hash(interaction_id: str) -> str:
    """The hash of an interaction's id that is stored here."""
    return hashlib.sha256(interaction_id.encode("utf-8", "surrogatepass")).hexdigest()
