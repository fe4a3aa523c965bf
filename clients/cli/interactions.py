"""``graftwork interactions``: list, show, export, erase; and what is logged: policies, policy."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from graftwork.clients.cli.context import CommandContext, api_command, first_items, parse_since, write_json_lines
from graftwork.clients.cli.feedback import Adapter, Out, Since

app = typer.Typer(help="Read, export and erase logged requests and answers.", no_args_is_help=True)

User = Annotated[str | None, typer.Option("--user", help="Of requests that named this user.")]
Status = Annotated[Literal["ok", "error", "cancelled"] | None, typer.Option("--status", help="How they ended.")]


@app.command("list")
@api_command
def list_(
    remote: CommandContext,
    adapter: Adapter = None,
    user: User = None,
    status: Status = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
) -> None:
    """List logged requests and answers, newest first."""
    from graftwork.clients.cli import tables

    start = parse_since(since)
    found = first_items(
        limit,
        lambda after, size: remote.client.interactions.list(
            after=after, limit=size, adapter=adapter, user=user, status=status, since=start
        ),
        lambda row: row.id,
    )
    remote.print_result(found, lambda: tables.interactions(found))


@app.command()
@api_command
def show(
    remote: CommandContext,
    id: Annotated[str, typer.Argument(metavar="ID", help="The answer's id: chatcmpl-… or cmpl-….", show_default=False)],
) -> None:
    """Show one: what was asked, what was answered, what was said of it."""
    from graftwork.clients.cli import tables

    found = remote.client.interactions.get(id)
    remote.print_result(found, lambda: tables.interaction(found))


@app.command()
@api_command
def export(
    remote: CommandContext,
    adapter: Adapter = None,
    user: User = None,
    status: Status = None,
    since: Since = None,
    out: Out = None,
) -> None:
    """Write all of them as JSON lines, oldest first."""
    rows = remote.client.interactions.export(adapter=adapter, user=user, status=status, since=parse_since(since))
    write_json_lines(remote, rows, out)


@app.command()
@api_command
def erase(
    remote: CommandContext,
    user: Annotated[str, typer.Option("--user", help="The user, as requests named them.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Erase a user's interactions and the words of their feedback, for good; thumbs and scores stay."""
    from graftwork.clients.cli import tables

    if not yes:
        typer.confirm(f"Erase what {user!r} left behind, for good?", abort=True, err=True)
    erased = remote.client.interactions.erase(user=user)
    remote.print_result(erased, lambda: tables.erased(erased))


@app.command()
@api_command
def policies(remote: CommandContext) -> None:
    """List what is logged, and for how long."""
    from graftwork.clients.cli import tables

    found = remote.client.log_policies.list()
    remote.print_result(found, lambda: tables.log_policies(found))


@app.command()
@api_command
def policy(
    remote: CommandContext,
    adapter: Annotated[str | None, typer.Option("--adapter", help="An adapter, or the base by its id.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="A key, by its id.")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log what it answers, or what it asks.")] = True,
    retention_days: Annotated[
        float | None, typer.Option("--days", help="Keep it so long. Default: the server's.", show_default=False)
    ] = None,
    ask_feedback: Annotated[
        float | None,
        typer.Option(
            "--ask-feedback", min=0, max=1, help="Mark this share of its answers: ask their users. Default: 0."
        ),
    ] = None,
    default: Annotated[bool, typer.Option("--default", help="Let the server's default hold again.")] = False,
) -> None:
    """Say what is logged of an adapter or a key, for how long, and how often to ask users for feedback."""
    from graftwork.clients.cli import tables

    if default:
        policy = remote.client.log_policies.remove(adapter=adapter, key=key)
        remote.print_result(policy, lambda: tables.policy_removed(policy))
        return
    policy = remote.client.log_policies.set(
        adapter=adapter, key=key, log=log, retention_days=retention_days, ask_feedback=ask_feedback
    )
    remote.print_result(policy, lambda: tables.policy_set(policy))
