"""``graftwork data``: reports on training data, and stored data sets. No server is involved.

Fast to import: modules that read data are imported when a command runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftwork.adapters.learning import data_sets
from graftwork.clients.cli.context import AsJson, CommonOptions
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.training.cli import reading_options

if TYPE_CHECKING:
    from rich.console import Console

    from graftwork.adapters.prompts.prompts import Prompts
    from graftwork.training.data.pipeline import RowProgress
    from graftwork.training.data.report.numbers import DataReport
    from graftwork.training.data.store import DataStore

app = typer.Typer(help="Look at training data, and keep data sets under a name.", no_args_is_help=True)

_READING = "How it is read"
_CLEANING = "What becomes of it"
_RESULT = "The result"

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="GRAFTWORK_HOME",
        help="Where data sets and the base are kept. Default: ~/.graftwork.",
        rich_help_panel=_RESULT,
    ),
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Write the report as a page with pictures.", rich_help_panel=_RESULT)
]
ActionName = Literal["mask", "drop", "refuse", "keep"]


@app.command()
def check(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="JSON lines, a JSON array, CSV, TSV or plain text.", show_default=False),
    ],
    format: Annotated[str | None, reading_options.format(_READING)] = None,
    prompt_column: Annotated[str | None, reading_options.prompt_column(_READING)] = None,
    completion_column: Annotated[str | None, reading_options.completion_column(_READING)] = None,
    prompt_template: Annotated[str | None, reading_options.prompt_template(_READING)] = None,
    system: Annotated[str | None, reading_options.system(_READING)] = None,
    plain: Annotated[bool, reading_options.plain(_READING)] = False,
    score_range: Annotated[
        str, typer.Option("--score-range", help="The worst and the best score.", rich_help_panel=_READING)
    ] = "0:1",
    user_column: Annotated[
        str | None,
        typer.Option("--user-column", help="Rows of one user stay on one side.", rich_help_panel=_READING),
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option("--split-column", help="Column that says train, validation or test.", rich_help_panel=_READING),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option("--held-out", help="File of the test rows; may be repeated.", rich_help_panel=_READING),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Train, validation and test rows in percent.", rich_help_panel=_CLEANING)
    ] = "80/10/10",
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Put broken text right.", rich_help_panel=_CLEANING)
    ] = True,
    personal: Annotated[
        ActionName, typer.Option("--personal", help="What becomes of personal data.", rich_help_panel=_CLEANING)
    ] = "mask",
    clean_system: Annotated[
        bool,
        typer.Option("--clean-system", help="Personal data in system messages, too.", rich_help_panel=_CLEANING),
    ] = False,
    secrets: Annotated[
        ActionName, typer.Option("--secrets", help="What becomes of keys and passwords.", rich_help_panel=_CLEANING)
    ] = "mask",
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Value or @domain that is not private; repeatable.", rich_help_panel=_CLEANING),
    ] = None,
    region: Annotated[
        str, typer.Option("--region", help="Of phone numbers without a country code.", rich_help_panel=_CLEANING)
    ] = "US",
    finder: Annotated[
        str | None,
        typer.Option("--finder", help="Finds more personal data: module:function.", rich_help_panel=_CLEANING),
    ] = None,
    near: Annotated[
        float, typer.Option("--near", help="Similarity of rows that are the same; 0: none.", rich_help_panel=_CLEANING)
    ] = 0.8,
    conflicts: Annotated[
        Literal["keep", "majority", "drop"],
        typer.Option("--conflicts", help="What becomes of several answers to a question.", rich_help_panel=_CLEANING),
    ] = "keep",
    max_bad: Annotated[
        float, typer.Option("--max-bad", help="Share of unusable rows to put up with.", rich_help_panel=_CLEANING)
    ] = 0.1,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            envvar="GRAFTWORK_BASE",
            help="Whose tokens lengths are in. Default: the embedded base, if it is there.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option("--max-length", help="Tokens of a row that is trained on whole.", rich_help_panel=_RESULT)
    ] = 1024,
    save: Annotated[
        str | None, typer.Option("--save", help="Keep it as the next version of NAME.", rich_help_panel=_RESULT)
    ] = None,
    home: HomeOption = None,
    html: HtmlOption = None,
    as_json: AsJson = False,
) -> None:
    """Read, clean, split and judge training data; nothing is changed, and nothing sent anywhere.

    Ends with an error if nothing can be learned from it, or if it holds what the policy refuses.
    """
    from graftwork.adapters.errors import GraftworkError
    from graftwork.training.data.pipeline import prepare
    from graftwork.training.data.policy import DataPolicy
    from graftwork.training.data.read.columns import Columns
    from graftwork.training.data.read.source import file_source, file_sources
    from graftwork.training.data.splits import Shares

    try:
        columns = Columns(
            prompt=prompt_column,
            completion=completion_column,
            template=prompt_template,
            system=system,
            plain=plain,
            user=user_column,
            split=split_column,
            score_range=_score_range(score_range),
        )
        shares = Shares.parse(split)
        if held_out:
            # The test rows are given: none are split off.
            shares = Shares(validation=shares.validation, test=0.0)
        policy = DataPolicy(
            repair=repair,
            personal=personal,
            clean_system=clean_system,
            secrets=secrets,
            keep=tuple(keep or ()),
            region=region or None,
            finder=finder,
            near=near or None,
            conflicts=conflicts,
            shares=shares,
            max_bad=max_bad,
        )
        sources = file_sources(files, columns, format=format)
        sources += [file_source(path, columns, format=format, split="test") for path in held_out or ()]
        store = _store(home)
        earlier = store.earlier_sides(save) if save is not None else {}
        with (
            _progress(_console(stderr=True)) as on_progress,
            prepare(
                sources,
                policy,
                earlier=earlier,
                prompts=_prompts(base, _home(home)),
                max_length=max_length,
                on_progress=on_progress,
            ) as prepared,
        ):
            report = prepared.report
            stored, is_new = store.save(save, prepared) if save is not None else (None, False)
    except GraftworkError as error:
        raise _failed(error.message) from error
    name = stored.id if stored is not None else " and ".join(source.name for source in report.sources)
    _print_report(
        ctx, report, name, html=html, as_json=as_json, extra={} if stored is None else {"data_set": stored.id}
    )
    if stored is not None:
        outcome = f"Kept as {stored.id}" if is_new else f"These very rows are {stored.id} already: nothing was added"
        _print_message(f"{outcome}. Train on it: graftwork train NAME --data {stored.id} --local")


@app.command("list")
def list_(ctx: typer.Context, home: HomeOption = None, as_json: AsJson = False) -> None:
    """The data sets that were kept."""
    from graftwork.adapters.errors import GraftworkError
    from graftwork.training.cli import data_show

    try:
        found = _store(home).all()
    except GraftworkError as error:
        raise _failed(error.message) from error
    if _wants_json(ctx, as_json):
        fields = [
            {"id": one.id, "digest": one.digest, "rows": one.num_rows, "created_at": one.created_at.isoformat()}
            for one in found
        ]
        typer.echo(json.dumps(fields, ensure_ascii=False, indent=2))
    else:
        _console(stderr=False).print(data_show.render_data_sets(found))


@app.command()
def show(
    ctx: typer.Context,
    data_set: Annotated[
        str, typer.Argument(metavar="NAME[@N]", help="A data set, for example support@3.", show_default=False)
    ],
    home: HomeOption = None,
    html: HtmlOption = None,
    as_json: AsJson = False,
) -> None:
    """The report of a data set that was kept, after a look whether its files are as they were."""
    from graftwork.adapters.errors import GraftworkError

    try:
        stored = _store(home).get(data_set)
        stored.verify()
    except GraftworkError as error:
        raise _failed(error.message) from error
    _print_report(ctx, stored.report, stored.id, html=html, as_json=as_json, extra={"data_set": stored.id})


def _print_report(
    ctx: typer.Context, report: DataReport, name: str, *, html: Path | None, as_json: bool, extra: dict[str, Any]
) -> None:
    if html is not None:
        from graftwork.training.data.report.page import render_page

        try:
            html.write_text(render_page(report, name), encoding="utf-8")
        except OSError as error:
            raise _failed(f"{html} cannot be written: {error.strerror or error}.") from error
    if _wants_json(ctx, as_json):
        typer.echo(json.dumps({**extra, **report.to_json()}, ensure_ascii=False, indent=2))
    else:
        from graftwork.training.cli import data_show

        _console(stderr=False).print(data_show.render_report(report))
    if html is not None:
        _print_message(f"The report with pictures: {html}")


def _score_range(text: str) -> tuple[float, float]:
    from graftwork.adapters.errors import ConfigurationError

    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no range of scores: give the worst and the best, as in 1:5.", param="score_range"
        ) from None
    return low, high


def _prompts(base: str | None, home: Path) -> Prompts | None:
    """Return the tokenizer of the base; None if no base is named and the embedded one was not fetched yet."""
    from graftwork.adapters.base import EMBEDDED_ID, prepare
    from graftwork.adapters.prompts.prompts import Prompts

    if base is None and not (home / "base" / EMBEDDED_ID).is_dir():
        return None
    return Prompts(Path(prepare(base, home, lambda title, fraction: None).path))


def _home(home: Path | None) -> Path:
    return (home or Path("~/.graftwork")).expanduser()


def _store(home: Path | None) -> DataStore:
    from graftwork.training.data.store import DataStore

    return DataStore(_home(home) / data_sets.FOLDER)


@contextmanager
def _progress(console: Console) -> Iterator[RowProgress]:
    """Show the number of processed rows on a terminal."""
    with console.status("Reading") as status:
        yield lambda title, num_rows: status.update(f"{title}: {num_rows:,} rows")


def _wants_json(ctx: typer.Context, as_json: bool) -> bool:
    before = ctx.find_root().obj
    return as_json or (isinstance(before, CommonOptions) and before.json)


def _failed(message: str) -> typer.Exit:
    typer.echo(typer.style("error: ", fg="red") + message, err=True)
    return typer.Exit(ExitCode.FAILED)


def _print_message(message: str) -> None:
    _console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console
