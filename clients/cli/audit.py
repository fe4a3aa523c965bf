"""``graftwork audit``: who changed what."""

from __future__ import annotations

from typing import Annotated

import typer

from graftwork.clients.cli.context import CommandContext, api_command, first_items, parse_since, write_json_lines
from graftwork.clients.cli.feedback import Out, Since


@api_command
def audit(
    remote: CommandContext,
    actor: Annotated[str | None, typer.Option("--actor", help="Who: the name or the id of a key.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="What was done: promote, say.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="What was changed: adapters/intents, say.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
    export: Annotated[bool, typer.Option("--export", help="All of them as JSON lines, oldest first.")] = False,
    out: Out = None,
) -> None:
    """Show who changed what: from where, when, and how it ended."""
    from graftwork.clients.cli import tables

    start = parse_since(since)
    if export or out is not None:
        rows = remote.client.audit.export(actor=actor, action=action, target=target, since=start)
        write_json_lines(remote, rows, out)
        return
    found = first_items(
        limit,
        lambda after, size: remote.client.audit.list(
            after=after, limit=size, actor=actor, action=action, target=target, since=start
        ),
        lambda entry: entry.id,
    )
    remote.print_result(found, lambda: tables.audit(found))
