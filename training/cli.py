"""``graftwork train``: the options, what is checked before the first step, and what is said at the end.

Torch-free at import, so that ``--help`` is quick. Knows no training: ``run`` plans and carries out, ``publish`` pushes.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftwork.clients.cli.exits import ExitCode, Stopped, stopped_in_order
from graftwork.clients.cli.remote import Remote, over_http
from graftwork.training import reading_options

if TYPE_CHECKING:
    from graftwork.adapters.base import BaseInfo
    from graftwork.clients.types import PushedVersion
    from graftwork.training.config import TrainConfig
    from graftwork.training.data.columns import Columns
    from graftwork.training.data.store import Stored
    from graftwork.training.publish import Card
    from graftwork.training.run import Run

_DATA = "The data"
_RUN = "The run"
_RESULT = "The result"
_LOOP = "By itself"


@over_http
def train(
    remote: Remote,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The adapter to train, for example intents.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="A file that graftwork data check reads, or with --local a data set that it kept: support@3.",
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
            help="Of a job: supervised, dpo, kto, weighted_sft, pretrain or auto.",
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
    validation: Annotated[
        float, typer.Option("--validation", help="Share of rows to measure on.", rich_help_panel=_DATA)
    ] = 0.1,
    max_length: Annotated[
        int, typer.Option("--max-length", help="Tokens of a row; longer ones lose their end.", rich_help_panel=_DATA)
    ] = 1024,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            envvar="GRAFTWORK_BASE",
            help="Hub id or folder. Default: the embedded base.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the rows.", rich_help_panel=_RUN)] = 3.0,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Peak rate.", rich_help_panel=_RUN)] = 5e-4,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows a step.", rich_help_panel=_RUN)] = 16,
    rank: Annotated[int, typer.Option("--rank", help="Width of the adapter.", rich_help_panel=_RUN)] = 16,
    alpha: Annotated[
        int | None, typer.Option("--alpha", help="Scale; twice the rank if not given.", rich_help_panel=_RUN)
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            "--search",
            min=2,
            max=100,
            metavar="N",
            help="Try N rates, ranks and epochs around these; the best on held-out rows goes on.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            "--report-to",
            metavar="TRACKER",
            help="Tell every measurement to wandb, mlflow or trackio, too.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same adapter.", rich_help_panel=_RUN)] = 0,
    precision: Annotated[
        Literal["auto", "bfloat16", "float32"],
        typer.Option("--precision", help="What the forward pass computes in.", rich_help_panel=_RUN),
    ] = "auto",
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
) -> None:
    """Train an adapter, and make it the next version.

    The server does it, as a job; Ctrl-C stops watching it. With --local this process does, and pushes the result; it
    writes a PEFT folder, which stays, and Ctrl-C stops the run and leaves nothing behind. With --watch the server does
    it again and again, also after Ctrl-C, until --no-watch.
    """
    knobs = {
        "n_epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "rank": rank,
        "alpha": alpha,
        "max_length": max_length,
        "search": search,
        "report_to": report_to,
    }
    if watch is not None:
        loop = {"after": after, "every": every, "at_least": at_least, "control_every": control_every}
        _loop(remote, name, knobs, loop, on=watch, method=method, detach=detach)
        return
    for option in LOOP_ONLY:
        if option in remote.given:
            hint = _flag(option)
            raise typer.BadParameter(f"{hint} says when an adapter learns by itself: add --watch.", param_hint=hint)
    if (data is None) != from_feedback:
        raise typer.BadParameter("give a file, or --from-feedback, one of the two.", param_hint="--data")
    if not local:
        _submit(remote, name, data, knobs, continued=continued, method=method, seed=seed, detach=detach)
        return
    if data is None or continued is not None or detach or method not in (None, "supervised"):
        raise typer.BadParameter(
            "only jobs learn from feedback, continue versions, have methods and can be left alone: leave --local away.",
            param_hint="--local",
        )
    from graftwork.adapters.errors import GraftworkError
    from graftwork.training.config import TrainConfig
    from graftwork.training.data.columns import Columns

    home = (home or Path("~/.graftwork")).expanduser()
    folder = out or home / "trained" / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        columns = Columns(
            prompt=prompt_column, completion=completion_column, template=prompt_template, system=system, plain=plain
        )
        config = TrainConfig(
            rank=rank,
            alpha=2 * rank if alpha is None else alpha,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            max_length=max_length,
            validation=validation,
            seed=seed,
            precision=precision,
            search=search or 0,
            report_to=tuple(report_to or ()),
        )
        with stopped_in_order():
            card = _train(
                remote,
                name,
                _data(data, columns, format, home),
                columns,
                config,
                format=format,
                base=base,
                home=home,
                folder=folder,
                push=push,
                alias=alias,
            )
    except GraftworkError as error:
        typer.echo(typer.style("error: ", fg="red") + error.message, err=True)
        raise typer.Exit(ExitCode.FAILED) from error
    except Stopped:
        remote.say("Stopped. Nothing was written, nothing was pushed.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    version = _push(remote, folder, card, alias) if push else None
    if version is None:
        remote.say(f"Push it: {_push_command(name, folder, alias)}")
    remote.answer(_result(folder, card, version), lambda: version.id if version else str(folder))


LOCAL_ONLY = (
    *("format", "prompt_column", "completion_column", "prompt_template", "system", "plain", "validation", "base"),
    *("precision", "home", "out", "alias", "push"),
)
"""What a job has no option for."""

LOOP_ONLY = ("after", "every", "at_least", "control_every")
"""What only an adapter has that learns by itself."""


def _submit(
    remote: Remote,
    name: str,
    data: Path | None,
    knobs: dict[str, Any],
    *,
    continued: str | None,
    method: str | None,
    seed: int,
    detach: bool,
) -> None:
    """Have the server train. What was not given is the server's choice; what jobs do not have is refused."""
    from graftwork.clients.cli import jobs

    jobs.submit(
        remote,
        name,
        data,
        continued=continued,
        method=method,
        hyperparameters=_hyperparameters(remote, knobs),
        seed=seed,
        detach=detach,
    )


