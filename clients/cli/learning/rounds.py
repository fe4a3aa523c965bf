"""``graftwork rounds``: list, show, start, watch and undo rounds of learning."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from graftwork.clients.cli.context import CommandContext, api_command, first_items
from graftwork.clients.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graftwork.clients.types.learning.rounds import Round, RoundPlan

POLL_SECONDS: Final = 2.0

_COLOURS: Final = {"promoted": "green", "failed": "red", "undone": "yellow", "set_aside": "yellow"}

app = typer.Typer(help="See, begin, watch and undo rounds of learning.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The round's id: round-…", show_default=False)]


@app.command("list")
@api_command
def list_(
    remote: CommandContext,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Of this adapter.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="In this state: promoted, say.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
) -> None:
    """List rounds, newest first."""
    found = first_items(
        limit,
        lambda after, size: remote.client.rounds.list(adapter=adapter, state=state, after=after, limit=size),
        lambda round_: round_.id,
    )
    remote.print_result(found, lambda: _table(found))


@app.command()
@api_command
def show(remote: CommandContext, id: Id) -> None:
    """Show one: what it learned from, what came of it, what was decided."""
    found = remote.client.rounds.get(id)
    remote.print_result(found, lambda: _whole(found))


@app.command()
@api_command
def start(
    remote: CommandContext,
    adapter: Annotated[str, typer.Argument(metavar="NAME", help="An adapter that learns by itself.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the round would be.")] = False,
) -> None:
    """Begin the next round of an adapter now, whether it is due or not."""
    if dry_run:
        plan = remote.client.rounds.plan(adapter)
        remote.print_result(plan, lambda: _plan(plan))
        return
    begun = remote.client.rounds.begin(adapter)
    remote.print_result(begun, lambda: line(begun))
    remote.print_message(f"Watch it: graftwork rounds watch {begun.id}")


@app.command()
@api_command
def watch(remote: CommandContext, id: Id) -> None:
    """Follow one until it is decided. Ctrl-C stops watching, not the round."""
    found, told = remote.client.rounds.get(id), None
    try:
        while True:
            if (found.state, found.reason) != told:
                told = (found.state, found.reason)
                remote.print_message(f"{_words(found.state)}: {found.reason or ''}")
            if found.ended:
                break
            time.sleep(POLL_SECONDS)
            found = remote.client.rounds.get(id)
    except KeyboardInterrupt:
        remote.print_message(f"The round goes on. Take it back: graftwork rounds undo {id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    remote.print_result(found, lambda: line(found))
    if found.state in ("failed", "cancelled"):
        raise typer.Exit(ExitCode.FAILED)


@app.command()
@api_command
def undo(
    remote: CommandContext,
    id: Id,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the history.")] = None,
) -> None:
    """Take one back: end its job or its experiment, or let the version that it replaced answer again."""
    undone = remote.client.rounds.undo(id, reason=reason)
    remote.print_result(undone, lambda: line(undone))


def line(round_: Round) -> RenderableType:
    """A round in one line."""
    from rich.text import Text

    kind = "a control" if round_.control else f"continues {round_.continues}"
    state = (_words(round_.state), _COLOURS.get(round_.state, "cyan"))
    return Text.assemble(
        (round_.id, "bold"), f"  Round {round_.number} of {round_.adapter} ({kind}) ", state, f": {round_.reason or ''}"
    )


def _table(found: list[Round]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from graftwork.clients.cli.tables import format_time

    if not found:
        return Text("No round has begun. Let an adapter learn by itself: graftwork train NAME --watch")
    table = Table("Round", "Adapter", "No.", "State", "Candidate", "Began", "Why", box=None, header_style="bold")
    for each in found:
        state = Text(_words(each.state), style=_COLOURS.get(each.state, "cyan"))
        began = format_time(each.created_at)
        table.add_row(
            each.id, each.adapter, f"{each.number}", state, each.candidate or "–", began, Text(each.reason or "")
        )
    return table


def _whole(found: Round) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from graftwork.clients.cli.tables import format_time

    gates = "–"
    if found.gates is not None:
        said = "; ".join((*found.gates.refusals, *found.gates.doubts))
        gates = f"{found.gates.outcome}{f': {said}' if said else ''}"
    decision = "–"
    if found.decision is not None:
        replaced = f", in place of {found.decision.replaced}" if found.decision.replaced else ""
        decision = f"by {found.decision.by}, {format_time(found.decision.at)}{replaced}"
    rows = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in (found.rows or {}).items() if count)
    facts = {
        "Round": f"{found.number} of {found.adapter}",
        "State": _words(found.state),
        "Why": found.reason or "–",
        "Begins with": "the base: a control" if found.control else found.continues or "the base",
        "Live then": found.live,
        "New judgements": ", ".join(f"{count} {kind}" for kind, count in found.judgements.items()) or "–",
        "Job": found.job,
        "Rows": rows or "–",
        "Data": found.data_digest or "–",
        "Candidate": found.candidate or "–",
        "Gates": gates,
        "Experiment": found.experiment or "–",
        "Decision": decision,
        "Began": f"{format_time(found.created_at)} by {found.created_by}",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _plan(plan: RoundPlan) -> RenderableType:
    from rich.text import Text

    judgements = ", ".join(f"{count} {kind}" for kind, count in plan.judgements.items()) or "nothing new"
    begins = "a control, from the base" if plan.control else f"continues {plan.continues}"
    waits = "it is due now" if plan.due else f"it waits for {plan.waits_for}"
    decides = "an experiment decides" if plan.policy.get("experiment") else "a person decides"
    return Text(
        f"Round {plan.number} of {plan.adapter} ({begins}) would learn from {judgements}, beside what was said "
        f"before; {waits}; after its gates, {decides}. Nothing was begun."
    )


def _words(state: str) -> str:
    return state.replace("_", " ")
