"""``graftwork train NAME --watch`` and ``graftwork jobs policies``: adapters that learn by themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from graftwork.clients.cli.context import CommandContext, api_command, paginate
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.errors import NotFoundError
from graftwork.clients.types.learning.rounds import JOB_STATES

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graftwork.clients.types.learning.learning_policies import LearningPolicy
    from graftwork.clients.types.learning.rounds import Round

POLL_SECONDS: Final = 2.0
SETTINGS: Final = ("after", "every_days", "at_least", "control_every", "method", "hyperparameters", "experiment")


@api_command
def policies(remote: CommandContext) -> None:
    """List the adapters that learn by themselves, and how they stand."""
    found = list(remote.client.learning_policies.list())
    remote.print_result(found, lambda: _table(found))


def watch(remote: CommandContext, name: str, settings: Mapping[str, Any], *, detach: bool) -> None:
    """Set the learning policy of an adapter, and print its events until Ctrl-C.

    Args:
        remote: the client and the output.
        name: the name of the adapter.
        settings: fields of the policy; others keep their values, or have defaults.
        detach: whether to return without printing events.
    """
    policy = _set(remote, name, settings)
    remote.print_message(f"{name} learns by itself: {_when(policy)}. Take it away: graftwork train {name} --no-watch")
    if detach:
        remote.print_result(policy, lambda: _line(policy))
        return
    try:
        _follow(remote, policy)
    except KeyboardInterrupt:
        remote.print_message(f"{name} goes on learning by itself. Take it away: graftwork train {name} --no-watch")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def unwatch(remote: CommandContext, name: str) -> None:
    """Remove the learning policy of an adapter."""
    policy = remote.client.learning_policies.remove(name)
    remote.print_result(policy, lambda: f"{name} no longer learns by itself.")
    if policy.last_round is not None and not policy.last_round.ended:
        remote.print_message(f"The round under way goes on. Take it back: graftwork rounds undo {policy.last_round.id}")


def _set(remote: CommandContext, name: str, settings: Mapping[str, Any]) -> LearningPolicy:
    there: LearningPolicy | None
    try:
        there = remote.client.learning_policies.get(name)
    except NotFoundError as missing:
        if missing.code != "policy_not_found":
            raise
        there = None
    if there is not None and not settings:
        return there
    before = {} if there is None else {setting: getattr(there, setting) for setting in SETTINGS}
    return remote.client.learning_policies.set(name, **{**before, **settings})


def _follow(remote: CommandContext, policy: LearningPolicy) -> None:
    """Print each change of a policy: what it waits for, the events of a round, its end. With --json, as JSON lines."""
    told: str | None = None
    shown: LearningPolicy | None = None
    heard: dict[str, str] = {}
    told_of = None if policy.last_round is None else (policy.last_round.id, policy.last_round.state)
    while True:
        if remote.json and policy != shown:
            _print(policy)
        shown = policy
        last = policy.last_round
        if last is not None and (last.id, last.state) != told_of:
            _print_new_events(remote, last.job, heard)
            told_of = (last.id, last.state)
            if last.state not in JOB_STATES:
                remote.print_message(_round_result(last))
        elif last is not None and last.state in JOB_STATES:
            _print_new_events(remote, last.job, heard)
        waits_for = _waits_for(policy)
        if waits_for != told and (last is None or last.state not in JOB_STATES):
            remote.print_message(waits_for)
            told = waits_for
        time.sleep(POLL_SECONDS)
        try:
            policy = remote.client.learning_policies.get(policy.adapter)
        except NotFoundError:
            remote.print_message(f"{policy.adapter} no longer learns by itself: somebody took the policy away.")
            return


def _print_new_events(remote: CommandContext, job: str, heard: dict[str, str]) -> None:
    new = []
    for event in paginate(lambda after: remote.client.jobs.events(job, after=after, limit=100), lambda one: one.id):
        if event.id == heard.get(job):
            break
        new.append(event)
    for event in reversed(new):
        heard[job] = event.id
        if event.type == "message":
            remote.print_message(f"{job}  {event.message}")


def _print(policy: LearningPolicy) -> None:
    from graftwork.clients.http.wire import dump

    typer.echo(json.dumps(dump(policy), ensure_ascii=False))


def _table(found: list[LearningPolicy]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("Adapter", "Learns", "New", "Waits for", "Rounds", "The last one", box=None, header_style="bold")
    for policy in found:
        table.add_row(
            policy.adapter,
            _when(policy),
            f"{policy.judgements}",
            Text(policy.waits_for or "a round is due"),
            f"{policy.rounds}",
            Text("–" if policy.last_round is None else _round_result(policy.last_round)),
        )
    return table if found else Text("No adapter learns by itself. Let one: graftwork train NAME --watch")


def _line(policy: LearningPolicy) -> RenderableType:
    from rich.text import Text

    last = "" if policy.last_round is None else f"\n{_round_result(policy.last_round)}"
    return Text.assemble((policy.adapter, "bold"), f": {_when(policy)}\n{_waits_for(policy)}{last}")


def _when(policy: LearningPolicy) -> str:
    reasons = [] if policy.after is None else [f"after {policy.after} new judgements"]
    if policy.every_days is not None:
        days = "day" if policy.every_days == 1 else f"{policy.every_days:g} days"
        reasons.append(f"every {days} with at least {policy.at_least}")
    control = f"; every {policy.control_every}. round is a control" if policy.control_every else ""
    experiment = "; an experiment decides about candidates" if policy.experiment else ""
    return " or ".join(reasons) + control + experiment


def _waits_for(policy: LearningPolicy) -> str:
    new = f"{policy.judgements} new judgement{'' if policy.judgements == 1 else 's'}"
    return f"{new}: waiting for {policy.waits_for}" if policy.waits_for else f"{new}: a round is due"


def _round_result(last: Round) -> str:
    kind = "a control" if last.control else f"continues {last.continues}"
    candidate = f" {last.candidate}," if last.candidate else ""
    return f"Round {last.number} ({kind}):{candidate} {last.state.replace('_', ' ')}: {last.reason or ''}"
