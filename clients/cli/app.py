"""The top level of the command line: options for all commands, and the groups of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from graftwork.clients.cli import (
    adapters,
    audit,
    batches,
    chat,
    exit_codes,
    experiments,
    feedback,
    interactions,
    keys,
    webhooks,
)
from graftwork.clients.cli.context import CommonOptions
from graftwork.clients.cli.learning import jobs, learning_policies, rounds
from graftwork.version import __version__

app = typer.Typer(
    name="graftwork",
    help="One quantized base model, many live LoRA adapters.",
    epilog=exit_codes.SUMMARY,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold keys and prompts
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graftwork {__version__}")
        raise typer.Exit


@app.callback()
def common(
    ctx: typer.Context,
    url: Annotated[
        str | None, typer.Option("--url", envvar="GRAFTWORK_URL", help="The server. Default: http://127.0.0.1:8000.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="GRAFTWORK_API_KEY", show_envvar=True, help="Bearer key.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on standard output, messages on standard error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    ctx.obj = CommonOptions(url=url, api_key=api_key, json=as_json)


app.add_typer(adapters.app, name="adapters")
app.command("audit")(audit.audit)
app.add_typer(batches.app, name="batches")
app.command("chat")(chat.chat)
app.add_typer(experiments.app, name="experiments")
app.add_typer(feedback.app, name="feedback")
app.add_typer(interactions.app, name="interactions")
jobs.app.command("policies")(learning_policies.policies)
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(rounds.app, name="rounds")
app.add_typer(webhooks.app, name="webhooks")
