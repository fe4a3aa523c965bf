"""``graftwork batches``: create, list, show, cancel, results."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from graftwork.clients.cli.context import CommandContext, api_command, first_items, parse_metadata, write_json_lines
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.cli.feedback import Out

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graftwork.clients.types.batches import Batch

POLL_SECONDS: Final = 1.0

app = typer.Typer(help="Have many requests in one file answered in the background.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The batch's id: batch_…", show_default=False)]


@app.command()
@api_command
def create(
    remote: CommandContext,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Its requests, one in each line, as JSON.", show_default=False)
    ],
    endpoint: Annotated[str, typer.Option("--endpoint", help="What they ask.")] = "/v1/chat/completions",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="K=V", help="A note on it; may be repeated.")
    ] = None,
) -> None:
    """Upload a file of requests, and have them answered within 24 hours."""
    with remote.err.status(f"Uploading {file.name}"):
        uploaded = remote.client.files.upload(file, purpose="batch")
    batch = remote.client.batches.create(
        uploaded.id, endpoint=endpoint, metadata=parse_metadata(metadata) if metadata else None
    )
    remote.print_result(batch, lambda: _line(batch))
    remote.print_message(f"Its answers, when there are all: graftwork batches results {batch.id} --wait")


@app.command("list")
@api_command
def list_(
    remote: CommandContext,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
) -> None:
    """List batches, newest first: one's own, or with an operator's key all."""
    found = first_items(
        limit, lambda after, size: remote.client.batches.list(after=after, limit=size), lambda batch: batch.id
    )
    remote.print_result(found, lambda: _table(found))


@app.command()
@api_command
def show(remote: CommandContext, id: Id) -> None:
    """Show one: where it stands, what is wrong with it, where its results are."""
    batch = remote.client.batches.get(id)
    remote.print_result(batch, lambda: _whole(batch))


@app.command()
@api_command
def cancel(remote: CommandContext, id: Id) -> None:
    """End one; what was answered is kept."""
    batch = remote.client.batches.cancel(id)
    remote.print_result(batch, lambda: _line(batch))


@app.command()
@api_command
def results(
    remote: CommandContext,
    id: Id,
    out: Out = None,
    failed: Annotated[bool, typer.Option("--failed", help="Those that failed or were not answered.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
) -> None:
    """Write the answers of one that has ended as JSON lines. The command fails if the batch did."""
    batch = remote.client.batches.get(id)
    if wait:
        batch = _ended(remote, batch)
    if not batch.ended:
        remote.err.print(_line(batch))
        remote.print_message("It has no results before its end: give --wait, or look again later.")
        raise typer.Exit(ExitCode.FAILED)
    file = batch.error_file_id if failed else batch.output_file_id
    write_json_lines(remote, remote.client.batches.results(file) if file else (), out)
    if batch.error_file_id and not failed:
        remote.print_message(f"Not all were answered. The others: graftwork batches results {id} --failed")
    if batch.status == "failed":
        remote.err.print(_whole(batch))
        raise typer.Exit(ExitCode.FAILED)


def _ended(remote: CommandContext, batch: Batch) -> Batch:
    """Wait until a batch has ended."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[where]}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=remote.err, transient=True, disable=remote.json) as bar:
            task = bar.add_task(batch.status, total=None, where="")
            while not batch.ended:
                counts = batch.request_counts
                done = counts.completed + counts.failed
                bar.update(
                    task,
                    description=batch.status,
                    total=counts.total or None,
                    completed=done,
                    where=batch.graftwork.waiting or f"{done}/{counts.total}",
                )
                time.sleep(POLL_SECONDS)
                batch = remote.client.batches.get(batch.id)
    except KeyboardInterrupt:
        remote.print_message(f"The batch goes on. End it: graftwork batches cancel {batch.id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    return batch


def _table(found: Iterable[Batch]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from graftwork.clients.cli.tables import format_age

    table = Table("Batch", "Endpoint", "Status", "Answered", "Failed", "Age", box=None, header_style="bold")
    for batch in found:
        counts = batch.request_counts
        table.add_row(
            batch.id,
            batch.endpoint,
            batch.status,
            f"{counts.completed}/{counts.total}",
            str(counts.failed),
            format_age(batch.created_at),
        )
    return table if table.row_count else Text("No batches yet. Create one: graftwork batches create FILE")


def _whole(batch: Batch) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = {
        "endpoint": batch.endpoint,
        "input": batch.input_file_id,
        "answers": batch.output_file_id,
        "errors": batch.error_file_id,
        "made by": batch.graftwork.created_by,
        "expires": f"{batch.expires_at:%Y-%m-%d %H:%M} UTC",
        "waits for": batch.graftwork.waiting,
        "metadata": ", ".join(f"{key}={value}" for key, value in batch.metadata.items()),
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    errors = batch.errors.data if batch.errors else ()
    said = [Text(f"line {error.line}: {error.message}" if error.line else error.message) for error in errors]
    return Group(_line(batch), table, *said)


def _line(batch: Batch) -> RenderableType:
    from rich.text import Text

    counts = batch.request_counts
    failed = f", {counts.failed} failed" if counts.failed else ""
    answered = f" · {counts.completed} of {counts.total} answered{failed}" if counts.total else ""
    return Text.assemble((batch.id, "bold"), f" {batch.status}{answered}")
