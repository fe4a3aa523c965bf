"""``graftwork adapters``: push, list, show, promote, rollback, retire, history, limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftwork.clients.cli.context import (
    CommandContext,
    api_command,
    first_items,
    paginate,
    parse_limits,
    parse_metadata,
)

if TYPE_CHECKING:
    from graftwork.clients.http.calls import ProgressCallback
    from graftwork.clients.types.adapters import PushedVersion

app = typer.Typer(help="Push, promote, roll back and watch adapters.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter, for example intents.", show_default=False)]
Alias = Annotated[str, typer.Option("--alias", help="The alias to move.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Kept in the adapter's history.")]
EndExperiment = Annotated[bool, typer.Option("--end-experiment", help="End the experiment that needs it as it is.")]


@app.command()
@api_command
def push(
    remote: CommandContext,
    name: Name,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What PEFT's save_pretrained wrote.", show_default=False)
    ],
    alias: Annotated[str | None, typer.Option("--alias", help="Move this alias to the new version.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="K=V", help="A note; may be repeated.")
    ] = None,
    parent: Annotated[int | None, typer.Option("--parent", help="The version that this one continues.")] = None,
    server_path: Annotated[
        bool, typer.Option("--server-path", help="FOLDER is on the server, below one of its --allowed-root folders.")
    ] = False,
) -> None:
    """Push a PEFT folder as the next version of an adapter.

    The first version of a name becomes live by itself; later ones wait for `promote`, or for --alias live.
    """
    with _upload_bar(remote) as progress:
        version = remote.client.adapters.push(
            name,
            None if server_path else folder,
            server_path=folder if server_path else None,
            alias=alias,
            parent=parent,
            metadata=parse_metadata(metadata) if metadata else None,
            progress=progress,
        )
    from graftwork.clients.cli import tables

    remote.print_result(version, lambda: tables.pushed(version))
    _say_what_next(remote, version)


@app.command("list")
@api_command
def list_(remote: CommandContext) -> None:
    """List all adapters."""
    from graftwork.clients.cli import tables

    found = list(
        paginate(lambda after: remote.client.adapters.list(after=after, limit=100), lambda adapter: adapter.name)
    )
    remote.print_result(found, lambda: tables.adapters(found))


@app.command()
@api_command
def show(remote: CommandContext, name: Name) -> None:
    """Show an adapter: its versions, aliases, where they reside, and their traffic."""
    from graftwork.clients.cli import tables

    adapter = remote.client.adapters.get(name)
    remote.print_result(adapter, lambda: tables.adapter(adapter))


@app.command()
@api_command
def promote(
    remote: CommandContext,
    version: Annotated[
        str,
        typer.Argument(metavar="NAME@VERSION", help="For example intents@7, or intents@candidate.", show_default=False),
    ],
    alias: Alias = "live",
    reason: Reason = None,
    end_experiment: EndExperiment = False,
) -> None:
    """Make a version live, or move another alias to it."""
    from graftwork.clients.cli import tables

    name, number = _split(version)
    if not number.isdecimal():
        number = _version_of_alias(remote, name, number)
    event = remote.client.adapters.promote(
        name, int(number), alias=alias, reason=reason, end_experiment=end_experiment or None
    )
    remote.print_result(event, lambda: tables.event(event))


@app.command()
@api_command
def rollback(
    remote: CommandContext,
    name: Name,
    alias: Alias = "live",
    reason: Reason = None,
    end_experiment: EndExperiment = False,
) -> None:
    """Move an alias back to the version it pointed at before."""
    from graftwork.clients.cli import tables

    event = remote.client.adapters.rollback(name, alias=alias, reason=reason, end_experiment=end_experiment or None)
    remote.print_result(event, lambda: tables.event(event))


@app.command()
@api_command
def retire(
    remote: CommandContext,
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="For example intents@3.", show_default=False)],
) -> None:
    """Take a version out of service; refused while an alias points at it."""
    from graftwork.clients.cli import tables

    name, number = _split(version)
    if not number.isdecimal():
        raise typer.BadParameter(f"{version!r} names an alias; retire takes a number, like {name}@3.")
    gone = remote.client.adapters.retire(name, int(number))
    remote.print_result(gone, lambda: tables.retired(gone))


@app.command()
@api_command
def history(
    remote: CommandContext,
    name: Name,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 50,
) -> None:
    """Show what happened to an adapter, and who did it."""
    from graftwork.clients.cli import tables

    events = first_items(
        limit, lambda after, size: remote.client.adapters.history(name, after=after, limit=size), lambda event: event.id
    )
    remote.print_result(events, lambda: tables.history(events))


@app.command()
@api_command
def limits(
    remote: CommandContext,
    name: Name,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=N", help="tokens_per_day=1000000, say; may be repeated. The new limits."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="It has no limits any more.")] = False,
) -> None:
    """Show or set what all keys together may ask of an adapter."""
    from graftwork.clients.cli import tables

    if limit and none:
        raise typer.BadParameter("give limits, or say that there are none", param_hint="--none")
    calls = remote.client.adapters
    found = calls.set_limits(name, parse_limits(limit or [])) if limit or none else calls.limits(name)
    remote.print_result(found, lambda: tables.standing(found.limits, found))


def _split(version: str) -> tuple[str, str]:
    name, at, number = version.rpartition("@")
    if not (name and at and number):
        raise typer.BadParameter(f"{version!r} names no version; write it like intents@7.")
    return name, number


def _version_of_alias(remote: CommandContext, name: str, alias: str) -> str:
    aliases = remote.client.adapters.get(name).aliases
    if alias not in aliases:
        has = ", ".join(sorted(aliases)) or "none"
        raise typer.BadParameter(f"{name} has no alias {alias!r}; it has: {has}.")
    return str(aliases[alias])


def _say_what_next(remote: CommandContext, version: PushedVersion) -> None:
    if not version.created:
        remote.print_message(f"The very same bytes are {version.id} already: nothing was added.")
    if not version.verified:
        remote.print_message(
            "The folder does not say which base it was trained on; shapes fit, so it is taken as unverified."
        )
    for warning in version.warnings:
        remote.print_message(f"Note: {warning}")
    aliases = remote.client.adapters.get(version.name).aliases_of(version.version)
    if "live" in aliases:
        remote.print_message(f'Live: requests for model "{version.name}" are answered by {version.id}.')
        return
    if aliases:
        remote.print_message(f'Callable as "{version.name}@{aliases[0]}" and "{version.id}".')
    else:
        remote.print_message(f'Callable as "{version.id}".')
    remote.print_message(f"Make it live: graftwork adapters promote {version.id}")


@contextmanager
def _upload_bar(remote: CommandContext) -> Iterator[ProgressCallback]:
    """Show the progress of an upload on a terminal. The server's checks after the upload have no progress."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=remote.err, transient=True, disable=not remote.err.is_terminal) as bar:
        task = bar.add_task("pushing", total=None)

        def report(sent: int, total: int) -> None:
            checking = sent >= total
            bar.update(task, completed=sent, total=None if checking else total)
            if checking:
                bar.update(task, description="the server checks it")

        yield report
