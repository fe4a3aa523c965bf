"""``graftwork webhooks``: create, list, test and delete addresses that are told what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from graftwork.clients.cli.context import CommandContext, api_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graftwork.clients.types.webhooks import Webhook, WebhookDelivery

app = typer.Typer(help="Addresses that are told what happens to jobs and rounds.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id: webhook-…", show_default=False)]


@app.command()
@api_command
def create(
    remote: CommandContext,
    address: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent.", show_default=False)],
    event: Annotated[
        list[str] | None, typer.Option("--event", metavar="TYPE", help="An event to tell; may be repeated. All.")
    ] = None,
) -> None:
    """Create one. Its secret, which signs the requests, is shown this once."""
    created = remote.client.webhooks.create(address, events=event or ())
    remote.print_message(f"{created.id} is told of events. Its secret, which is not shown again:")
    remote.print_result(created, lambda: created.secret or "")


@app.command("list")
@api_command
def list_(remote: CommandContext) -> None:
    """List them."""
    found = list(remote.client.webhooks.list())
    remote.print_result(found, lambda: _table(found))


@app.command()
@api_command
def test(remote: CommandContext, id: Id) -> None:
    """Have one told a webhook.test event."""
    webhook = remote.client.webhooks.test(id)
    remote.print_result(webhook, lambda: f"{id} is about to be told: graftwork webhooks deliveries {id}")


@app.command()
@api_command
def deliveries(
    remote: CommandContext,
    id: Id,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="How many, newest first.")] = 20,
) -> None:
    """List what one was told, or will be."""
    found = list(remote.client.webhooks.deliveries(id, limit=limit))
    remote.print_result(found, lambda: _deliveries_table(found))


@app.command()
@api_command
def delete(remote: CommandContext, id: Id) -> None:
    """Delete one; what it was not told yet, it will not be told."""
    deleted = remote.client.webhooks.delete(id)
    remote.print_result(deleted, lambda: f"{id} is told nothing any more.")


def _table(found: list[Webhook]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from graftwork.clients.cli.tables import format_time

    if not found:
        return Text("There is no webhook. Create one: graftwork webhooks create URL")
    table = Table("Webhook", "URL", "Told of", "By", "Since", box=None, header_style="bold")
    for each in found:
        told = ", ".join(each.events) or "everything"
        table.add_row(each.id, Text(each.url), told, Text(each.created_by), format_time(each.created_at))
    return table


def _deliveries_table(found: list[WebhookDelivery]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from graftwork.clients.cli.tables import format_time

    table = Table("When", "Event", "State", "Attempts", "Next", "Why", box=None, header_style="bold")
    for each in found:
        again = "" if each.next_at is None or each.state != "waiting" else format_time(each.next_at)
        table.add_row(format_time(each.at), each.type, each.state, f"{each.attempts}", again, Text(each.error or ""))
    return table
