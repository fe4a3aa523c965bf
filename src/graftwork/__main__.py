"""The command line's top: the one file that may import all four packages.

Where only ``graftwork-client`` is installed there are no other packages than ``clients``, and no commands of theirs.

The commands that ask a server over HTTP are in ``graftwork.clients.cli``, the one that trains in
``graftwork.training.cli.train``, those that look at data in ``graftwork.training.cli.data``, the demo in
``graftwork.clients.demo.cli``; here are the one that is a server and those that save and restore its home. What a
command needs is imported when it runs, so that ``--help`` loads no model library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from graftwork.clients.cli.app import app
from graftwork.clients.cli.exit_codes import CommandInterrupted, ExitCode, interrupted_by_signals

if TYPE_CHECKING:
    from graftwork.adapters.backup import Manifest
    from graftwork.adapters.base.progress import Progress

#: Commands that need the packages which ``graftwork-client`` does not bring.
_SERVER_COMMANDS = ("backup", "bench", "data", "demo", "move", "restore", "serve", "train")

_BASE = "The base"
_ENGINE = "The engine"
_SERVER = "The server"
_LOG = "What is kept"
_TRAINER = "The trainer"


def _option(flag: str, panel: str, help: str) -> Any:
    """An option of ``serve``: ``--max-batch`` also reads ``GRAFTWORK_MAX_BATCH``."""
    variable = "GRAFTWORK_" + flag.removeprefix("--").replace("-", "_").upper()
    return typer.Option(flag, envvar=variable, help=help, rich_help_panel=panel)


def _without_password(context: typer.Context, url: str | None) -> str | None:
    """The URL of the database, out of the environment, which children inherit.

    Raises:
        typer.BadParameter: It has a password and was given as an argument, where every user of the machine sees it; or
            it is not usable.
    """
    if not url:
        return None
    from graftwork.adapters.errors import ConfigurationError
    from graftwork.adapters.storage.database import has_password

    given = context.get_parameter_source("database")
    try:
        shown = given is not None and given.name == "COMMANDLINE" and has_password(url)
    except ConfigurationError as error:
        raise typer.BadParameter(error.message) from error
    if shown:
        raise typer.BadParameter(
            "arguments are shown to every user of this machine, and this URL has a password: give the URL as "
            "GRAFTWORK_DATABASE, or leave the password to PGPASSFILE or ~/.pgpass"
        )
    return url


def serve(
    base: Annotated[
        str | None, _option("--base", _BASE, "Hub id or folder. Default: the embedded SmolLM2-135M-Instruct.")
    ] = None,
    quantize: Annotated[
        Literal["auto", "nf4", "int8", "none"], _option("--quantize", _BASE, "How the base's weights are kept.")
    ] = "auto",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"], _option("--dtype", _BASE, "Of activations and cache.")
    ] = "auto",
    device: Annotated[str, _option("--device", _BASE, "auto, cpu, cuda or cuda:1.")] = "auto",
    devices: Annotated[
        str | None, _option("--devices", _ENGINE, "Those of several engine workers: cuda:0,cuda:1.")
    ] = None,
    workers: Annotated[
        int | None, _option("--workers", _ENGINE, "Engine workers, each with the base. Default: one for each device.")
    ] = None,
    kernels: Annotated[
        str, _option("--kernels", _ENGINE, "auto, native (8 bits on a CPU, by a C++ compiler), triton (CUDA), torch.")
    ] = "auto",
    engine: Annotated[
        str, _option("--engine", _ENGINE, "What computes: own, or vllm=http://host:port,http://…: vLLM servers.")
    ] = "own",
    engine_adapters: Annotated[
        Path | None,
        _option(
            "--engine-adapters", _ENGINE, "Folder of the home's adapters as vLLM's host sees it. Default: the same."
        ),
    ] = None,
    engine_key_file: Annotated[
        Path | None, _option("--engine-key-file", _ENGINE, "File with vLLM's --api-key, readable by its owner alone.")
    ] = None,
    home: Annotated[
        Path, _option("--home", _BASE, "Folder of the base, the adapters and the database. One server a home.")
    ] = Path("~/.graftwork"),
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar=["GRAFTWORK_DATABASE", "GRAFTWORK_DATABASE_URL"],
            callback=_without_password,
            help="URL of a PostgreSQL database, which servers may share. Default: a file in the home.",
            rich_help_panel=_BASE,
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        _option(
            "--artifacts", _BASE, "Bucket of adapters and files: s3://BUCKET/PREFIX, gs://, az://. Default: the home."
        ),
    ] = None,
    artifact_cache_gb: Annotated[
        float, _option("--artifact-cache-gb", _BASE, "Adapters of the bucket that the home keeps.")
    ] = 20.0,
    slots: Annotated[
        int, _option("--slots", _ENGINE, "Rank-16 adapters on the device at once; a rank-64 adapter takes four.")
    ] = 16,
    max_batch: Annotated[int, _option("--max-batch", _ENGINE, "Sequences that run at once.")] = 32,
    max_queue: Annotated[
        int, _option("--max-queue", _ENGINE, "Sequences that run or wait; more are answered 429.")
    ] = 256,
    batch_share: Annotated[
        float, _option("--batch-share", _ENGINE, "Share of --max-batch that requests of batches may fill; 0: none run.")
    ] = 0.25,
    max_model_len: Annotated[
        int | None,
        _option("--max-model-len", _ENGINE, "Longest prompt and answer, in tokens. Default: the base's, at most 8192."),
    ] = None,
    kv_memory_gb: Annotated[
        float | None,
        _option("--kv-memory-gb", _ENGINE, "Size of the key-value cache. Default: a quarter of the memory, at most 4."),
    ] = None,
    host_memory_gb: Annotated[
        float, _option("--host-memory-gb", _ENGINE, "Adapters kept in host memory, ready for the device.")
    ] = 2.0,
    prefill_tokens: Annotated[
        int, _option("--prefill-tokens", _ENGINE, "Prompt tokens computed beside each step; fewer is smoother.")
    ] = 256,
    share_prefix_cache: Annotated[
        bool, _option("--share-prefix-cache", _ENGINE, "Let all keys use what was computed for one of them.")
    ] = False,
    no_prefix_cache: Annotated[
        bool, _option("--no-prefix-cache", _ENGINE, "Compute every prompt from its start.")
    ] = False,
    threads: Annotated[
        int | None, _option("--threads", _ENGINE, "CPU threads of a worker. Default: torch's choice.")
    ] = None,
    host: Annotated[
        str, _option("--host", _SERVER, "Address to listen on: 127.0.0.1, or with a key 0.0.0.0 or ::.")
    ] = "127.0.0.1",
    port: Annotated[int, _option("--port", _SERVER, "Port to listen on.")] = 8000,
    cors_origin: Annotated[
        list[str] | None,
        _option("--cors-origin", _SERVER, "Site whose pages may call this server from a browser; may be repeated."),
    ] = None,
    allow_private_webhooks: Annotated[
        bool, _option("--allow-private-webhooks", _SERVER, "Webhooks may have addresses that are not public.")
    ] = False,
    admin_key_file: Annotated[
        Path | None, _option("--admin-key-file", _SERVER, "File with the first key; GRAFTWORK_ADMIN_KEY does the same.")
    ] = None,
    allowed_root: Annotated[
        list[Path] | None,
        _option("--allowed-root", _SERVER, "Folder below which adapters may be pushed by path; may be repeated."),
    ] = None,
    max_adapter_gb: Annotated[
        float, _option("--max-adapter-gb", _SERVER, "The largest adapter that may be pushed.")
    ] = 2.0,
    no_interaction_log: Annotated[
        bool, _option("--no-interaction-log", _LOG, "Log no requests and answers, unless a policy says so.")
    ] = False,
    retention_days: Annotated[
        float, _option("--retention-days", _LOG, "How long they are kept, unless a policy says otherwise; 0: for good.")
    ] = 90.0,
    max_file_gb: Annotated[float, _option("--max-file-gb", _TRAINER, "The largest file that may be uploaded.")] = 0.5,
    no_trainer: Annotated[
        bool, _option("--no-trainer", _TRAINER, "Start no worker for training jobs; they wait for another one.")
    ] = False,
    trainer_share: Annotated[
        float, _option("--trainer-share", _TRAINER, "Share of the time a run goes on while requests are answered, 0-1.")
    ] = 0.5,
    trainer_nice: Annotated[
        int, _option("--trainer-nice", _TRAINER, "How much the processor prefers everything else to a run, 0-19.")
    ] = 19,
    trainer_threads: Annotated[
        int | None, _option("--trainer-threads", _TRAINER, "CPU threads of a run. Default: torch's choice.")
    ] = None,
    trainer_device: Annotated[
        str | None, _option("--trainer-device", _TRAINER, "Where runs compute: cpu, or a card's number. Default: here.")
    ] = None,
    trainer_memory_gb: Annotated[
        float,
        _option("--trainer-memory-gb", _TRAINER, "Of the card's memory, what the key-value cache leaves to runs."),
    ] = 0.0,
    allow_python_graders: Annotated[
        bool,
        _option("--allow-python-graders", _TRAINER, "Run graders that are programs, without network and files."),
    ] = False,
    stall_seconds: Annotated[
        float, _option("--stall-seconds", _ENGINE, "An engine that makes no progress for so long is replaced.")
    ] = 60.0,
    drain_seconds: Annotated[
        float, _option("--drain-seconds", _SERVER, "How long SIGTERM waits for answers that are under way.")
    ] = 30.0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _option("--log-level", _SERVER, "What is logged.")
    ] = "info",
) -> None:
    """Serve the base and its adapters over HTTP until stopped."""
    from graftwork.adapters.errors import ConfigurationError, GraftworkError
    from graftwork.server import app as app_module
    from graftwork.server.config import ServerConfig

    try:
        config = ServerConfig(
            base=base,
            quantize=quantize,
            dtype=dtype,
            device=device,
            devices=tuple(devices.split(",")) if devices else (),
            workers=workers,
            kernels=kernels,
            engine=engine,
            engine_adapters=engine_adapters,
            engine_key_file=engine_key_file,
            home=home.expanduser(),
            database=database,
            artifacts=artifacts,
            artifact_cache_gb=artifact_cache_gb,
            slots=slots,
            max_batch=max_batch,
            max_queue=max_queue,
            batch_share=batch_share,
            max_model_len=max_model_len,
            kv_memory_gb=kv_memory_gb,
            host_memory_gb=host_memory_gb,
            prefill_tokens=prefill_tokens,
            share_prefix_cache=share_prefix_cache,
            no_prefix_cache=no_prefix_cache,
            threads=threads,
            host=host,
            port=port,
            cors_origins=tuple(cors_origin or ()),
            allow_private_webhooks=allow_private_webhooks,
            admin_key_file=admin_key_file,
            allowed_roots=tuple(allowed_root or ()),
            no_interaction_log=no_interaction_log,
            retention_days=retention_days,
            max_adapter_gb=max_adapter_gb,
            max_file_gb=max_file_gb,
            no_trainer=no_trainer,
            trainer_share=trainer_share,
            trainer_nice=trainer_nice,
            trainer_threads=trainer_threads,
            trainer_device=trainer_device,
            trainer_memory_gb=trainer_memory_gb,
            allow_python_graders=allow_python_graders,
            stall_seconds=stall_seconds,
            drain_seconds=drain_seconds,
            log_level=log_level,
        )
    except ConfigurationError as error:
        raise typer.BadParameter(error.message) from error
    try:
        raise typer.Exit(app_module.serve(config))
    except GraftworkError as error:
        typer.echo(typer.style("error: ", fg="red") + error.message, err=True)
        raise typer.Exit(ExitCode.FAILED) from error


_Home = Annotated[Path, typer.Option("--home", envvar="GRAFTWORK_HOME", help="The server's home.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print what was done as JSON on standard output.")]


def backup(
    target: Annotated[Path, typer.Argument(help="Folder to make. It appears when it is complete.")],
    home: _Home = Path("~/.graftwork"),
    as_json: _AsJson = False,
) -> None:
    """Save a server's home while it runs: the database, adapters, files and kept data sets."""
    from graftwork.adapters.backup import back_up

    with _home_command() as progress:
        manifest = back_up(home.expanduser(), target, progress)
    _print_manifest(f"saved in {target}", manifest, as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder that graftwork backup made.")],
    home: _Home = Path("~/.graftwork"),
    as_json: _AsJson = False,
) -> None:
    """Make a server's home from a backup, into a new or empty folder. Every file is compared with its digest."""
    from graftwork.adapters.backup import restore as restore_home

    with _home_command() as progress:
        manifest = restore_home(source, home.expanduser(), progress)
    _print_manifest(f"restored in {home}: start it with graftwork serve --home {home}", manifest, as_json=as_json)


