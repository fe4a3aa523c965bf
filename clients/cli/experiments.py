"""``graftwork experiments``: start, status, list, stop, add-arm, ramp."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftwork.clients.cli.context import CommandContext, api_command, first_items
from graftwork.clients.errors import LocalFileError

if TYPE_CHECKING:
    from graftwork.clients.types.experiments import Experiment

app = typer.Typer(help="Find out which version is better, on live traffic.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment.", show_default=False)]
Reason = Annotated[str | None, typer.Option("--reason", help="For the history.")]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9.]+)([smhd]?)")


@app.command()
@api_command
def start(
    remote: CommandContext,
    name: Name,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Whose plain name takes part.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="VERSION[=WEIGHT]",
            help="A version's number, an alias, or base; the first one is the control. Without weights all are equal.",
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option("--shadow", metavar="VERSION=SHARE", help="Answers copies of that share, seen by nobody."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="METRIC", help="thumb, score, error_rate, latency, latency:over=2, … (thumb)"),
    ] = None,
    guardrail: Annotated[
        list[str] | None,
        typer.Option(
            "--guardrail", metavar="METRIC:…", help="Like error_rate:margin=0.05 or latency:over=2,limit=0.1."
        ),
    ] = None,
    promote_above: Annotated[
        float | None, typer.Option("--promote-above", help="Promote once the improvement is certainly above this. (0)")
    ] = None,
    stop_below: Annotated[
        float | None, typer.Option("--stop-below", help="Stop an arm once its improvement is certainly below. (0)")
    ] = None,
    max_units: Annotated[int | None, typer.Option("--max-units", min=1, help="End undecided after so many.")] = None,
    run_for: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="End undecided after 90m, 24h, 7d.")
    ] = None,
    automatic: Annotated[bool, typer.Option("--automatic", help="Act on decisions instead of saying so.")] = False,
    ramp: Annotated[
        str | None, typer.Option("--ramp", metavar="W,W,…", help="The treatment's weights in turn: 0.01,0.1,0.5.")
    ] = None,
    ramp_units: Annotated[int | None, typer.Option("--ramp-units", min=1, help="Units at each weight. (100)")] = None,
    ramp_wait: Annotated[
        str | None, typer.Option("--ramp-wait", metavar="TIME", help="Time at each weight. (0s)")
    ] = None,
    unit: Annotated[
        Literal["user", "episode"] | None, typer.Option("--unit", help="What gets an arm and counts once. (user)")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="TIME", help="How long what comes of a unit counts. (fits the metric)"),
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="How often it may be wrong. (0.05)")] = None,
    allocation: Annotated[
        Literal["fixed", "thompson"] | None, typer.Option("--allocation", help="Whether weights follow the better arm.")
    ] = None,
    unrated: Annotated[
        Literal["leave_out", "neutral"] | None, typer.Option("--unrated", help="What becomes of units nobody rated.")
    ] = None,
    covariate: Annotated[
        Literal["past", "none"] | None,
        typer.Option("--covariate", help="Whether units are compared with their own past. (past)"),
    ] = None,
    reserve: Annotated[
        float | None, typer.Option("--reserve", min=0, help="The part of alpha for arms that join later. (0.2)")
    ] = None,
    ratings: Annotated[
        Literal["all", "asked"] | None,
        typer.Option("--ratings", help="Count all feedback, or only what a log policy asked for. (all)"),
    ] = None,
    learned_days: Annotated[
        float | None,
        typer.Option("--learned-days", min=0, help="How long users a version learned from do not count. (7)"),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="The rest, as JSON: what POST /v1/experiments takes."),
    ] = None,
) -> None:
    """Start an experiment on an adapter's live traffic."""
    from graftwork.clients.cli import experiment_charts

    arms = [*(_arm(each) for each in arm or ()), *(_shadow(each) for each in shadow or ())]
    decision = _given(
        promote_above=promote_above,
        stop_below=stop_below,
        max_units=max_units,
        until=None if run_for is None else time.time() + _seconds(run_for, "--for"),
        automatic=automatic or None,
    )
    ramped = _given(
        weights=None if ramp is None else [_number(weight, "--ramp") for weight in ramp.split(",")],
        min_units=ramp_units,
        min_seconds=None if ramp_wait is None else _seconds(ramp_wait, "--ramp-wait"),
    )
    told = _given(
        adapter=adapter,
        arms=arms or None,
        metric=None if metric is None else _metric(metric, "--metric"),
        guardrails=None if guardrail is None else [_guardrail(each) for each in guardrail],
        decision=decision or None,
        ramp=ramped or None,
        unit=unit,
        window_seconds=None if window is None else _seconds(window, "--window"),
        alpha=alpha,
        reserve=reserve,
        allocation=allocation,
        unrated=unrated,
        covariate=covariate,
        ratings=ratings,
        learned_days=learned_days,
    )
    body = {"metric": "thumb", **(_plan_in(plan) if plan else {}), **told}
    body.pop("name", None)
    if not {"adapter", "arms"} <= body.keys():
        raise typer.BadParameter("say which --adapter it is about, and at least two arms with --arm.")
    started = remote.client.experiments.start(name, **body)
    remote.print_result(started, lambda: experiment_charts.experiment(started))
    remote.print_message(f"Look at it any time, it cannot be fooled by looking: graftwork experiments status {name}")


