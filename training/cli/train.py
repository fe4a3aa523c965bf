"""``graftwork train``: its options, which become a job or a learning policy of the server, or a run in this process.

Importing it does not import torch, so that ``--help`` is fast.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from graftwork.adapters.learning.job import METHODS
from graftwork.adapters.learning.knobs import KNOBS, OPTIONS
from graftwork.clients.cli.context import CommandContext, api_command
from graftwork.training.cli import reading_options
from graftwork.training.cli.knob_options import with_knobs

_DATA = "The data"
_RUN = "The run"
_RESULT = "The result"
_LOOP = "By itself"
_METHODS = f"{', '.join(name for name in METHODS if name != 'auto')}, or auto, which looks at the data."


@api_command
@with_knobs
def train(
    remote: CommandContext,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The adapter to train, for example intents.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="A file that graftwork data check reads, or a data set that it kept: support@3.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    from_feedback: Annotated[
        bool,
        typer.Option("--from-feedback", help="Learn from what was said of its answers.", rich_help_panel=_DATA),
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, not as a job of the server's.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit the job and do not watch it.")] = False,
    continued: Annotated[
        str | None,
        typer.Option(
            "--continue", metavar="MODEL", help="Continue this version: intents, intents@3.", rich_help_panel=_RUN
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help=_METHODS,
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    format: Annotated[str | None, reading_options.format(_DATA)] = None,
    prompt_column: Annotated[str | None, reading_options.prompt_column(_DATA)] = None,
    completion_column: Annotated[str | None, reading_options.completion_column(_DATA)] = None,
    prompt_template: Annotated[str | None, reading_options.prompt_template(_DATA)] = None,
    system: Annotated[str | None, reading_options.system(_DATA)] = None,
    plain: Annotated[bool, reading_options.plain(_DATA)] = False,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            envvar="GRAFTWORK_BASE",
            help="Hub id or folder. Default: the embedded base.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="With --local: train all weights and export a model, which cannot be swapped while serving.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            envvar="GRAFTWORK_HOME",
            help="Where the base is kept. Default: ~/.graftwork.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="New folder for the adapter. Default: HOME/trained/NAME-TIME.", rich_help_panel=_RESULT
        ),
    ] = None,
    alias: Annotated[
        str | None, typer.Option("--alias", help="Move this alias to the new version.", rich_help_panel=_RESULT)
    ] = None,
    push: Annotated[
        bool, typer.Option("--push/--no-push", help="Push it to the server when done.", rich_help_panel=_RESULT)
    ] = True,
    watch: Annotated[
        bool | None,
        typer.Option(
            "--watch/--no-watch",
            help="Let it learn by itself from what is said of its answers, and tell what happens; or no longer.",
            rich_help_panel=_LOOP,
            show_default=False,
        ),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(
            "--after", min=0, metavar="M", help="After M new judgements; 0: never for that. 50.", rich_help_panel=_LOOP
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every", min=0, metavar="DAYS", help="So many days later; 0: never for that. 7.", rich_help_panel=_LOOP
        ),
    ] = None,
    at_least: Annotated[
        int | None,
        typer.Option(
            "--at-least", min=1, metavar="M", help="New judgements wanted even then. 10.", rich_help_panel=_LOOP
        ),
    ] = None,
    control_every: Annotated[
        int | None,
        typer.Option(
            "--control-every",
            min=0,
            metavar="K",
            help="Every Kth round begins with the base, to compare with; 0: none does, as by default.",
            rich_help_panel=_LOOP,
        ),
    ] = None,
    auto: Annotated[
        Literal["candidate", "experiment"] | None,
        typer.Option(
            "--auto",
            help="What becomes of a candidate: it waits for a person, as by default, or an experiment decides.",
            rich_help_panel=_LOOP,
            show_default=False,
        ),
    ] = None,
    **knobs: Any,
) -> None:
    """Train an adapter, and make it the next version.

    The server does it, as a job; Ctrl-C stops watching it. With --local this process does, and pushes the result; it
    writes a PEFT folder, which stays, and Ctrl-C stops the run and leaves nothing behind. With --watch the server does
    it again and again, also after Ctrl-C, until --no-watch.
    """
    if watch is not None:
        loop = {"after": after, "every": every, "at_least": at_least, "control_every": control_every, "auto": auto}
        _loop(remote, name, knobs, loop, on=watch, method=method, detach=detach)
        return
    for option in LOOP_ONLY:
        if option in remote.explicit:
            hint = _flag(option)
            raise typer.BadParameter(f"{hint} says when an adapter learns by itself: add --watch.", param_hint=hint)
    if (data is None) != from_feedback:
        raise typer.BadParameter("give a file, or --from-feedback, one of the two.", param_hint="--data")
    if not local:
        _submit(remote, name, data, knobs, continued=continued, method=method, detach=detach)
        return
    if data is None or continued is not None or detach:
        raise typer.BadParameter(
            "only jobs learn from feedback, continue versions and can be left alone: leave --local away.",
            param_hint="--local",
        )
    from graftwork.training.cli import local as here

    defaults = {knob: knobs[knob] for knob, option in OPTIONS.items() if option.has_default}
    home = (home or Path("~/.graftwork")).expanduser()
    here.train(
        remote,
        here.LocalTraining(
            name=name,
            data=data,
            columns={
                "prompt": prompt_column,
                "completion": completion_column,
                "template": prompt_template,
                "system": system,
                "plain": plain,
            },
            format=format,
            method=method or "supervised",
            hyperparameters=_given(remote, knobs) | defaults | ({"variant": "full"} if full else {}),
            base=base,
            home=home,
            folder=out or home / "trained" / f"{name}-{datetime.now():%Y%m%d-%H%M%S}",
            push=push and not full,
            alias=alias,
        ),
    )


LOCAL_ONLY = (
    *("format", "prompt_column", "completion_column", "prompt_template", "system", "plain", "base", "home", "out"),
    *("alias", "push", "full"),
    *(knob for knob, option in OPTIONS.items() if option.local),
)
"""Options that jobs do not have."""

LOOP_ONLY = ("after", "every", "at_least", "control_every", "auto")
"""Options of learning policies only."""


def _submit(
    remote: CommandContext,
    name: str,
    data: Path | None,
    knobs: dict[str, Any],
    *,
    continued: str | None,
    method: str | None,
    detach: bool,
) -> None:
    """Submit a job with the options that were given; the server has defaults for the others.

    Raises:
        typer.BadParameter: for an option that jobs do not have.
    """
    from graftwork.clients.cli.learning import jobs

    jobs.submit(
        remote,
        name,
        data,
        continued=continued,
        method=method,
        hyperparameters=_hyperparameters(remote, knobs),
        seed=knobs["seed"],
        detach=detach,
    )


def _hyperparameters(remote: CommandContext, knobs: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a job that were given.

    Raises:
        typer.BadParameter: for an option that jobs do not have.
    """
    for option in LOCAL_ONLY:
        if option in remote.explicit:
            hint = _flag(option)
            raise typer.BadParameter(f"jobs have no {hint}: add --local, or leave it away.", param_hint=hint)
    found: dict[str, Any] = {}
    for name, value in _given(remote, knobs).items():
        job = KNOBS[name].job
        if job is None:  # a field of the job, not a hyperparameter
            continue
        if job.whole and value != int(value):
            raise typer.BadParameter(f"a job's {name} are a whole number.", param_hint=_flag(name))
        found[KNOBS[name].job_name] = int(value) if job.whole else value
    return found


