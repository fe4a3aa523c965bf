"""``graftwork keys``: create, list, revoke."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from graftwork.clients.cli.context import CommandContext, api_command, paginate

app = typer.Typer(help="Make and revoke API keys.", no_args_is_help=True)


@app.command()
@api_command
def create(
    remote: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.", show_default=False)],
    role: Annotated[Literal["app", "operator", "admin"], typer.Option("--role", help="What it may do.")] = "app",
) -> None:
    """Make a key and print its secret, this once."""
    from rich.text import Text

    key = remote.client.keys.create(name, role=role)
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
def revoke(
    remote: CommandContext,
    id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, from `keys list`.", show_default=False)],
) -> None:
    """Make a key useless from now on."""
    from graftwork.clients.cli import tables

    key = remote.client.keys.revoke(id)
    remote.print_result(key, lambda: tables.keys([key]))
