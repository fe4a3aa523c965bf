"""``graftwork train --local``: a run in this process, and the push of its adapter.

Importing it does not import torch, so that errors in options are reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.learning import data_sets
from graftwork.adapters.learning.job import METHODS
from graftwork.clients.cli.context import CommandContext
from graftwork.clients.cli.exit_codes import CommandInterrupted, ExitCode, interrupted_by_signals
from graftwork.training.cli import pushing
from graftwork.training.config import TrainConfig
from graftwork.training.data.read.columns import Columns
from graftwork.training.methods import rows as rows_module

if TYPE_CHECKING:
    from graftwork.adapters.base import BaseInfo
    from graftwork.clients.types.adapters import PushedVersion
    from graftwork.training.data.store import StoredDataSet
    from graftwork.training.run.card import Card
    from graftwork.training.run.plan import TrainingRun


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """The options of a local run.

    Attributes:
        name: name of the adapter.
        data: a file, or the id of a stored data set: ``support@3``.
        columns: fields of Columns.
        format: format of the file; detected if None.
        method: ``auto``, ``supervised``, or one of TRAINING_METHODS.
        hyperparameters: fields of TrainConfig that were given, and ``teacher``, a folder or hub id.
        base: hub id or folder of the base; the embedded base if None.
        home: folder of the base and the data sets.
        folder: the folder to create for the result.
        push: whether to push the result.
        alias: alias to move to the pushed version.
    """

    name: str
    data: Path
    columns: dict[str, Any]
    format: str | None
    method: str
    hyperparameters: dict[str, Any]
    base: str | None
    home: Path
    folder: Path
    push: bool
    alias: str | None

    @property
    def full(self) -> bool:
        """Whether all weights are trained."""
        return self.hyperparameters.get("variant") == "full"

    @property
    def push_command(self) -> str:
        """The command that pushes the result later."""
        import shlex

        alias = ["--alias", self.alias] if self.alias else []
        return shlex.join(["graftwork", "adapters", "push", self.name, str(self.folder), *alias])


def train(remote: CommandContext, wish: LocalTraining) -> None:
    """Carry out the run, push its result, and print it. Ctrl-C stops the run and leaves nothing behind.

    Args:
        remote: the server to push to, and the consoles.
        wish: the options of the run.

    Raises:
        typer.Exit: if the run fails or is interrupted.
        GraftworkClientError: if the push fails; the result is kept.
    """
    try:
        with interrupted_by_signals():
            card = _train(remote, wish)
    except GraftworkError as error:
        typer.echo(typer.style("error: ", fg="red") + error.message, err=True)
        raise typer.Exit(ExitCode.FAILED) from error
    except CommandInterrupted:
        remote.print_message("Stopped. Nothing was written, nothing was pushed.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    version = _push(remote, wish, card) if wish.push else None
    if wish.full:
        remote.print_message(
            "This is a model of its own, which cannot be swapped while serving. Serve it: graftwork serve --base "
            f"{wish.folder}"
        )
    elif version is None:
        remote.print_message(f"Push it: {wish.push_command}")
    remote.print_result(_result(wish.folder, card, version), lambda: version.id if version else str(wish.folder))


def _train(remote: CommandContext, wish: LocalTraining) -> Card:
    """Check everything that can be checked beforehand, then train."""
    from graftwork.adapters.base import prepare
    from graftwork.adapters.names import check_alias, check_name
    from graftwork.training.cli import display
    from graftwork.training.run.execution import check_free, execute
    from graftwork.training.run.material import load_material
    from graftwork.training.run.plan import assemble_run, default_writer

    columns = Columns(**wish.columns)
    data = _data(wish, columns)
    check_free(wish.folder)
    if wish.alias is not None:
        check_alias(wish.alias)
    if wish.push:
        _check_reachable(remote)  # before the base, which may take minutes to fetch
    teacher = wish.hyperparameters.get("teacher")
    if wish.method != "auto":
        _config(wish, wish.method)  # what is wrong with it is said before anything is fetched
    with display.preparing(remote.err) as progress:
        info = prepare(wish.base, wish.home, progress)
        teacher = None if teacher is None else prepare(teacher, wish.home, progress)
    check_name(wish.name, base_id=info.id)
    if wish.push:
        _check_same_base(remote, info)
    read = load_material(data, columns=columns, format=wish.format, share=wish.hyperparameters["validation"])
    method, reason = wish.method, ""
    if wish.method == "auto":
        choice = rows_module.choose_method(
            rows_module.count_signals(row for rows in read.sides.values() for row in rows)
        )
        method, reason = choice.method, choice.reason
        remote.print_message(f"Method {method}: {reason}")
    config = _config(wish, method, num_rows=len(read.sides["train"]))
    with display.writing(remote.err) as on_progress:
        writer = partial(default_writer, on_progress=on_progress)
        run = assemble_run(wish.name, read, base=info, config=config, teacher=teacher, reason=reason, writer=writer)
    display.plan(remote.err, run)
    if config.search:
        return _search(remote, run, wish.folder)
    with display.training(remote.err) as listener:
        card = execute(run, wish.folder, listener, run_name=wish.folder.name)
    display.finished(remote.err, card.metrics)
    return card


def _config(wish: LocalTraining, method: str, num_rows: int | None = None) -> TrainConfig:
    found = rows_module.method_named(METHODS.get(method, method))
    knobs = {name: tuple(value) if isinstance(value, list) else value for name, value in wish.hyperparameters.items()}
    if wish.hyperparameters.get("teacher") is not None:
        knobs["teacher"] = Path(wish.hyperparameters["teacher"]).name
    return TrainConfig.start(found, continuing=False, num_rows=num_rows, **knobs)


def _search(remote: CommandContext, run: TrainingRun, folder: Path) -> Card:
    """Run a search; its trials are stored in a temporary folder beside the result."""
    import tempfile

    from graftwork.training.cli import display
    from graftwork.training.run import estimate
    from graftwork.training.run.search import search

    remote.print_message(str(estimate.estimate_run(run.base, run.rows, run.config)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.search-", dir=folder.parent) as place,
        display.training(remote.err) as listener,
    ):
        card = search(run, folder, listener, place=Path(place), run_name=folder.name, say=remote.print_message)
    display.trials(remote.err, card.trials)
    display.finished(remote.err, card.metrics)
    return card


def _data(wish: LocalTraining, columns: Columns) -> Path | StoredDataSet:
    """Return the file, or the stored data set with this id.

    Raises:
        NotFound: if it has the form of an id but does not exist.
        ConfigurationError: if options for reading files are given for a data set.
    """
    from graftwork.adapters.names import is_name
    from graftwork.training.data.store import DataStore

    text = str(wish.data)
    if wish.data.exists() or "@" not in text or not is_name(text.partition("@")[0]):
        return wish.data
    if wish.format is not None or columns != Columns():
        raise ConfigurationError(f"{text} is a data set, whose rows were read when it was kept: leave out how to read.")
    return DataStore(wish.home / data_sets.FOLDER).get(text)


def _check_reachable(remote: CommandContext) -> None:
    """Send a request to the server, to find errors of the push before the run.

    Raises:
        GraftworkClientError: if the server cannot be reached, or refuses the key.
    """
    from graftwork.clients.errors import GraftworkConnectionError

    try:
        remote.client.models()
    except GraftworkConnectionError as error:
        message = f"{error} Or train without it, and push the folder later: --no-push. Nothing was trained."
        raise GraftworkConnectionError(message, url=error.url) from None


def _check_same_base(remote: CommandContext, base: BaseInfo) -> None:
    """Check before the run that the server has the same base, as it would refuse the adapter of another one.

    Raises:
        ConfigurationError: if it has another base.
    """
    served = next(iter(remote.client.models()))
    digest = served.graftwork.get("digest")
    if digest is not None and digest != base.digest:
        raise ConfigurationError(
            f"The server at {remote.client.url} serves the base {served.id}, and this run would train on {base.id}, "
            "which has other weights, tokenizer or chat template: the push would be refused. Name the server's base "
            "with --base, or keep the adapter here with --no-push.",
            param="base",
        )


def _push(remote: CommandContext, wish: LocalTraining, card: Card) -> PushedVersion:
    """Push the result and print the id of the version; on failure print where it is and how to push it later."""
    from graftwork.clients.errors import GraftworkClientError

    try:
        with remote.err.status(f"Pushing {wish.folder.name}"):
            version = pushing.push_folder(remote.client, wish.folder, card, alias=wish.alias)
    except (GraftworkClientError, KeyboardInterrupt) as error:
        remote.print_message(f"The adapter is kept in {wish.folder}\nPush it again: {wish.push_command}")
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        raise
    if not version.created:
        remote.print_message(f"The very same bytes are {version.id} already: nothing was added.")
    remote.print_message(f'Callable as "{version.id}". Its files stay in {wish.folder}')
    if wish.alias is None and version.version > 1:
        remote.print_message(f"Make it live: graftwork adapters promote {version.id}")
    return version


def _result(folder: Path, card: Card, version: PushedVersion | None) -> dict[str, Any]:
    return {
        "name": card.name,
        "version": version and version.id,
        "folder": str(folder),
        "base_digest": card.base_digest,
        "data_digest": card.data_digest,
        **card.to_json(),
    }