def move(
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar=["GRAFTWORK_DATABASE", "GRAFTWORK_DATABASE_URL"],
            callback=_without_password,
            help="URL of an empty PostgreSQL database, to which the database is copied.",
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            "--artifacts",
            envvar="GRAFTWORK_ARTIFACTS",
            help="Bucket, as graftwork serve takes it, into which adapters and files are put.",
        ),
    ] = None,
    home: _Home = Path("~/.graftwork"),
) -> None:
    """Copy a stopped server's database to PostgreSQL, its adapters and files into a bucket. The home keeps its own."""
    from graftwork.adapters.learning import split_ledger as _table_of_training  # noqa: F401
    from graftwork.adapters.storage import database_id
    from graftwork.adapters.storage import move as move_module
    from graftwork.adapters.storage.database import DATABASE_FILE, Database
    from graftwork.adapters.storage.objects import ObjectStore
    from graftwork.adapters.upload import upload_home
    from graftwork.server import app as _tables_of_the_server  # noqa: F401
    from graftwork.server.processes import home_lock

    if database is None and artifacts is None:
        raise typer.BadParameter("say where to: --database, --artifacts or both")
    home = home.expanduser()
    file = home / DATABASE_FILE
    if not file.is_file():
        raise typer.BadParameter(f"{file} does not exist: there is nothing to move")
    damaged: tuple[str, ...] = ()
    with _home_command() as progress, home_lock(home):
        database_id.claim_home(home, source := Database(file))
        objects = None if artifacts is None else ObjectStore(artifacts)
        if objects is not None:  # first: what the moved database names is there
            database_id.claim_bucket(objects, home)
            done = upload_home(home, source, objects, progress)
            damaged = done.damaged
            typer.echo(f"{done.num_adapters} adapters and {done.num_files} files are in {artifacts}.")
        for each in damaged:
            typer.echo(f"{each} is not as it was written: it was left out", err=True)
        counts: Mapping[str, int] = {}
        if database is not None:
            counts = move_module.move(source, target := Database(database))
            database_id.give(home, target)
            if objects is not None:
                database_id.give_bucket(objects, home)
    for table, count in counts.items():
        typer.echo(f"{count:>10} {table}")
    if database is not None:
        typer.echo(f"{file} was copied, and stays as it was. Start the server with --database from now on.")
    if artifacts is not None:
        typer.echo("Start the server with --artifacts from now on.")
    if damaged:
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _home_command() -> Iterator[Progress]:
    """A context for a command on a home, with a progress bar; its errors end the command."""
    from graftwork.adapters.base.progress import progress_bar
    from graftwork.adapters.errors import GraftworkError

    try:
        with interrupted_by_signals(), progress_bar() as progress:
            yield progress
    except CommandInterrupted:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (GraftworkError, OSError) as error:
        typer.echo(typer.style("error: ", fg="red") + str(error), err=True)
        raise typer.Exit(ExitCode.FAILED) from error


