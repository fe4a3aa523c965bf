"""What the whole loop is worth: a base, a first version, and two more from what users said of live answers.

    python -m benchmarks.learning.whole_loop banking77.csv --markdown table.md --json table.json

The file has a column of texts and one of labels. Its rows are dealt to four purposes, none to two: held out, looked at
by the gates, labelled for the first version, asked by users. One server with its trainer does everything, over HTTP:
a job learns the labelled rows; simulated users ask the live version, give a thumb up for what is right and a correction
for what is wrong; a job continues the version from that feedback, and it is promoted. After each step the held-out
queries are asked of the server, greedily.

Beside it a plain TRL script learns the same rows in the same time: those of the first version, and all that the last
one saw, with their right labels. With ``--steps`` that alone is measured, in the time that an earlier run's steps took.
Ctrl-C stops everything; what was measured by then is in the files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.harness import machine
from benchmarks.harness.child_process import ChildProcess
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.output import write_text
from benchmarks.learning import trl_script
from benchmarks.learning.data_split import ROUNDS, LoopBenchmarkSizes, LoopDataSplit, split_data
from benchmarks.learning.general_loss import general_loss
from benchmarks.learning.own_server import MemoryMonitor, serving
from benchmarks.learning.report import LoopReport, VersionResult
from graftwork.adapters.base import prepare
from graftwork.adapters.errors import GraftworkError
from graftwork.clients.cli.exit_codes import CommandInterrupted, ExitCode, interrupted_by_signals
from graftwork.clients.client import Client
from graftwork.clients.demo.display import LoopDisplay
from graftwork.clients.demo.loop import write_rows
from graftwork.clients.demo.queries import Query, read
from graftwork.clients.demo.users import MAX_TOKENS, Users, conversation, run_concurrently
from graftwork.clients.errors import GraftworkClientError
from graftwork.clients.types.learning.jobs import Job

ADAPTER: Final = "intents"


AT_ONCE: Final = 16
"""Number of concurrent requests."""

LOOK_SECONDS: Final = 1.0


# --- the loop ---------------------------------------------------------------------------------------------------------


class LoopBenchmark:
    """The loop on a server that is ready, by its API only: the base, a first version, and two more from feedback."""

    def __init__(
        self,
        client: Client,
        hands: LoopDataSplit,
        sizes: LoopBenchmarkSizes,
        *,
        work: Path,
        memory: MemoryMonitor,
        show: LoopDisplay,
        seed: int,
    ) -> None:
        self._client = client
        self._hands = hands
        self._sizes = sizes
        self._work = work
        self._memory = memory
        self._show = show
        self._seed = seed
        self._base = client.models().data[0].id
        self._users = Users(client, ADAPTER)

    def run(self) -> Iterator[VersionResult]:
        """Yield the result of each step.

        Raises:
            GraftworkClientError: if a request fails.
            BenchmarkError: if a job fails.
        """
        yield self._measured(self._base, learned=0)
        gates = self._upload("gates.jsonl", self._hands.gates)
        rows = self._upload("rows.jsonl", self._hands.rows)
        learned = len(self._hands.rows)
        yield self._learn(1, model=self._base, training_file=rows, validation_file=gates, learned=learned)
        for number, hand in enumerate(self._hands.asked, 2):
            live = f"{ADAPTER}@{self._client.adapters.get(ADAPTER).aliases['live']}"
            corrections = self._ask(live, hand)
            learned += len(hand)
            yield self._learn(
                number,
                model=live,
                training_file="feedback",
                validation_file=gates,
                learned=learned,
                corrections=corrections,
                thumbs_up=len(hand) - corrections,
            )

    def _upload(self, name: str, queries: Sequence[Query]) -> str:
        path = self._work / name
        write_rows(path, queries)
        return self._client.files.upload(path).id

    def _ask(self, live: str, queries: Sequence[Query]) -> int:
        """Let users query the live version and give feedback; return the number of corrections."""
        self._show.begin(f"{len(queries)} users ask {live}, and correct what is wrong")
        wrong = 0
        visits = run_concurrently(
            lambda item: self._users.visit(f"user-{live}-{item[0]}", [item[1]]), enumerate(queries)
        )
        for done, visit in enumerate(visits, 1):
            for told in visit.answers:
                wrong += not told.right
                self._show.told(told)
            self._show.progress(done, len(queries), f"{wrong} corrected")
        self._show.end(f"{live} got {wrong} corrections and {len(queries) - wrong} thumbs up")
        return wrong

    def _learn(
        self, number: int, *, model: str, training_file: str, validation_file: str, **about: int
    ) -> VersionResult:
        """Train a version by a job, promote it, and measure it."""
        self._show.begin(f"Training version {number} on top of {model}")
        self._memory.reset()
        began = time.monotonic()
        job = self._client.jobs.create(
            model=model,
            training_file=training_file,
            validation_file=validation_file,
            name=ADAPTER,
            hyperparameters={
                "n_epochs": self._sizes.epochs[number - 1],
                "learning_rate": self._sizes.rates[number - 1],
                "batch_size": self._sizes.batch_size,
                "warmup": self._sizes.warmup,
            },
            seed=self._seed,
        )
        job = self._ended(job)
        seconds = time.monotonic() - began
        if job.fine_tuned_model is None:
            raise BenchmarkError(f"{job.id} {job.status}: {job.error.message if job.error else 'no reason given'}")
        version = next(each for each in self._client.adapters.get(ADAPTER).versions if each.id == job.fine_tuned_model)
        if number > 1:
            self._client.adapters.promote(ADAPTER, version.version, reason="the benchmark's next step")
        metrics = job.graftwork.metrics
        run_bytes, server_bytes = self._memory.run_bytes, self._memory.other_bytes
        gates = version.metadata.get("gates") or {}
        self._show.end(f"{version.id} after {seconds:.0f} s, {metrics['seconds']:.0f} of them training; live now")
        return self._measured(
            version.id,
            **about,
            train_seconds=metrics["seconds"],
            job_seconds=seconds,
            tokens=job.trained_tokens,
            run_bytes=run_bytes,
            server_bytes=server_bytes,
            gates=(*gates.get("refusals", ()), *gates.get("doubts", ())),
        )

    def _ended(self, job: Job) -> Job:
        while not job.ended:
            time.sleep(LOOK_SECONDS)
            job = self._client.jobs.get(job.id)
            at = job.graftwork.progress
            loss, eta = at.get("loss"), at.get("eta_seconds")
            parts = [job.status if job.status != "running" else str(at.get("phase", "starting"))]
            parts += [f"loss {loss:.2f}"] if loss is not None else []
            parts += [f"{eta / 60:.1f} min left"] if eta else []
            self._show.progress(at.get("step") or 0, at.get("total"), " · ".join(parts))
        return job

    def _measured(self, model: str, **about: Any) -> VersionResult:
        queries = self._hands.held_out
        self._show.begin(f"Asking {model} {len(queries)} held-out queries")
        right = 0
        answers = run_concurrently(lambda query: self._users.ask(query, version=model), queries, at_once=AT_ONCE)
        for done, told in enumerate(answers, 1):
            right += told.right
            self._show.progress(done, len(queries), f"{right / done:.0%} right")
        found = VersionResult(
            model=model, right=right, asked=len(queries), general_loss=general_loss(self._client, model), **about
        )
        low, high = found.interval
        self._show.end(f"{model}: {right} of {len(queries)} right, {found.accuracy:.1%} ({low:.1%} to {high:.1%})")
        return found


# --- the peer ---------------------------------------------------------------------------------------------------------


def peer(
    title: str,
    queries: Sequence[Query],
    hands: LoopDataSplit,
    sizes: LoopBenchmarkSizes,
    seconds: float,
    *,
    base: Path,
    work: Path,
    show: LoopDisplay,
) -> VersionResult:
    """Measure the plain TRL script on these rows, trained for at most so many seconds, in a process of its own."""
    show.begin(f"{title}: {len(queries)} rows in {seconds:.0f} s")
    asked, told = work / "peer-asked.json", work / "peer-told.json"
    told.unlink(missing_ok=True)
    answer = [{"prompt": conversation(query), "completion": _completion(query.label)} for query in queries]
    asked.write_text(
        json.dumps(
            {
                "base": str(base),
                "rows": answer,
                "batch_size": sizes.batch_size,
                "epochs": max(sizes.epochs),
                "learning_rate": max(sizes.rates),
                "seconds": seconds,
                "questions": [conversation(query) for query in hands.held_out],
                "max_tokens": MAX_TOKENS,
            }
        ),
        encoding="utf-8",
    )
    log = work / "peer.log"
    with ChildProcess([sys.executable, "-P", trl_script.__file__, asked, told], log=log) as child:
        while (code := child.poll(LOOK_SECONDS)) is None:
            show.log_line(child.log_tail(1)[-100:])
        if code != 0:
            raise BenchmarkError(f"{title} ended with {code}. Its log ends with:\n{child.log_tail()}")
        peak = child.peak_bytes
    found = json.loads(told.read_text(encoding="utf-8"))
    right = sum(said.strip() == query.label for said, query in zip(found["answers"], hands.held_out, strict=True))
    measured = VersionResult(
        model=title,
        learned=len(queries),
        right=right,
        asked=len(hands.held_out),
        train_seconds=found["seconds"],
        tokens=found["tokens"],
        run_bytes=peak,
    )
    low, high = measured.interval
    show.end(f"{title}: {measured.accuracy:.1%} ({low:.1%} to {high:.1%}) after {found['num_steps']} steps")
    return measured


def _completion(label: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": label}]


def measure(
    hands: LoopDataSplit,
    sizes: LoopBenchmarkSizes,
    report: LoopReport,
    *,
    home: Path,
    seed: int,
    peers: bool,
    show: LoopDisplay,
    after_each: Callable[[], None],
) -> None:
    """Fill the report step by step. If it has its steps already, only the peers are measured."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graftwork-learning-")))
        if report.steps:
            info = prepare(None, home, lambda title, share: None)
            _beside(hands, sizes, report, base=Path(info.path), work=work, show=show, after_each=after_each)
            return
        show.begin("Starting a server")
        with (
            serving(work / "home", home, log=work / "serve.log") as url,
            Client(url, "none") as client,
            MemoryMonitor() as memory,
        ):
            show.end(f"Serving on {url}")
            loop = LoopBenchmark(client, hands, sizes, work=work, memory=memory, show=show, seed=seed)
            for step in loop.run():
                report.steps.append(step)
                after_each()
            base = home / "base" / client.models().data[0].id
        if peers:
            _beside(hands, sizes, report, base=base, work=work, show=show, after_each=after_each)