@app.command()
@api_command
def status(
    remote: CommandContext,
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again every two seconds until it ends.")] = False,
) -> None:
    """Show how an experiment stands, and draw its intervals over time."""
    from graftwork.clients.cli import experiment_charts

    shown = remote.client.experiments.get(name)
    if watch and not remote.json:
        _watch(remote, shown)
    else:
        remote.print_result(shown, lambda: experiment_charts.experiment(shown))


@app.command("list")
@api_command
def list_(
    remote: CommandContext,
    everything_: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 100,
) -> None:
    """List the experiments that run."""
    from graftwork.clients.cli import experiment_charts

    wanted = None if everything_ else "running"
    found = first_items(
        limit,
        lambda after, size: remote.client.experiments.list(status=wanted, after=after, limit=size),
        lambda experiment: experiment.name,
    )
    remote.print_result(found, lambda: experiment_charts.experiments(found))


@app.command()
@api_command
def stop(
    remote: CommandContext,
    name: Name,
    promote: Annotated[
        str | None, typer.Option("--promote", metavar="ARM", help="Make this arm's version live with it.")
    ] = None,
    reason: Reason = None,
) -> None:
    """End an experiment, for good."""
    from graftwork.clients.cli import experiment_charts

    ended = remote.client.experiments.stop(name, promote=promote, reason=reason)
    remote.print_result(ended, lambda: experiment_charts.experiment(ended))


@app.command("add-arm")
@api_command
def add_arm(
    remote: CommandContext,
    name: Name,
    arm: Annotated[
        str,
        typer.Argument(metavar="VERSION=WEIGHT", help="What joins, and its share of all units.", show_default=False),
    ],
    called: Annotated[str | None, typer.Option("--name", help="Its name, if not that of the version.")] = None,
    reason: Reason = None,
) -> None:
    """Let another treatment join a running experiment, at the cost of the control."""
    from graftwork.clients.cli import experiment_charts

    joining = _arm(arm)
    if "weight" not in joining:
        raise typer.BadParameter(f"say which share of the units it gets: {arm}=0.2.")
    changed = remote.client.experiments.add_arm(name, joining | _given(name=called), reason=reason)
    remote.print_result(changed, lambda: experiment_charts.experiment(changed))


