"""``graftwork demo``: its options, its server and temporary folder, and the output of its result."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftwork.clients.cli.context import CommonOptions, print_error
from graftwork.clients.cli.exit_codes import CommandInterrupted, ExitCode, exit_code, interrupted_by_signals
from graftwork.clients.errors import GraftworkClientError, LocalFileError

if TYPE_CHECKING:
    from graftwork.clients.demo.queries import QuerySplit
    from graftwork.clients.demo.results import DemoResult

_HOME = Path("~/.graftwork")
_DATA = "The data"
_WHERE = "Where"


def demo(
    ctx: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="CSV with the columns text and label (or category), for example banking77. Default: examples/.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    classes: Annotated[
        int, typer.Option("--classes", min=2, help="How many labels, chosen by the seed.", rich_help_panel=_DATA)
    ] = 10,
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="Of each label, to begin with.", rich_help_panel=_DATA)
    ] = 6,
    adapter: Annotated[str, typer.Option("--adapter", help="What it is called.", rich_help_panel=_WHERE)] = "intents",
    users: Annotated[
        int, typer.Option("--users", min=2, help="In the experiment, at most.", rich_help_panel=_DATA)
    ] = 600,
    short: Annotated[
        bool, typer.Option("--short", help="A smaller form, to try it: 3 labels, few rows.", rich_help_panel=_DATA)
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Which labels, and who asks what.", rich_help_panel=_DATA)] = 0,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            help="Folder for the server, kept afterwards. Default: a temporary one.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="A server that runs. Default: one of the demo's own.", rich_help_panel=_WHERE),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="For that server, an operator's.", rich_help_panel=_WHERE)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on standard output.")] = False,
) -> None:
    """Show the whole loop: train, serve, collect corrections, train again, and let an A/B test decide.

    Simulated users ask real queries and know the right answers. The second version becomes live if it wins, by the
    experiment's own rule; if it does not, that is said, and the exit code is another one.
    """
    from graftwork.clients.demo import display
    from graftwork.clients.demo.queries import read, split_queries

    # GRAFTWORK_URL is ignored, as the demo pushes versions and moves aliases: a server must be named by --url.
    before = ctx.find_root().obj or CommonOptions()
    given = ctx.find_root().get_parameter_source("url")
    url = url or (before.url if given is not None and given.name == "COMMANDLINE" else None)
    try:
        queries = read(*((data,) if data else _examples()))
        dealt = split_queries(
            queries,
            classes=min(classes, 3) if short else classes,
            first=min(rows, 2) if short else rows,
            judged=10 if short else 15,
            asked=9 if short else 20,
            traffic=60,
            seed=seed,
        )
        with interrupted_by_signals():
            result = _go(
                dealt,
                adapter=adapter,
                users=users,
                short=short,
                seed=seed,
                home=home,
                url=url,
                api_key=api_key or before.api_key,
            )
    except GraftworkClientError as error:
        print_error(error)
        raise typer.Exit(exit_code(error)) from error
    except CommandInterrupted:
        typer.echo("Stopped, and everything that was started with it.", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json or before.json:
        typer.echo(json.dumps(result.to_json(), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        Console(highlight=False).print(display.render_result(result))
    if not result.promoted:
        raise typer.Exit(ExitCode.NOT_BETTER)


def _go(
    dealt: QuerySplit,
    *,
    adapter: str,
    users: int,
    short: bool,
    seed: int,
    home: Path | None,
    url: str | None,
    api_key: str | None,
) -> DemoResult:
    """Run the loop with a server and a temporary folder, and remove both in any case."""
    from rich.console import Console

    from graftwork.clients.client import Client
    from graftwork.clients.demo.display import LoopDisplay
    from graftwork.clients.demo.loop import DemoLoop, DemoSizes
    from graftwork.clients.demo.server import DemoServer

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graftwork-demo-")))
        home = _borrowing_home(work / "home") if home is None else home.expanduser()
        watcher = stack.enter_context(LoopDisplay(Console(stderr=True, highlight=False)))
        if url is None:
            watcher.begin("Starting a server")
            server = stack.enter_context(DemoServer(work))
            url, api_key = server.serve(home, watch=watcher.log_line), "none"
            watcher.end(f"Serving on {url}")
        client = stack.enter_context(Client(url, api_key))
        # Fewer rows take smaller steps and more passes.
        sizes = DemoSizes(epochs=(5, 4), batch_size=4, users=users) if short else DemoSizes(users=users)
        return DemoLoop(client, adapter, dealt, work=work, sizes=sizes, seed=seed, watcher=watcher).run()


def _borrowing_home(home: Path) -> Path:
    """Create a home that shares bases and kernels with the default home, since these take long to make."""
    home.mkdir()
    for shared in ("base", "kernels"):
        usual = _HOME.expanduser() / shared
        usual.mkdir(parents=True, exist_ok=True)
        (home / shared).symlink_to(usual, target_is_directory=True)
    return home


def _examples() -> tuple[Path, ...]:
    """Return the example queries of the checkout.

    Raises:
        LocalFileError: if there is no checkout.
    """
    folder = Path(__file__).resolve().parents[2] / "examples"
    files = tuple(folder / name for name in ("tickets.jsonl", "tickets_heldout.jsonl"))
    if not all(file.is_file() for file in files):
        raise LocalFileError("There is no examples folder with this installation: name a CSV file with --data.")
    return files
