"""The common parts of commands that call a server: ``--url``, ``--api-key``, ``--json``, errors and exit codes.

The three options may be given before or after the command.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from graftwork.clients.cli.exit_codes import exit_code
from graftwork.clients.errors import AuthenticationError, GraftworkAPIError, GraftworkClientError, LocalFileError
from graftwork.clients.types.keys import Limits

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from graftwork.clients.client import Client
    from graftwork.clients.types.pages import Page

P = ParamSpec("P")
T = TypeVar("T")
Cursor = TypeVar("Cursor", str, int)

# What models and users write is text, not orders to the terminal: all control characters but newline and tab.
CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_AGO = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# Readers that split lines as Unicode does would cut there.
_LINE_BREAKS = str.maketrans({"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})

Url = Annotated[str | None, typer.Option("--url", help="The server. Default: $GRAFTWORK_URL or http://127.0.0.1:8000.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Bearer key. Default: $GRAFTWORK_API_KEY.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, messages on standard error.")]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The values of the three options before the command."""

    url: str | None = None
    api_key: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class CommandContext:
    """The client and the output of a command.

    Attributes:
        client: the client of the server.
        json: whether results are printed as JSON.
        explicit: the parameters that were given on the command line.
    """

    client: Client
    json: bool
    explicit: frozenset[str] = frozenset()

    @cached_property
    def out(self) -> Console:
        """The console on standard output, for results."""
        return _console(stderr=False)

    @cached_property
    def err(self) -> Console:
        """The console on standard error, for messages."""
        return _console(stderr=True)

    def print_result(self, value: Any, render: Callable[[], RenderableType]) -> None:
        """Print the result of a command: ``value`` as JSON, or what ``render`` returns, for people."""
        if self.json:
            from graftwork.clients.http.wire import dump

            typer.echo(json.dumps(dump(value), ensure_ascii=False, indent=2))
        else:
            self.out.print(render())

    def print_message(self, message: str) -> None:
        """Print a message for people on standard error."""
        self.err.print(message, markup=False, highlight=False, soft_wrap=True)


def print_error(error: GraftworkClientError) -> None:
    """Print an error of the client for people, with command-line options in place of arguments."""
    message = str(error)
    if isinstance(error, AuthenticationError):
        message += " (the key comes from --api-key or GRAFTWORK_API_KEY)"
    if isinstance(error, GraftworkAPIError) and error.status >= 500 and error.request_id:
        message += f" (request {error.request_id})"
    typer.echo(typer.style("error: ", fg="red") + message, err=True)


def api_command(command: Callable[Concatenate[CommandContext, P], None]) -> Callable[..., None]:
    """Turn ``command(remote, …)`` into a typer command with the common options in place of ``remote``.

    Errors of the client are printed, and end the command with their exit code.
    """

    def run(ctx: typer.Context, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False, **given: Any) -> None:
        from graftwork.clients.client import Client

        before = ctx.find_root().obj or CommonOptions()
        named = frozenset(name for name in given if _on_command_line(ctx, name))
        try:
            with Client(url or before.url, api_key or before.api_key) as client:
                command(CommandContext(client=client, json=as_json or before.json, explicit=named), **given)  # type: ignore[call-arg]
        except GraftworkClientError as error:
            print_error(error)
            raise typer.Exit(exit_code(error)) from error

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    common = list(inspect.signature(run, eval_str=True).parameters.values())[:-1]
    by_name = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *common)]
    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in by_name}
    return run


def _on_command_line(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def paginate(fetch: Callable[[Cursor | None], Page[T]], cursor: Callable[[T], Cursor]) -> Iterator[T]:
    """Yield all items of a paged list, fetched page by page."""
    page = fetch(None)
    yield from page
    while page.has_more and page.data:
        page = fetch(cursor(page.data[-1]))
        yield from page


def first_items(limit: int, fetch: Callable[[Cursor | None, int], Page[T]], cursor: Callable[[T], Cursor]) -> list[T]:
    """Return at most ``limit`` items of a paged list; ``fetch`` takes a cursor and the size of a page."""
    return list(islice(paginate(lambda after: fetch(after, min(limit, 100)), cursor), limit))


def parse_since(text: str | None) -> str | float | None:
    """Convert ``--since`` for the server; ``90m``, ``24h`` and ``7d`` are relative to now."""
    ago = _AGO.fullmatch(text) if text else None
    return text if ago is None else time.time() - int(ago[1]) * _SECONDS[ago[2]]


def parse_limits(given: list[str]) -> dict[str, int]:
    """Convert ``NAME=N`` options to limits.

    Raises:
        BadParameter: if there is no such limit, or it is no number.
    """
    limits: dict[str, int] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in Limits.__dataclass_fields__ or not number.isdecimal():
            known = ", ".join(Limits.__dataclass_fields__)
            raise typer.BadParameter(f"{text!r} is no NAME=N, where NAME is one of {known}", param_hint="--limit")
        limits[name] = int(number)
    return limits


def parse_metadata(given: list[str]) -> dict[str, str]:
    """Parse the values ``K=V`` of ``--metadata``."""
    found = [pair.partition("=") for pair in given]
    for key, equals, _ in found:
        if not (key and equals):
            raise typer.BadParameter(f"{key!r} is no note; write it like owner=ann.", param_hint="--metadata")
    return {key: value for key, _, value in found}


def write_json_lines(remote: CommandContext, rows: Iterable[Any], out: Path | None) -> None:
    """Write records as JSON lines to standard output or a file, one at a time."""
    from graftwork.clients.http.wire import dump

    lines = (json.dumps(dump(row), ensure_ascii=False).translate(_LINE_BREAKS) for row in rows)
    if out is None:
        for line in lines:
            typer.echo(line)
        return
    count = 0
    # What was there is replaced when everything is here, not by the half of an export that broke off.
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
        partial.replace(out)
    except OSError as error:
        raise LocalFileError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    remote.print_message(f"{count} lines in {out}.")


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)  # a table in a file or a pipe is not cut to a screen that is not there
    return console
