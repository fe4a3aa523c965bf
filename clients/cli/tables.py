"""How adapters, versions, events and keys look to people. Knows rich and the types; asks nothing of anybody."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftwork.clients.types import Adapter, Event, Key, Version


def adapters(found: Iterable[Adapter]) -> RenderableType:
    table = _table("Adapter", "Live", "Other aliases", "Versions", "Resident", "Age", right=("Requests", "Tokens"))
    for adapter in found:
        others = ", ".join(
            f"{alias} → {number}" for alias, number in sorted(adapter.aliases.items()) if alias != "live"
        )
        table.add_row(
            adapter.name,
            _or_dash(adapter.aliases.get("live")),
            others or "–",
            str(sum(version.retired_at is None for version in adapter.versions)),
            _or_dash(adapter.residency),
            age(adapter.created_at),
            f"{adapter.requests:,}",
            f"{adapter.tokens:,}",
        )
    return table if table.row_count else Text("No adapters yet. Push one: graftwork adapters push NAME FOLDER")


def adapter(shown: Adapter) -> RenderableType:
    """Its versions, the newest first, in eighty columns."""
    table = _table("Version", "Aliases", "Resident", "Age", right=("Rank", "Size", "Load", "Requests", "Tokens"))
    for version in sorted(shown.versions, key=lambda version: version.version, reverse=True):
        aliases = ", ".join(shown.aliases_of(version.version))
        table.add_row(
            version.id if version.verified else f"{version.id} *",
            aliases or ("retired" if version.retired_at else "–"),
            _or_dash(version.residency),
            age(version.created_at),
            str(version.rank),
            size(version.num_bytes),
            "–" if version.load_ms is None else f"{version.load_ms:.0f} ms",
            f"{version.requests:,}",
            f"{version.tokens:,}",
            style="dim" if version.retired_at else None,
        )
    head = Text.assemble((shown.name, "bold"), f" · {shown.requests:,} requests · {shown.tokens:,} tokens")
    if all(version.verified for version in shown.versions):
        return Group(head, table)
    return Group(head, table, Text("* its files do not say which base they were trained on", style="dim"))


def pushed(version: Version) -> RenderableType:
    facts = f" · rank {version.rank} · {size(version.num_bytes)} · {version.digest.removeprefix('sha256:')[:12]}"
    return Text.assemble((version.id, "bold"), facts)


def event(happened: Event) -> RenderableType:
    where = f"{happened.name}@{happened.alias}" if happened.alias else happened.name
    return Text.assemble((where, "bold"), f" {_move(happened)}")


def history(events: Iterable[Event]) -> RenderableType:
    table = _table("When", "What", "Alias", "Version", "By", "Reason")
    for happened in events:
        table.add_row(
            when(happened.at),
            happened.action,
            _or_dash(happened.alias),
            _move(happened),
            happened.actor,
            happened.reason or "",
        )
    return table


def retired(version: Version) -> RenderableType:
    return Text.assemble((version.id, "bold"), " is retired: requests that name it are refused from now on")


def keys(found: Iterable[Key]) -> RenderableType:
    table = _table("Id", "Name", "Role", "Created", "Revoked")
    for key in found:
        revoked = when(key.revoked_at) if key.revoked_at else "–"
        table.add_row(
            key.id, key.name, key.role, when(key.created_at), revoked, style="dim" if key.revoked_at else None
        )
    return table if table.row_count else Text("No keys. Make one: graftwork keys create NAME --role app")


def when(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(since: datetime) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = (datetime.now(UTC) - since).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"


def size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"


def _move(happened: Event) -> str:
    if happened.from_version is None:
        return _or_dash(happened.to_version)
    return f"{happened.from_version} → {_or_dash(happened.to_version)}"


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)  # names are copied from here: never in two lines
    for column in right:
        table.add_column(column, justify="right", overflow="fold")
    return table