def _hyperparameters(remote: Remote, knobs: dict[str, Any]) -> dict[str, Any]:
    """Those of a job that were given; an option that jobs do not have is refused."""
    for option in LOCAL_ONLY:
        if option in remote.given:
            hint = _flag(option)
            raise typer.BadParameter(f"jobs have no {hint}: add --local, or leave it away.", param_hint=hint)
    if knobs["n_epochs"] != int(knobs["n_epochs"]):
        raise typer.BadParameter("a job's epochs are a whole number.", param_hint="--epochs")
    knobs["n_epochs"] = int(knobs["n_epochs"])
    return {knob: value for knob, value in knobs.items() if knob.removeprefix("n_") in remote.given}


def _loop(
    remote: Remote,
    name: str,
    knobs: dict[str, Any],
    loop: dict[str, Any],
    *,
    on: bool,
    method: str | None,
    detach: bool,
) -> None:
    """Have the server train whenever there is something new, or no longer. 0 turns a reason off."""
    from graftwork.clients.cli import learning

    for option in ("data", "local", "continued", "seed"):
        if option in remote.given:
            hint = {"continued": "--continue"}.get(option, _flag(option))
            raise typer.BadParameter(
                f"an adapter that learns by itself continues its live version from feedback: leave {hint} away.",
                param_hint=hint,
            )
    given = _hyperparameters(remote, knobs)
    if not on:
        if given or method or remote.given & {*LOOP_ONLY}:
            raise typer.BadParameter(
                "with --no-watch nothing is learned: leave the rest away.", param_hint="--no-watch"
            )
        learning.unwatch(remote, name)
        return
    settings = {option: value or None for option, value in loop.items() if option in remote.given}
    if "every" in settings:
        settings["every_days"] = settings.pop("every")
    settings |= {"hyperparameters": given} if given else {}
    settings |= {"method": method} if method else {}
    learning.watch(remote, name, settings, detach=detach)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _train(
    remote: Remote,
    name: str,
    data: Path | Stored,
    columns: Columns,
    config: TrainConfig,
    *,
    format: str | None,
    base: str | None,
    home: Path,
    folder: Path,
    push: bool,
    alias: str | None,
) -> Card:
    """Everything up to the finished folder; whatever can be found out early is found out before the first step."""
    from graftwork.adapters.base import prepare
    from graftwork.adapters.names import check_alias
    from graftwork.training import display
    from graftwork.training.run import carry_out, check_free, plan

    check_free(folder)
    if alias is not None:
        check_alias(alias)
    if push:
        _check_reachable(remote)  # before the base, which may take minutes to fetch
    with display.preparing(remote.err) as progress:
        info = prepare(base, home, progress)
    if push:
        _check_same_base(remote, info)
    run = plan(name=name, data=data, columns=columns, format=format, base=info, config=config)
    display.plan(remote.err, run)
    if config.search:
        return _search(remote, run, folder)
    with display.training(remote.err) as listener:
        card = carry_out(run, folder, listener, run_name=folder.name)
    display.finished(remote.err, card.metrics)
    return card