def _beside(
    hands: LoopDataSplit,
    sizes: LoopBenchmarkSizes,
    report: LoopReport,
    *,
    base: Path,
    work: Path,
    show: LoopDisplay,
    after_each: Callable[[], None],
) -> None:
    """Measure the plain script on the same rows, in the time that the report's steps took."""
    everything = (*hands.rows, *(query for hand in hands.asked for query in hand))
    spent = [step.train_seconds or 0.0 for step in report.steps]
    for title, rows, seconds in (
        ("plain TRL, first rows", hands.rows, spent[1]),
        ("plain TRL, all rows", everything, sum(spent)),
    ):
        report.peers.append(peer(title, rows, hands, sizes, seconds, base=base, work=work, show=show))
        after_each()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return its exit code."""
    default = LoopBenchmarkSizes()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.whole_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="CSV with the columns text and label (or category)")
    parser.add_argument("--home", type=Path, default=Path("~/.graftwork"), help="where the base is kept")
    parser.add_argument("--rows", type=int, default=default.rows, help="labelled rows of the first version")
    parser.add_argument("--held-out", type=int, default=default.held_out, help="queries of each label")
    parser.add_argument("--asked", type=int, default=default.asked, help="queries of users before each later version")
    parser.add_argument("--epochs", type=_three(int), default=default.epochs, help="of the three versions: 4,2,2")
    parser.add_argument("--rates", type=_three(float), default=default.rates, help="learning rates of the three")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="the plain TRL script too")
    parser.add_argument("--steps", type=Path, metavar="JSON", help="of an earlier run: measure the plain script alone")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write everything here")
    given = parser.parse_args(arguments)
    sizes = LoopBenchmarkSizes(
        rows=given.rows,
        held_out=given.held_out,
        asked=given.asked,
        epochs=given.epochs,
        rates=given.rates,
        batch_size=given.batch_size,
    )
    report = LoopReport(about={**machine.describe(), "seed": given.seed, "sizes": asdict(sizes)})

    def save() -> None:
        if given.json is not None:
            write_text(given.json, report.to_json())
        if given.markdown is not None:
            write_text(given.markdown, report.to_markdown())

    if given.steps is not None:
        report.steps += VersionResult.read(given.steps)

    try:
        hands = split_data(read(given.data), sizes, seed=given.seed)
        with interrupted_by_signals(), LoopDisplay(Console(stderr=True, highlight=False)) as show:
            measure(
                hands,
                sizes,
                report,
                home=given.home.expanduser().resolve(),
                seed=given.seed,
                peers=given.peers,
                show=show,
                after_each=save,
            )
    except (GraftworkError, GraftworkClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.FAILED
    except CommandInterrupted:
        print("Stopped, and everything that was started with it.", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print(report.to_markdown(), end="")
    return ExitCode.OK


def _three(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        values = tuple(map(kind, text.split(",")))
        if len(values) != ROUNDS:
            raise argparse.ArgumentTypeError(f"takes {ROUNDS} numbers with commas between them")
        return values

    return parse


if __name__ == "__main__":
    sys.exit(main())
