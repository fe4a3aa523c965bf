"""A year of weekly rounds on a fast clock: whether an adapter that learns by itself stays true for months.

    python -m benchmarks.year banking77/train.csv banking77/test.csv --json year.json --markdown year.md

The server is a real one; libfaketime puts its clock a week forward after every round (``pip install libfaketime``).
Users have a fixed taste, rate by whim, and ask about other things as the year goes on. Logs are kept for 90 days. Now
and then a user is erased, and a process of the server is killed. In the end it is checked that

- every round came to a decision, and every promotion says why;
- no question was learned from in one round and held out in another, by what the runs recorded;
- no live version is worse than an earlier one on rows that nobody else ever sees, by a paired test at p < 0.01;
- the loss of no live version on plain texts is more than 2 % above the base's.

The exit code is 1 if one of these does not hold. Ctrl-C stops everything; what was measured by then is in the files.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console

from benchmarks.harness import guard, machine
from benchmarks.harness.child_process import ChildProcess
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.output import markdown_row, write_text
from benchmarks.learning.general_loss import general_loss
from benchmarks.learning.own_server import make_home, serve_command
from benchmarks.systems.system import free_port
from graftwork.adapters.learning.rounds.round import ENDED_STATES
from graftwork.clients.cli.exit_codes import CommandInterrupted, ExitCode, interrupted_by_signals
from graftwork.clients.client import Client
from graftwork.clients.demo.loop import write_rows
from graftwork.clients.demo.queries import Query, read
from graftwork.clients.demo.users import Users, run_concurrently
from graftwork.clients.errors import GraftworkClientError
from graftwork.clients.types.learning.rounds import Round
from graftwork.training.evaluation.intervals import sign_test
from graftwork.training.worker.job.rounds import RoundRecord

ADAPTER: Final = "intents"
AT_ONCE: Final = 16
RETENTION_DAYS: Final = 90
START_SECONDS: Final = 300.0
ROUND_SECONDS: Final = 1800.0
"""A round that takes longer is stuck."""

WORSE: Final = 0.01
"""A later live version is worse if a paired test says so at this level."""

GENERAL_LOSS: Final = 1.02
"""The most that the loss on plain texts may be of the base's."""


@dataclass(frozen=True, kw_only=True)
class YearSizes:
    """The sizes of the simulation."""

    weeks: int = 52
    classes: int = 30
    rows: int = 240
    """Of the first version."""

    held_out: int = 2000
    visits: int = 60
    """Users of a week, each with two questions."""

    max_units: int = 150
    kill_every: int = 4
    erase_every: int = 6
    n_epochs: int = 2


@dataclass(kw_only=True)
class Week:
    """What happened in a week."""

    number: int
    state: str
    reason: str
    candidate: str | None
    live: str
    judgements: int
    killed: str | None = None
    erased: bool = False
    seconds: float = 0.0


@dataclass(kw_only=True)
class Reading:
    """A live version on the held-out rows and on plain texts."""

    version: str
    right: list[bool]
    general_loss: float


@dataclass(kw_only=True)
class YearReport:
    """All that was measured, and what does not hold."""

    machine: dict[str, str]
    sizes: YearSizes
    weeks: list[Week] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    base_loss: float = 0.0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def markdown(self) -> str:
        """The weeks and the versions as Markdown tables."""
        lines = [
            f"{len(self.weeks)} weeks in {self.seconds / 60:.0f} minutes: "
            f"{self.machine['cpu']}, {self.machine['date']}.",
            "",
            markdown_row(("version", "right", "loss on plain texts")),
            markdown_row(("---", "---", "---")),
        ]
        for reading in self.readings:
            share = sum(reading.right) / len(reading.right)
            lines.append(
                markdown_row((reading.version, f"{share:.1%}", f"{reading.general_loss / self.base_loss - 1:+.2%}"))
            )
        lines += ["", markdown_row(("week", "round", "live", "judgements", "why")), markdown_row(("---",) * 5)]
        for week in self.weeks:
            lines.append(
                markdown_row((week.number, week.state.replace("_", " "), week.live, week.judgements, week.reason))
            )
        found = [f"- {problem}" for problem in self.problems] or ["All of it held."]
        return "\n".join([*lines, "", *found, ""])


