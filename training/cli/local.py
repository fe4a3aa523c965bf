"""``graftwork train --local``: a run in this process, and its adapter pushed. What is checked before the first step,
and what is said at the end.

Torch-free at import, so that a mistake is told at once. ``run`` plans and carries out, ``publish`` pushes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.learning import data_sets
from graftwork.clients.cli.context import Remote
from graftwork.clients.cli.exit_codes import ExitCode, Stopped, stopped_in_order
from graftwork.training.cli import pushing
from graftwork.training.config import TrainConfig
from graftwork.training.data.read.columns import Columns
from graftwork.training.methods import rows as rows_module

if TYPE_CHECKING:
    from graftwork.adapters.base import BaseInfo
    from graftwork.clients.types.adapters import PushedVersion
    from graftwork.training.data.store import Stored
    from graftwork.training.run.card import Card
    from graftwork.training.run.plan import Run


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for.

    Attributes:
        data: a file, or a data set that was kept: ``support@3``. columns: fields of Columns. format: of the file.
        method: ``auto``, ``supervised``, or one of routing's METHODS. knobs: fields of TrainConfig that were given, and
            ``teacher``, a folder or hub id.
        folder: where the result goes. push: whether it is pushed; alias: what is then moved to it.
    """

    name: str
    data: Path
    columns: dict[str, Any]
    format: str | None
    method: str
    knobs: dict[str, Any]
    base: str | None
    home: Path
    folder: Path
    push: bool
    alias: str | None

    @property
    def full(self) -> bool:
        return self.knobs.get("variant") == "full"

    @property
    def push_command(self) -> str:
        import shlex

        alias = ["--alias", self.alias] if self.alias else []
        return shlex.join(["graftwork", "adapters", "push", self.name, str(self.folder), *alias])


def train(remote: Remote, wish: Wish) -> None:
    """Train, push, and say what came of it. Ctrl-C stops the run and leaves nothing behind."""
    try:
        with stopped_in_order():
            card = _train(remote, wish)
    except GraftworkError as error:
        typer.echo(typer.style("error: ", fg="red") + error.message, err=True)
        raise typer.Exit(ExitCode.FAILED) from error
    except Stopped:
        remote.say("Stopped. Nothing was written, nothing was pushed.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    version = _push(remote, wish, card) if wish.push else None
    if wish.full:
        remote.say(
            "This is a model of its own, which cannot be swapped while serving. Serve it: graftwork serve --base "
            f"{wish.folder}"
        )
    elif version is None:
        remote.say(f"Push it: {wish.push_command}")
    remote.answer(_result(wish.folder, card, version), lambda: version.id if version else str(wish.folder))


def _train(remote: Remote, wish: Wish) -> Card:
    """Everything up to the finished folder; whatever can be found out early is found out before the first step."""
    from graftwork.adapters.base import prepare
    from graftwork.adapters.names import check_alias, check_name
    from graftwork.training.cli import display
    from graftwork.training.run.execution import carry_out, check_free
    from graftwork.training.run.material import material
    from graftwork.training.run.plan import assemble, written

    columns = Columns(**wish.columns)
    data = _data(wish, columns)
    check_free(wish.folder)
    if wish.alias is not None:
        check_alias(wish.alias)
    if wish.push:
        _check_reachable(remote)  # before the base, which may take minutes to fetch
    teacher = wish.knobs.get("teacher")
    config = None if wish.method == "auto" else _config(wish, wish.method)
    with display.preparing(remote.err) as progress:
        info = prepare(wish.base, wish.home, progress)
        teacher = None if teacher is None else prepare(teacher, wish.home, progress)
    check_name(wish.name, base_id=info.id)
    if wish.push:
        _check_same_base(remote, info)
    read = material(data, columns=columns, format=wish.format, share=wish.knobs["validation"])
    reason = ""
    if config is None:
        choice = rows_module.choose(rows_module.count(row for rows in read.sides.values() for row in rows))
        config, reason = _config(wish, choice.method), choice.reason
        remote.say(f"Method {choice.method}: {reason}")
    with display.writing(remote.err) as on_progress:
        writer = partial(written, on_progress=on_progress)
        run = assemble(wish.name, read, base=info, config=config, teacher=teacher, reason=reason, writer=writer)
    display.plan(remote.err, run)
    if config.search:
        return _search(remote, run, wish.folder)
    with display.training(remote.err) as listener:
        card = carry_out(run, wish.folder, listener, run_name=wish.folder.name)
    display.finished(remote.err, card.metrics)
    return card


def _config(wish: Wish, method: str) -> TrainConfig:
    found = rows_module.named({"supervised": "sft"}.get(method, method))
    knobs = {name: tuple(value) if isinstance(value, list) else value for name, value in wish.knobs.items()}
    if wish.knobs.get("teacher") is not None:
        knobs["teacher"] = Path(wish.knobs["teacher"]).name
    return TrainConfig.start(found, continuing=False, **knobs)


def _search(remote: Remote, run: Run, folder: Path) -> Card:
    """The same for the best of several trials, which are kept until then beside the folder."""
    import tempfile

    from graftwork.training.cli import display
    from graftwork.training.run import estimate
    from graftwork.training.run.search import search

    remote.say(str(estimate.estimated(run.base, run.rows, run.config)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.search-", dir=folder.parent) as place,
        display.training(remote.err) as listener,
    ):
        card = search(run, folder, listener, place=Path(place), run_name=folder.name, say=remote.say)
    display.trials(remote.err, card.trials)
    display.finished(remote.err, card.metrics)
    return card


def _data(wish: Wish, columns: Columns) -> Path | Stored:
    """The file, or the data set that was kept under this name. NotFound if it looks like one and is none."""
    from graftwork.adapters.names import is_name
    from graftwork.training.data.store import DataStore

    text = str(wish.data)
    if wish.data.exists() or "@" not in text or not is_name(text.partition("@")[0]):
        return wish.data
    if wish.format is not None or columns != Columns():
        raise ConfigurationError(f"{text} is a data set, whose rows were read when it was kept: leave out how to read.")
    return DataStore(wish.home / data_sets.FOLDER).get(text)


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
    served = next(iter(remote.client.models()))
    digest = served.graftwork.get("digest")
    if digest is not None and digest != base.digest:
        raise ConfigurationError(
            f"The server at {remote.client.url} serves the base {served.id}, and this run would train on {base.id}, "
            "which has other weights, tokenizer or chat template: the push would be refused. Name the server's base "
            "with --base, or keep the adapter here with --no-push.",
            param="base",
        )


def _push(remote: Remote, wish: Wish, card: Card) -> PushedVersion:
    """Push, and say what the version is called; on failure say where the adapter is and how to push it later."""
    from graftwork.clients.errors import GraftworkClientError

    try:
        with remote.err.status(f"Pushing {wish.folder.name}"):
            version = pushing.push(remote.client, wish.folder, card, alias=wish.alias)
    except (GraftworkClientError, KeyboardInterrupt) as error:
        remote.say(f"The adapter is kept in {wish.folder}\nPush it again: {wish.push_command}")
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        raise
    if not version.created:
        remote.say(f"The very same bytes are {version.id} already: nothing was added.")
    remote.say(f'Callable as "{version.id}". Its files stay in {wish.folder}')
    if wish.alias is None and version.version > 1:
        remote.say(f"Make it live: graftwork adapters promote {version.id}")
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