def _search(remote: Remote, run: Run, folder: Path) -> Card:
    """The same for the best of several trials, which are kept until then beside the folder."""
    import tempfile

    from graftwork.training import display, trainer
    from graftwork.training.search import search

    remote.say(str(trainer.estimated(run.base, run.rows, run.config)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.search-", dir=folder.parent) as place,
        display.training(remote.err) as listener,
    ):
        card = search(run, folder, listener, place=Path(place), run_name=folder.name, say=remote.say)
    display.trials(remote.err, card.trials)
    display.finished(remote.err, card.metrics)
    return card


def _data(data: Path, columns: Columns, format: str | None, home: Path) -> Path | Stored:
    """The file, or the data set that was kept under this name. NotFound if it looks like one and is none."""
    from graftwork.adapters.errors import ConfigurationError
    from graftwork.adapters.names import is_name
    from graftwork.training.data.columns import Columns
    from graftwork.training.data.store import DataStore

    text = str(data)
    if data.exists() or "@" not in text or not is_name(text.partition("@")[0]):
        return data
    if format is not None or columns != Columns():
        raise ConfigurationError(f"{text} is a data set, whose rows were read when it was kept: leave out how to read.")
    return DataStore(home / "datasets").get(text)


def _check_reachable(remote: Remote) -> None:
    """Raises what the push would meet in the end: no server, a wrong key, a server that does not serve."""
    from graftwork.clients.errors import GraftworkConnectionError

    try:
        remote.client.models()
    except GraftworkConnectionError as error:
        message = f"{error} Or train without it, and push the folder later: --no-push. Nothing was trained."
        raise GraftworkConnectionError(message, url=error.url) from None


def _check_same_base(remote: Remote, base: BaseInfo) -> None:
    """A server refuses the adapter of another base: say so before hours are spent on it."""
    from graftwork.adapters.errors import ConfigurationError

    served = next(iter(remote.client.models()))
    digest = served.graftwork.get("digest")
    if digest is not None and digest != base.digest:
        raise ConfigurationError(
            f"The server at {remote.client.url} serves the base {served.id}, and this run would train on {base.id}, "
            "which has other weights, tokenizer or chat template: the push would be refused. Name the server's base "
            "with --base, or keep the adapter here with --no-push.",
            param="base",
        )


def _push(remote: Remote, folder: Path, card: Card, alias: str | None) -> PushedVersion:
    """Push, and say what the version is called; on failure say where the adapter is and how to push it later."""
    from graftwork.clients.errors import GraftworkClientError
    from graftwork.training.publish import push

    try:
        with remote.err.status(f"Pushing {folder.name}"):
            version = push(remote.client, folder, card, alias=alias)
    except (GraftworkClientError, KeyboardInterrupt) as error:
        remote.say(f"The adapter is kept in {folder}\nPush it again: {_push_command(card.name, folder, alias)}")
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        raise
    if not version.created:
        remote.say(f"The very same bytes are {version.id} already: nothing was added.")
    remote.say(f'Callable as "{version.id}". Its files stay in {folder}')
    if alias is None and version.version > 1:
        remote.say(f"Make it live: graftwork adapters promote {version.id}")
    return version


def _push_command(name: str, folder: Path, alias: str | None) -> str:
    import shlex

    words = ["graftwork", "adapters", "push", name, str(folder), *(["--alias", alias] if alias else [])]
    return shlex.join(words)


def _result(folder: Path, card: Card, version: PushedVersion | None) -> dict[str, Any]:
    return {
        "name": card.name,
        "version": version and version.id,
        "folder": str(folder),
        "base_digest": card.base_digest,
        "data_digest": card.data_digest,
        **card.to_json(),
    }
