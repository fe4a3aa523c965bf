"""How much of serving is left while a training job runs beside it: ``python -m
benchmarks.learning.serving_while_training``.

For each ``--trainer-share`` a server is started anew, the same load asked of it twice: alone, and while a job trains.
Beside the tokens a second stands what the job learned from meanwhile, and how many it does when nobody
asks. Prints a Markdown table. Ctrl-C stops everything; what was measured by then is in the files.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import machine
from benchmarks.harness.adapter_folders import AdapterFolders, named
from benchmarks.harness.display import Display
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.output import write_text
from benchmarks.learning.own_server import serving
from benchmarks.learning.training_speed import rows
from benchmarks.load.generator import Endpoint, Load, run
from graftwork.adapters.errors import GraftworkError
from graftwork.clients.cli.exit_codes import CommandInterrupted, ExitCode, interrupted_by_signals
from graftwork.clients.client import Client
from graftwork.clients.errors import GraftworkClientError
from graftwork.clients.types.learning.jobs import Job

ROWS: Final = 1000
"""Of the job: it must outlast the load, and is cancelled after it."""

EPOCHS: Final = 100
ALONE_SECONDS: Final = 20.0
"""How long the job runs with nobody asking, to see how fast it is then."""

START_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 0.5

COLUMNS: Final = {
    "share": "`--trainer-share`",
    "idle_tok_s": "tokens/s alone",
    "out_tok_s": "beside a job",
    "kept": "kept",
    "ttft_ms_p50": "TTFT p50 ms",
    "ttft_ms_p95": "p95",
    "itl_ms_p50": "between tokens p50 ms",
    "itl_ms_p99": "p99",
    "job_tok_s": "job's tokens/s",
    "job_alone_tok_s": "with nobody asking",
    "errors": "errors",
}


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Options of the trainer of ``graftwork serve``."""

    share: float
    nice: int | None = None
    threads: int | None = None

    @property
    def flags(self) -> list[str]:
        """The options as command-line arguments."""
        given = {"--trainer-share": self.share, "--trainer-nice": self.nice, "--trainer-threads": self.threads}
        return [word for flag, value in given.items() if value is not None for word in (flag, f"{value:g}")]


class ServingWhileTraining:
    """Measures the load on one server, alone and while a job runs."""

    def __init__(self, client: Client, display: Display, work: Path) -> None:
        self._client = client
        self._display = display
        self._work = work
        self._base = client.models().data[0].id
        self._endpoint = Endpoint(url=client.url, fields=lambda adapter: {"model": adapter or self._base})

    def measure(self, load: Load, first_number: int) -> dict[str, Any]:
        """Measure the load alone, the job alone, and both together. Requests are numbered from ``first_number``, so
        that no prompt is repeated."""
        with self._display.working("The load alone"):
            alone = self._asked(replace(load, first_number=first_number))
        if not alone["out_tok_s"]:
            raise BenchmarkError(f"Nothing was answered: {alone['error_sample']}.")
        job = self._start_job()
        try:
            with self._display.working("The job alone"):
                undisturbed = self._pace(lambda: time.sleep(ALONE_SECONDS), job)[1]
            again = replace(load, first_number=first_number + load.requests)
            with self._display.working("The load beside the job"):
                figures, pace = self._pace(lambda: self._asked(again), job)
        finally:
            self._client.jobs.cancel(job.id)
        return {
            **figures,
            "idle": alone,
            "idle_tok_s": alone["out_tok_s"],
            "kept": f"{figures['out_tok_s'] / alone['out_tok_s']:.0%}",
            "job_tok_s": round(pace),
            "job_alone_tok_s": round(undisturbed),
        }

    def _asked(self, load: Load) -> dict[str, Any]:
        return asyncio.run(run(self._endpoint, load))

    def _pace(self, work: Callable[[], Any], job: Job) -> tuple[Any, float]:
        """Return the result of ``work``, and the job's throughput during it in tokens per second."""
        before, began = self._tokens(job), time.monotonic()
        result = work()
        return result, (self._tokens(job) - before) / (time.monotonic() - began)

    def _tokens(self, job: Job) -> int:
        """Return the progress of the job.

        Raises:
            BenchmarkError: if it does not run any more.
        """
        now = self._client.jobs.get(job.id)
        if now.status != "running":
            why = f": {now.error.message}" if now.error else ""
            raise BenchmarkError(f"The job is {now.status}, and should be running{why}.")
        return int(now.graftwork.progress.get("num_tokens") or 0)

    def _start_job(self) -> Job:
        """Start a job, and wait for its second step."""
        path = self._work / "rows.jsonl"
        if not path.is_file():
            path.write_text(
                "".join(json.dumps({"messages": row["prompt"] + row["completion"]}) + "\n" for row in rows(ROWS)),
                encoding="utf-8",
            )
        with self._display.working("Starting a job"):
            file = self._client.files.upload(path)
            job = self._client.jobs.create(
                model=self._base, training_file=file.id, name="beside", hyperparameters={"n_epochs": EPOCHS}
            )
            deadline = time.monotonic() + START_SECONDS
            while not (
                job.graftwork.progress.get("phase") == "train" and (job.graftwork.progress.get("step") or 0) > 1
            ):
                if job.ended or time.monotonic() > deadline:
                    why = job.error.message if job.error else f"it is {job.status} after {START_SECONDS:.0f} s"
                    raise BenchmarkError(f"The job does not train: {why}.")
                time.sleep(LOOK_SECONDS)
                job = self._client.jobs.get(job.id)
        return job