def _given(remote: CommandContext, knobs: dict[str, Any]) -> dict[str, Any]:
    return {knob: value for knob, value in knobs.items() if knob in remote.explicit}


def _loop(
    remote: CommandContext,
    name: str,
    knobs: dict[str, Any],
    loop: dict[str, Any],
    *,
    on: bool,
    method: str | None,
    detach: bool,
) -> None:
    """Set or remove the learning policy of an adapter; 0 turns a trigger off."""
    from graftwork.clients.cli.learning import learning_policies

    for option in ("data", "local", "continued", "seed"):
        if option in remote.explicit:
            hint = {"continued": "--continue"}.get(option, _flag(option))
            raise typer.BadParameter(
                f"an adapter that learns by itself continues its live version from feedback: leave {hint} away.",
                param_hint=hint,
            )
    given = _hyperparameters(remote, knobs)
    if not on:
        if given or method or remote.explicit & {*LOOP_ONLY}:
            raise typer.BadParameter(
                "with --no-watch nothing is learned: leave the rest away.", param_hint="--no-watch"
            )
        learning_policies.unwatch(remote, name)
        return
    settings = {option: value or None for option, value in loop.items() if option in remote.explicit}
    if "every" in settings:
        settings["every_days"] = settings.pop("every")
    if "auto" in settings:
        settings["experiment"] = settings.pop("auto") == "experiment"
    settings |= {"hyperparameters": given} if given else {}
    settings |= {"method": method} if method else {}
    learning_policies.watch(remote, name, settings, detach=detach)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
