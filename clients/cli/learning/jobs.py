"""``graftwork jobs``: list, show, watch, cancel; and the submission of jobs for ``graftwork train``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from graftwork.clients.cli.context import CommandContext, api_command, first_items, paginate
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.errors import LocalFileError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graftwork.clients.types.learning.jobs import Job, JobEvent

POLL_SECONDS: Final = 1.0
FEEDBACK: Final = "feedback"
DATA_SET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}@[0-9]{1,9}")
"""The form of a stored data set's id; the server checks whether it exists."""

app = typer.Typer(help="See, watch and cancel training jobs.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id: ftjob-…", show_default=False)]


@app.command("list")
@api_command
def list_(
    remote: CommandContext,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Of this adapter.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 20,
) -> None:
    """List jobs, newest first."""
    found = first_items(
        limit, lambda after, size: remote.client.jobs.list(adapter=adapter, after=after, limit=size), lambda job: job.id
    )
    remote.print_result(found, lambda: _table(found))


@app.command()
@api_command
def show(remote: CommandContext, id: Id) -> None:
    """Show one: what was asked, where it stands, what happened."""
    job = remote.client.jobs.get(id)
    events = list(_events(remote, id))[::-1]
    remote.print_result({"job": job, "events": events}, lambda: _whole(job, events))


@app.command()
@api_command
def watch(remote: CommandContext, id: Id) -> None:
    """Follow one to its end. Ctrl-C stops watching, not the job."""
    follow(remote, remote.client.jobs.get(id))


@app.command()
@api_command
def cancel(remote: CommandContext, id: Id) -> None:
    """End one now; nothing of it is published."""
    job = remote.client.jobs.cancel(id)
    remote.print_result(job, lambda: _line(job))


def submit(
    remote: CommandContext,
    name: str,
    data: Path | None,
    *,
    continued: str | None = None,
    method: str | None = None,
    hyperparameters: Mapping[str, Any],
    seed: int = 0,
    detach: bool = False,
) -> None:
    """Create a job, and watch it.

    Args:
        remote: the client and the output.
        name: the name of the adapter.
        data: a file, which is uploaded, or the id of a data set in the server's home; None for feedback.
        continued: the version that is trained further.
        method: the training method; the server's default if None.
        hyperparameters: the hyperparameters that were given.
        seed: the seed of the run.
        detach: whether to return without watching the job.
    """
    client = remote.client
    file = FEEDBACK
    if data is not None:
        if data.is_file():
            with remote.err.status(f"Uploading {data.name}"):
                file = client.files.upload(data).id
        elif DATA_SET.fullmatch(file := str(data)) is None:
            raise LocalFileError(f"{data} is no file, and no data set's name and version, such as support@3.")
    base = next(iter(client.models())).id if continued is None else continued
    job = client.jobs.create(
        model=base, name=name, training_file=file, method=method, hyperparameters=hyperparameters, seed=seed
    )
    remote.print_message(f"Submitted {job.id}.")
    if detach:
        remote.print_result(job, lambda: _line(job))
        return
    follow(remote, job)


def follow(remote: CommandContext, job: Job) -> None:
    """Print the events of a job until it has ended. The command fails if the job does."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[where]}"), TimeElapsedColumn())
    seen: str | None = None
    try:
        with Progress(*columns, console=remote.err, transient=True, disable=remote.json) as bar:
            task = bar.add_task(job.status, total=None, where="")
            while True:
                job = remote.client.jobs.get(job.id)
                for event in reversed(list(_events(remote, job.id, until=seen))):
                    seen = event.id
                    if event.type == "message":
                        remote.print_message(event.message)
                progress = job.graftwork.progress
                phase = progress.get("phase") if job.status == "running" else None
                bar.update(
                    task,
                    description=str(phase or job.status),
                    total=progress.get("total"),
                    completed=progress.get("step") or 0,
                    where=_progress_text(progress),
                )
                if job.ended:
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        remote.print_message(
            f"The job goes on. Watch it: graftwork jobs watch {job.id}\nEnd it: graftwork jobs cancel {job.id}"
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    remote.print_result(job, lambda: _line(job))
    if job.status != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


def _events(remote: CommandContext, id: str, until: str | None = None) -> Iterator[JobEvent]:
    """Return the events after the last one that was seen, newest first."""
    pages = paginate(lambda after: remote.client.jobs.events(id, after=after, limit=100), lambda event: event.id)
    for event in pages:
        if event.id == until:
            return
        yield event


def _progress_text(progress: Mapping[str, Any]) -> str:
    parts = []
    if progress.get("trials"):
        parts.append(f"trial {progress.get('trial', 1)} of {progress['trials']}")
    if progress.get("total"):
        parts.append(f"{progress.get('step', 0)}/{progress['total']}")
    # Of a run that learns from rewards, these say what its loss does not.
    measured = "loss" if progress.get("reward") is None else "reward"
    if isinstance(value := progress.get(measured), int | float):
        parts.append(f"{measured} {value:.3f}")
    if isinstance(eta := progress.get("eta_seconds"), int | float):
        parts.append(f"{eta:.0f} s left")
    return " · ".join(parts)


def _table(found: Iterable[Job]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from graftwork.clients.cli.tables import format_age

    table = Table("Job", "Adapter", "Method", "Status", "Where", "Version", "Age", box=None, header_style="bold")
    for job in found:
        where = (
            _progress_text(job.graftwork.progress)
            if job.status == "running"
            else (job.error.message if job.error else "")
        )
        table.add_row(
            job.id,
            job.graftwork.adapter,
            job.graftwork.method,
            job.status,
            Text(where[:60]),
            job.fine_tuned_model or "–",
            format_age(job.created_at),
        )
    return table if table.row_count else Text("No jobs yet. Submit one: graftwork train NAME --data FILE")


def _whole(job: Job, events: Iterable[JobEvent]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = {
        "model": job.model,
        "method": job.graftwork.method,
        "data": job.training_file,
        "where": _progress_text(job.graftwork.progress),
        "took": _duration(job),
        "results": ", ".join(job.result_files),
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    said = [Text(f"{event.created_at:%H:%M:%S}  {event.message}") for event in events if event.type == "message"]
    return Group(_line(job), table, *said)


def _line(job: Job) -> RenderableType:
    from rich.text import Text

    if job.fine_tuned_model:
        return Text.assemble((job.fine_tuned_model, "bold"), f" · {job.id} {job.status}")
    error = f": {job.error.message}" if job.error else ""
    return Text.assemble((job.id, "bold"), f" {job.status}{error}")


def _duration(job: Job) -> str:
    seconds = ((job.finished_at or datetime.now(UTC)) - job.created_at).total_seconds()
    return f"{seconds:.0f} s" if job.ended else f"{seconds:.0f} s so far"