def measure(
    knobs: Sequence[TrainerOptions], load: Load, *, home: Path, work: Path, display: Display, flags: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Measure each set of trainer options, with a server of its own."""
    for number, each in enumerate(knobs):
        folder = work / f"server-{number}"
        folder.mkdir()
        with (
            serving(folder / "home", home, *flags, *each.flags, log=folder / "serve.log") as url,
            Client(url, "none") as client,
        ):
            display.say(f"— {' '.join(each.flags)}")
            base = home / "base" / client.models().data[0].id
            for name, adapter in AdapterFolders(base, work / "adapters").folders(load.adapters).items():
                client.adapters.push(name, adapter)
            figures = ServingWhileTraining(client, display, folder).measure(
                load, number * 10 * max(1000, load.requests)
            )
            yield {"share": each.share, "nice": each.nice, "threads": each.threads, **figures}


def to_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Format the measurements as a Markdown table."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [[f"{each[name]:g}" if name == "share" else str(each[name]) for name in COLUMNS] for each in found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.serving_while_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, default=Path("~/.graftwork"), help="where the base is kept")
    parser.add_argument("--shares", default="0.5,0,1", help="of --trainer-share, one server each")
    parser.add_argument("--nice", type=int, help="--trainer-nice")
    parser.add_argument("--threads", type=int, help="--trainer-threads")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8, help="that requests name in turns; 0: the base")
    parser.add_argument("--requests", type=int, default=128, help="of each load")
    parser.add_argument("--prompt-words", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--serve-flag", action="append", default=[], help="one more word for graftwork serve")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write everything here")
    given = parser.parse_args(arguments)
    knobs = [
        TrainerOptions(share=float(share), nice=given.nice, threads=given.threads) for share in given.shares.split(",")
    ]
    load = Load(
        clients=given.clients,
        adapters=named("a", given.adapters),
        requests=given.requests,
        prompt_words=given.prompt_words,
        max_tokens=given.max_tokens,
        warm_up=True,
    )
    found: list[dict[str, Any]] = []
    home = given.home.expanduser()
    try:
        with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="graftwork-beside-") as work:
            for figures in measure(knobs, load, home=home, work=Path(work), display=Display(), flags=given.serve_flag):
                found.append(figures)
                if given.json is not None:
                    write_text(given.json, json.dumps({**machine.describe(), "results": found}, indent=2) + "\n")
                if given.markdown is not None:
                    write_text(given.markdown, to_markdown(found))
    except (GraftworkError, GraftworkClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except CommandInterrupted:
        print("Stopped, and everything that was started with it.", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print(to_markdown(found), end="")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
