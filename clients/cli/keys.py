"""``graftwork keys``: create, list, usage, change, rotate, revoke."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer

from graftwork.clients.cli.context import CommandContext, api_command, paginate, parse_limits

app = typer.Typer(help="Make, limit, rotate and revoke API keys.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The key's id, from `keys list`.", show_default=False)]
Days = Annotated[float | None, typer.Option("--days", min=0, help="It ends after so many days; never by default.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME", help="One that it is for, or base; may be repeated. All by default."),
]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=N", help="requests_per_minute=60, say; may be repeated. None by default."),
]


@app.command()
@api_command
def create(
    remote: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.", show_default=False)],
    role: Annotated[Literal["app", "operator", "admin"], typer.Option("--role", help="What it may do.")] = "app",
    days: Days = None,
    adapter: Adapters = None,
    limit: Limit = None,
) -> None:
    """Make a key and print its secret, this once."""
    from rich.text import Text

    key = remote.client.keys.create(name, role=role, **_options(days, adapter, limit))
    remote.print_result(key, lambda: Text(key.secret or ""))
    remote.print_message(f"{key.id}: role {key.role}. The secret is not kept and cannot be shown again.")


@app.command("list")
@api_command
def list_(remote: CommandContext) -> None:
    """List all keys, without their secrets."""
    from graftwork.clients.cli import tables

    found = list(paginate(lambda after: remote.client.keys.list(after=after, limit=100), lambda key: key.id))
    remote.print_result(found, lambda: tables.keys(found))


@app.command()
@api_command
def usage(remote: CommandContext, id: Id) -> None:
    """Show what a key used, beside its limits."""
    from graftwork.clients.cli import tables

    key, used = remote.client.keys.get(id), remote.client.keys.usage(id)
    remote.print_result(used, lambda: tables.standing(key.limits, used))


@app.command()
@api_command
def change(
    remote: CommandContext,
    id: Id,
    name: Annotated[str | None, typer.Option("--name", help="Its new name.")] = None,
    days: Days = None,
    adapter: Adapters = None,
    limit: Limit = None,
    free: Annotated[
        list[str] | None,
        typer.Option("--no", metavar="WHAT", help="days, adapters or limits: what no longer holds; may be repeated."),
    ] = None,
) -> None:
    """Change a key; what is not named stays. New limits take the place of all old ones."""
    from graftwork.clients.cli import tables

    names = {"days": "expires_at", "adapters": "adapters", "limits": "limits"}
    if strange := set(free or ()) - names.keys():
        raise typer.BadParameter(f"{sorted(strange)[0]!r} is none of {', '.join(names)}", param_hint="--no")
    given: dict[str, Any] = {names[each]: None for each in free or ()} | _options(days, adapter, limit)
    if name is not None:
        given["name"] = name
    key = remote.client.keys.change(id, **given)
    remote.print_result(key, lambda: tables.keys([key]))


@app.command()
@api_command
def rotate(
    remote: CommandContext,
    id: Id,
    overlap: Annotated[
        float | None, typer.Option("--overlap", min=0, help="Hours that the old secret stays valid: 24 by default.")
    ] = None,
) -> None:
    """Give a key a new secret and print it, this once."""
    from rich.text import Text

    from graftwork.clients.cli.tables import format_time

    key = remote.client.keys.rotate(id, overlap_seconds=None if overlap is None else overlap * 3600)
    remote.print_result(key, lambda: Text(key.secret or ""))
    until = (
        "is not valid any more" if key.previous_until is None else f"is valid until {format_time(key.previous_until)}"
    )
    remote.print_message(f"{key.id}: the secret before {until}. The new one cannot be shown again.")


@app.command()
@api_command
def revoke(remote: CommandContext, id: Id) -> None:
    """Make a key useless from now on."""
    from graftwork.clients.cli import tables

    key = remote.client.keys.revoke(id)
    remote.print_result(key, lambda: tables.keys([key]))


def _options(days: float | None, adapters: list[str] | None, limits: list[str] | None) -> dict[str, Any]:
    """The given options as the client takes them."""
    options: dict[str, Any] = {}
    if days is not None:
        options["expires_at"] = time.time() + days * 86400
    if adapters:
        options["adapters"] = adapters
    if limits:
        options["limits"] = parse_limits(limits)
    return options