@app.command()
@api_command
def ramp(
    remote: CommandContext,
    name: Name,
    to: Annotated[
        float | None, typer.Option("--to", min=0, max=1, help="The weight. Default: the ramp's next.")
    ] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Which treatment, if there are several.")] = None,
    reason: Reason = None,
) -> None:
    """Widen a treatment now; 0 takes it out."""
    from graftwork.clients.cli import experiment_charts

    now = remote.client.experiments.get(name)
    if arm is None:
        if len(now.treatments) != 1:
            names = ", ".join(each.name for each in now.treatments) or "none"
            raise typer.BadParameter(f"say which treatment with --arm: {names}.")
        arm = now.treatments[0].name
    weight = _next_weight(now) if to is None else to
    changed = remote.client.experiments.set_weights(name, {arm: weight}, reason=reason)
    remote.print_result(changed, lambda: experiment_charts.experiment(changed))


def _watch(remote: CommandContext, shown: Experiment) -> None:
    from rich.live import Live

    from graftwork.clients.cli import experiment_charts

    with Live(experiment_charts.experiment(shown), console=remote.out, auto_refresh=False) as live:
        while shown.running:
            time.sleep(2)
            shown = remote.client.experiments.get(shown.name)
            live.update(experiment_charts.experiment(shown), refresh=True)


# What is given on the command line, as the server takes it


def _arm(text: str) -> dict[str, Any]:
    version, equals, weight = text.partition("=")
    arm: dict[str, Any] = {"version": int(version) if version.isdecimal() else version}
    return arm | ({"weight": _number(weight, "--arm")} if equals else {})


def _shadow(text: str) -> dict[str, Any]:
    version, _, share = text.partition("=")
    return {"version": int(version) if version.isdecimal() else version, "shadow": _number(share, "--shadow")}


def _metric(text: str, hint: str) -> str | dict[str, Any]:
    """Parse a metric: ``latency:over=2`` → {"name": "latency", "over": 2.0}; ``low`` and ``high`` are the range."""
    name, colon, rest = text.partition(":")
    if not colon:
        return name
    settings = _settings(rest, hint, ("over", "low", "high", "goal"))
    low, high = settings.pop("low", None), settings.pop("high", None)
    if low is not None or high is not None:
        settings["range"] = [0.0 if low is None else low, 1.0 if high is None else high]
    return {"name": name, **settings}


def _guardrail(text: str) -> dict[str, Any]:
    """Parse a guardrail: ``latency:over=2,limit=0.1`` → {"metric": {"name": "latency", "over": 2.0}, "limit": 0.1}"""
    name, _, rest = text.partition(":")
    settings = _settings(rest, "--guardrail", ("over", "low", "high", "goal", "limit", "margin", "alpha"))
    own: dict[str, Any] = {key: settings.pop(key) for key in ("limit", "margin", "alpha") if key in settings}
    left = ",".join(f"{key}={value}" for key, value in settings.items())
    return {"metric": _metric(f"{name}:{left}" if left else name, "--guardrail"), **own}


def _settings(text: str, hint: str, known: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise typer.BadParameter(f"{part!r} is none of {', '.join(f'{k}=…' for k in known)}.", param_hint=hint)
        found[key] = value if key == "goal" else _number(value, hint)
    return found


def _number(text: str, hint: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number.", param_hint=hint) from None


def _seconds(text: str, hint: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no length of time: write 30s, 90m, 24h or 7d.", param_hint=hint)
    return _number(found[1], hint) * _SECONDS[found[2] or "s"]


def _plan_in(file: Path) -> dict[str, Any]:
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LocalFileError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(plan, dict):
        raise LocalFileError(f"{file} holds no JSON object")
    return plan


def _next_weight(now: Experiment) -> float:
    weight = now.treatments[0].weight or 0.0
    steps = now.ramp.weights if now.ramp else ()
    wider = next((step for step in steps if step > weight + 1e-9), None)
    if wider is None:
        raise typer.BadParameter(f"it has no ramp that goes on from {weight:g}: say how far with --to.")
    return wider


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
