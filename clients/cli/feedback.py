"""``graftwork feedback``: send, list, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from graftwork.clients.cli.context import (
    CommandContext,
    api_command,
    first_items,
    parse_metadata,
    parse_since,
    write_json_lines,
)

app = typer.Typer(help="Say what was good or bad of answers, and read what was said.", no_args_is_help=True)

Adapter = Annotated[str | None, typer.Option("--adapter", help="Of this adapter, version or alias, or the base.")]
Since = Annotated[
    str | None, typer.Option("--since", help="From then on: 2026-11-22T17:00:00Z, unix seconds, or 90m, 24h, 7d ago.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Write to this file instead of standard output.")]
Kind = Literal["thumb", "score", "correction", "preferred_over", "comment", "metadata"]
KindOption = Annotated[Kind | None, typer.Option("--kind", help="Only what has this.")]
AskedOption = Annotated[
    bool | None, typer.Option("--asked/--unasked", help="Only what a random draw asked for, or only the rest.")
]
InteractionOption = Annotated[str | None, typer.Option("--interaction", metavar="ID", help="Of this answer.")]


@app.command()
@api_command
def send(
    remote: CommandContext,
    id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="The answer's id: chatcmpl-… or cmpl-….", show_default=False),
    ] = None,
    episode: Annotated[
        str | None, typer.Option("--episode", help="Instead of an answer: the episode whose answers are judged as one.")
    ] = None,
    thumb: Annotated[Literal["up", "down"] | None, typer.Option("--thumb", help="Good or bad.")] = None,
    score: Annotated[float | None, typer.Option("--score", min=0, max=1, help="How good; 1 is best.")] = None,
    correction: Annotated[str | None, typer.Option("--correction", help="What the answer should have been.")] = None,
    preferred_over: Annotated[
        str | None, typer.Option("--preferred-over", metavar="ID", help="A worse answer to the same prompt.")
    ] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="Anything, for people.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="K=V", help="A note; may be repeated.")
    ] = None,
    choice: Annotated[
        int | None, typer.Option("--choice", min=0, help="Which of several choices, counted from 0.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Whose judgement it is.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="Sent again with the same key, it counts once."),
    ] = None,
) -> None:
    """Say something of an answer, by its id, now or at any later time; or of an episode, by its name."""
    from graftwork.clients.cli import tables

    if (id is None) == (episode is None):
        raise typer.BadParameter("name an answer by its ID, or an episode with --episode, one of the two.")
    kept = remote.client.feedback.send(
        id,
        episode=episode,
        thumb=thumb,
        score=score,
        correction=correction,
        preferred_over=preferred_over,
        comment=comment,
        metadata=parse_metadata(metadata) if metadata else None,
        choice=choice,
        user=user,
        idempotency_key=idempotency_key,
    )
    remote.print_result(kept, lambda: tables.sent(kept))
    if not kept.created:
        remote.print_message("This was said before with the same idempotency key: nothing was added.")


@app.command("list")
@api_command
def list_(
    remote: CommandContext,
    interaction: InteractionOption = None,
    adapter: Adapter = None,
    kind: KindOption = None,
    asked: AskedOption = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 50,
) -> None:
    """List what was said, newest first."""
    from graftwork.clients.cli import tables

    start = parse_since(since)
    found = first_items(
        limit,
        lambda after, size: remote.client.feedback.list(
            after=after,
            limit=size,
            interaction_id=interaction,
            adapter=adapter,
            kind=kind,
            asked=asked,
            since=start,
        ),
        lambda row: row.id,
    )
    remote.print_result(found, lambda: tables.feedback(found))


@app.command()
@api_command
def export(
    remote: CommandContext,
    interaction: InteractionOption = None,
    adapter: Adapter = None,
    kind: KindOption = None,
    asked: AskedOption = None,
    since: Since = None,
    out: Out = None,
) -> None:
    """Write all of it as JSON lines, oldest first."""
    rows = remote.client.feedback.export(
        interaction_id=interaction, adapter=adapter, kind=kind, asked=asked, since=parse_since(since)
    )
    write_json_lines(remote, rows, out)