def _print_manifest(done: str, manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(manifest.to_json(), indent=1))
    else:
        typer.echo(f"{len(manifest.files)} files, {manifest.total_bytes / 1e6:,.1f} MB, {done}")


def bench() -> None:
    """Say where the benchmarks are: they come with a checkout and not with the installed package."""
    typer.echo(
        "The benchmarks come with a checkout of Graftwork: run `python -m benchmarks --help` in its folder.", err=True
    )
    raise typer.Exit(ExitCode.USAGE)


def needs_the_server() -> None:
    """Say what to install for this command."""
    typer.echo("Only graftwork-client is installed. This command comes with: pip install graftwork", err=True)
    raise typer.Exit(ExitCode.USAGE)


#: Of a command that says something else instead of reading its arguments.
_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}

if find_spec("graftwork.server"):
    from graftwork.clients.demo.cli import demo
    from graftwork.training.cli.data import app as data
    from graftwork.training.cli.train import train

    app.command()(serve)
    app.command()(backup)
    app.command()(restore)
    app.command()(move)
    app.command(context_settings=_ANY_ARGUMENTS, add_help_option=False)(bench)
    app.command()(train)
    app.add_typer(data, name="data")
    app.command()(demo)
else:
    for _command in _SERVER_COMMANDS:
        app.command(_command, context_settings=_ANY_ARGUMENTS, add_help_option=False, hidden=True)(needs_the_server)


def main() -> None:
    app(prog_name="graftwork")


if __name__ == "__main__":
    main()