class FastServer:
    """A server whose clock is put forward.

    Args:
        home: its home.
        work: the folder of its logs.
    """

    def __init__(self, home: Path, work: Path) -> None:
        self.home, self._work = home, work
        self._offset = work / "clock"
        self._days, self._starts = 0, 0
        self._child: ChildProcess | None = None
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._set_clock()

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            BenchmarkError: if it does not start.
        """
        self._starts += 1
        flags = ("--retention-days", str(RETENTION_DAYS), "--trainer-nice", "0")
        self._child = child = ChildProcess(
            serve_command(self.home, self._port, flags),
            log=self._work / f"serve-{self._starts}.log",
            environment={
                "LD_PRELOAD": str(_library()),
                "FAKETIME_TIMESTAMP_FILE": str(self._offset),
                "FAKETIME_NO_CACHE": "1",
                # Waiting and timeouts take the time that they take.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        deadline = time.monotonic() + START_SECONDS
        with Client(self.url, "none", max_retries=0, timeout=5) as client:
            while True:
                with suppress(GraftworkClientError):
                    if client.ready().ready:
                        return
                if child.poll() is not None or time.monotonic() > deadline:
                    raise BenchmarkError(f"The server did not start. Its log ends with:\n{child.log_tail()}")
                time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.stop()

    def pass_days(self, days: int) -> None:
        """Put its clock forward."""
        self._days += days
        self._set_clock()

    def kill_one(self, chance: random.Random) -> str:
        """Kill -9 one of its processes, wait until it is dead, and return which. See `revive`."""
        found = psutil.Process().children(recursive=True)
        # The guard between this process and the server has the server's words, too.
        known = [each for each in found if "graftwork" in " ".join(_words(each)) and guard.__file__ not in _words(each)]
        victim = chance.choice(known)
        words = " ".join(_words(victim)[1:4])
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            victim.wait(START_SECONDS)
        return words

    def revive(self) -> None:
        """Start it again if it has ended."""
        if self._child is None or self._child.poll() is not None:
            self.stop()
            self.start()

    def _set_clock(self) -> None:
        write_text(self._offset, f"+{self._days}d\n")


class Year:
    """The simulation, on a server that is ready.

    Args:
        server: the server.
        queries: labelled queries.
        sizes: the sizes.
        work: a folder for files.
        seed: of everything that is drawn.
        say: called with what happens.
    """

    def __init__(
        self,
        server: FastServer,
        queries: Sequence[Query],
        sizes: YearSizes,
        *,
        work: Path,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._server, self._sizes, self._work, self._say = server, sizes, work, say
        self._chance = random.Random(seed)
        self._client = Client(server.url, "none", timeout=120)
        self._users = Users(self._client, ADAPTER)
        self._visitors = 0
        labels = self._chance.sample(sorted({query.label for query in queries}), sizes.classes)
        mine = [query for query in queries if query.label in labels]
        self._chance.shuffle(mine)
        if len(mine) < sizes.held_out + sizes.rows + 10 * sizes.classes:
            raise BenchmarkError(f"{sizes.classes} labels have {len(mine)} queries, which are too few: take more.")
        self._held_out = mine[: sizes.held_out]
        self._first = mine[sizes.held_out : sizes.held_out + sizes.rows]
        self._asked: defaultdict[str, list[Query]] = defaultdict(list)
        for query in mine[sizes.held_out + sizes.rows :]:
            self._asked[query.label].append(query)
        self._labels = sorted(self._asked)

    def run(self, report: YearReport) -> Iterator[None]:
        """Fill the report, week by week."""
        base = next(iter(self._client.models())).id
        report.base_loss = general_loss(self._client, base)
        report.readings.append(self._reading(self._train_first(base)))
        yield
        self._client.learning_policies.set(
            ADAPTER,
            after=None,
            every_days=6,
            at_least=10,
            hyperparameters={"n_epochs": self._sizes.n_epochs},
            experiment={"metric": "thumb", "window_seconds": 2, "max_units": self._sizes.max_units, "days": 3},
        )
        for number in range(1, self._sizes.weeks + 1):
            began = time.monotonic()
            week = self._week(number)
            week.seconds = time.monotonic() - began
            report.weeks.append(week)
            self._say(f"week {number}: {week.state}, {week.live} live; {week.reason} ({week.seconds:.0f} s)")
            if week.live != report.readings[-1].version:
                report.readings.append(self._reading(week.live))
            yield

    # -- a week ----------------------------------------------------------------------------------------------------
    def _week(self, number: int) -> Week:
        before = self._last_round()
        erased = number % self._sizes.erase_every == 0
        users = [f"week-{number}-{visit}" for visit in range(self._sizes.visits)]
        for _ in run_concurrently(lambda user: self._visit(user, number), users, at_once=AT_ONCE):
            pass
        if erased:
            self._client.interactions.erase(user=self._chance.choice(users))
        self._server.pass_days(7)
        moment = time.monotonic() + self._chance.uniform(5, 60)
        killed: str | None = None
        kills = number % self._sizes.kill_every == 0
        deadline = time.monotonic() + ROUND_SECONDS
        while True:
            if kills and killed is None and time.monotonic() > moment:
                killed = self._server.kill_one(self._chance)
            self._server.revive()
            with suppress(GraftworkClientError):
                found = self._last_round()
                if found is not None and (before is None or found.id != before.id):
                    if found.state in ENDED_STATES:
                        return self._told(number, found, killed=killed, erased=erased)
                    if found.state == "experimenting" and found.experiment:
                        self._crowd(number)
            if time.monotonic() > deadline:
                raise BenchmarkError(f"The round of week {number} is stuck: {self._last_round()}")
            time.sleep(0.5)

    def _told(self, number: int, found: Round, *, killed: str | None, erased: bool) -> Week:
        live = f"{ADAPTER}@{self._client.adapters.get(ADAPTER).aliases['live']}"
        return Week(
            number=number,
            state=found.state,
            reason=found.reason or "",
            candidate=found.candidate,
            live=live,
            judgements=sum(found.judgements.values()),
            killed=killed,
            erased=erased,
        )

    def _crowd(self, week: int) -> None:
        """Some users of the experiment; none of them comes twice."""
        users = [f"visitor-{self._visitors + number}" for number in range(AT_ONCE)]
        self._visitors += len(users)
        for _ in run_concurrently(lambda user: self._visit(user, week), users, at_once=AT_ONCE):
            pass

    def _visit(self, user: str, week: int) -> None:
        """Two questions of a user, who likes what is right, and says so as the mood is."""
        mood = random.Random(user)
        says = mood.uniform(0.2, 0.9)
        for _ in range(2):
            query = self._question(mood, week)
            with suppress(GraftworkClientError):  # one that is refused while the server is down
                answer = self._users.ask(query, user=user)
                if answer.right and mood.random() < says:
                    self._client.feedback.send(answer.id, thumb="up")
                elif not answer.right and mood.random() < min(1.5 * says, 1.0):
                    correction = query.label if mood.random() < 0.5 else None
                    self._client.feedback.send(answer.id, thumb="down", correction=correction)

    def _question(self, mood: random.Random, week: int) -> Query:
        """A question about something that is asked more at this time of the year than at others."""
        season = [
            1.05 + math.cos(2 * math.pi * (week / 52 - place / len(self._labels))) for place in range(len(self._labels))
        ]
        (label,) = mood.choices(self._labels, season)
        return mood.choice(self._asked[label])

    # -- versions --------------------------------------------------------------------------------------------------
    def _train_first(self, base: str) -> str:
        rows = self._work / "rows.jsonl"
        write_rows(rows, self._first)
        job = self._client.jobs.create(model=base, name=ADAPTER, training_file=self._client.files.upload(rows).id)
        while not job.ended:
            time.sleep(1)
            job = self._client.jobs.get(job.id)
        if job.fine_tuned_model is None:
            raise BenchmarkError(f"{job.id} {job.status}: {job.error}")
        self._say(f"{job.fine_tuned_model} from {len(self._first)} rows")
        return job.fine_tuned_model

    def _reading(self, version: str) -> Reading:
        answers = {
            told.query.text: told.right
            for told in run_concurrently(
                lambda query: self._users.ask(query, version=version), self._held_out, at_once=AT_ONCE
            )
        }
        right = [answers[query.text] for query in self._held_out]
        self._say(f"{version}: {sum(right)} of {len(right)} held-out rows right")
        return Reading(version=version, right=right, general_loss=general_loss(self._client, version))

    def _last_round(self) -> Round | None:
        return next(iter(self._client.rounds.list(adapter=ADAPTER, limit=1)), None)

    def promotions(self) -> list[Round]:
        """The rounds whose candidates became live."""
        found: list[Round] = []
        after: str | None = None
        while True:
            page = self._client.rounds.list(adapter=ADAPTER, after=after, limit=100)
            found += page.data
            if not page.has_more:
                return [round_ for round_ in found if round_.state == "promoted"]
            after = page.data[-1].id


# --- what must hold ---------------------------------------------------------------------------------------------------


def problems_of(report: YearReport, promotions: Sequence[Round], jobs: Path) -> Iterator[str]:
    """Yield what does not hold of a year.

    Args:
        report: what was measured.
        promotions: the rounds whose candidates became live.
        jobs: the folder of the server's runs.
    """
    if len(report.weeks) < report.sizes.weeks:
        yield f"only {len(report.weeks)} of {report.sizes.weeks} weeks passed"
    for week in report.weeks:
        if week.state not in ("promoted", "set_aside"):
            yield f"the round of week {week.number} came to no decision: {week.state}, {week.reason}"
    for round_ in promotions:
        if round_.decision is None or not round_.decision.reason or round_.decision.replaced is None:
            yield f"the promotion of {round_.candidate} is not explained"
    learned, held_out = set[int](), set[int]()
    for folder in sorted(jobs.iterdir()):
        record = RoundRecord.read(folder)
        if record is not None:
            learned |= {row.question for row in record.rows.sides["train"]}
            held_out |= {row.question for side in ("validation", "test") for row in record.rows.sides[side]}
    if both := learned & held_out:
        yield f"{len(both)} of {len(held_out)} held-out questions were learned from"
    for place, later in enumerate(report.readings):
        if later.general_loss > GENERAL_LOSS * report.base_loss:
            yield f"{later.version} loses {later.general_loss / report.base_loss - 1:.2%} on plain texts"
        for earlier in report.readings[:place]:
            pairs = list(zip(earlier.right, later.right, strict=True))
            lost = sum(was and not is_ for was, is_ in pairs)
            won = sum(is_ and not was for was, is_ in pairs)
            if float(sign_test(lost, won)) < WORSE:
                yield f"{later.version} is worse than {earlier.version}: {lost} rows lost, {won} won"


def _library() -> Path:
    """The preloaded library that fakes the clock.

    Raises:
        BenchmarkError: if it is not installed.
    """
    spec = find_spec("libfaketime")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for folder in folders for path in Path(folder).rglob("libfaketime.so.1")]
    if not found:
        raise BenchmarkError("There is no libfaketime, which puts the server's clock forward: pip install libfaketime.")
    return found[0]


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, and return its exit code."""
    default = YearSizes()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.year", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+", help="CSV files with a column of texts and one of labels")
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"(default: {value})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=Path("~/.graftwork"), help="where the base is kept")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    parser.add_argument("--markdown", type=Path, help="write tables here")
    given = parser.parse_args(arguments)
    sizes = YearSizes(**{name: getattr(given, name) for name in asdict(default)})
    console = Console(stderr=True, highlight=False)
    report = YearReport(machine=machine.describe(), sizes=sizes)
    began = time.monotonic()

    def save() -> None:
        report.seconds = time.monotonic() - began
        if given.json is not None:
            write_text(given.json, json.dumps(asdict(report), indent=1))
        if given.markdown is not None:
            write_text(given.markdown, report.markdown())

    def say(message: str) -> None:
        console.print(f"{(time.monotonic() - began) / 60:6.1f} min  {message}", markup=False, soft_wrap=True)

    try:
        with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="graftwork-year-") as folder:
            work = Path(folder)
            make_home(work / "home", given.home)
            server = FastServer(work / "home", work)
            try:
                server.start()
                year = Year(server, read(*given.data), sizes, work=work, seed=given.seed, say=say)
                for _ in year.run(report):
                    save()
                report.problems = list(problems_of(report, year.promotions(), server.home / "jobs"))
            finally:
                server.stop()
    except (BenchmarkError, GraftworkClientError) as error:
        report.problems.append(str(error))
    except CommandInterrupted:
        report.problems.append("It was interrupted.")
        return ExitCode.INTERRUPTED
    finally:
        save()
    print(report.markdown())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
