"""The benchmark of the whole loop with a fake server: its requests and its results."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.harness.errors import BenchmarkError
from benchmarks.learning import whole_loop
from benchmarks.learning.data_split import LoopBenchmarkSizes, LoopDataSplit, split_data
from benchmarks.learning.own_server import MemoryMonitor
from benchmarks.learning.report import LoopReport, VersionResult, wilson
from benchmarks.learning.whole_loop import LoopBenchmark
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.demo.display import LoopDisplay
from graftwork.clients.demo.queries import Query
from graftwork.clients.types.learning.jobs import Job, JobDetails
from tests.benchmarks import fake_trl

LABELS = ("card", "loan", "top_up")
SIZES = LoopBenchmarkSizes(
    rows=8, held_out=2, gates=1, asked=6, epochs=(4, 2, 1), rates=(1e-3, 5e-4, 1e-4), batch_size=4
)
QUERIES = [Query(f"{label} question {number}?", label) for label in LABELS for number in range(12)]


@pytest.fixture
def hands() -> LoopDataSplit:
    return split_data(QUERIES, SIZES, seed=3)


@pytest.fixture
def show() -> Iterator[LoopDisplay]:
    with LoopDisplay(Console(file=io.StringIO())) as shown:
        yield shown


@dataclass
class Server:
    """What the loop needs of a client. Version n answers right where the number in a query leaves a rest below n when
    divided by four; jobs end at the second look."""

    url: str = "http://nowhere"
    jobs_asked: list[dict[str, Any]] = field(default_factory=list)
    uploaded: list[list[dict[str, Any]]] = field(default_factory=list)
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    measured: dict[str, list[str]] = field(default_factory=dict)
    live: int = 0
    fails: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.files = SimpleNamespace(upload=self.upload)
        self.jobs = SimpleNamespace(create=self.create, get=self.get)
        self.adapters = SimpleNamespace(get=self.adapter, promote=self.promote)
        self.feedback = SimpleNamespace(send=lambda id, **said: self.said.append((id, said)))

    def models(self) -> Any:
        return SimpleNamespace(data=[SimpleNamespace(id="tiny")])

    def chat(self, model: str, messages: Any, **options: Any) -> Any:
        text = messages[-1]["content"]
        with self.lock:
            if options["store"] is False:
                self.measured.setdefault(model, []).append(text)
        version = int(model[-1]) if "@" in model else {"tiny": 0, "intents": self.live}[model]
        number = int(text.rstrip("?").rpartition(" ")[2])
        right = number % 4 < version
        answered = "tiny" if version == 0 else f"intents@{version}"
        said = text.split()[0] if right else "what?"
        return SimpleNamespace(
            text=said, adapter=answered, graftwork=SimpleNamespace(arm=None), id=f"{answered} {text}"
        )

    def score(self, model: str, text: str) -> Any:
        return SimpleNamespace(logprobs=(None, -2.0, -3.0))

    def upload(self, path: Path) -> Any:
        self.uploaded.append([json.loads(line) for line in path.read_text().splitlines()])
        return SimpleNamespace(id=f"file-{len(self.uploaded)}")

    def job(self, **more: Any) -> Job:
        details = JobDetails(adapter="intents", method="auto", metrics={"seconds": 10.0 * len(self.jobs_asked)})
        fields: dict[str, Any] = {"status": "running", "seed": 0, "training_file": "", "trained_tokens": 5}
        return Job(id="ftjob-1", created_at=datetime.now(UTC), model="", graftwork=details, **{**fields, **more})

    def create(self, **asked: Any) -> Job:
        self.jobs_asked.append(asked)
        return self.job()

    def get(self, id: str) -> Job:
        if self.fails:
            return self.job(status="failed")
        if len(self.jobs_asked) == 1:
            self.live = 1  # the first version of a name goes live by itself
        return self.job(status="succeeded", fine_tuned_model=f"intents@{len(self.jobs_asked)}")

    def adapter(self, name: str) -> Any:
        refused = {"gates": {"refusals": ["too bold"], "doubts": ["few rows"]}}
        versions = [
            SimpleNamespace(id=f"intents@{number}", version=number, metadata=refused if number == 2 else {})
            for number in range(1, len(self.jobs_asked) + 1)
        ]
        return SimpleNamespace(aliases={"live": self.live}, versions=versions)

    def promote(self, name: str, version: int, *, reason: str) -> None:
        self.live = version


def test_no_query_has_two_purposes_and_every_label_has_each(hands: LoopDataSplit) -> None:
    dealt = [*hands.held_out, *hands.gates, *hands.rows, *(query for hand in hands.asked for query in hand)]
    assert len(dealt) == len(set(dealt))
    assert (len(hands.held_out), len(hands.gates), len(hands.rows)) == (6, 3, 8)
    assert [len(hand) for hand in hands.asked] == [6, 6]
    for hand, each in ((hands.held_out, 2), (hands.gates, 1), (hands.rows, 2)):
        counted = [sum(query.label == label for query in hand) for label in LABELS]
        assert min(counted) >= each
    assert split_data(QUERIES, SIZES, seed=3) == hands
    assert split_data(QUERIES, SIZES, seed=4) != hands


def test_what_differs_in_signs_alone_is_one_query() -> None:
    twins = [Query(query.text.upper().replace("?", " !"), query.label) for query in QUERIES]
    dealt = split_data([*QUERIES, *twins], replace(SIZES, asked=9), seed=0)
    texts = [
        query.text.casefold().rstrip("?! ") for hand in (dealt.held_out, dealt.rows, *dealt.asked) for query in hand
    ]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(("sizes", "said"), [({"rows": 30}, "card has 12"), ({"asked": 40}, "queries left for users")])
def test_too_few_queries_are_said(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(BenchmarkError, match=said):
        split_data(QUERIES, replace(SIZES, **sizes), seed=0)


def test_the_interval_is_wilsons() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_three_versions_each_from_what_users_said_of_the_one_before(
    hands: LoopDataSplit, show: LoopDisplay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_loop, "LOOK_SECONDS", 0.0)
    server: Any = Server()
    memory = MemoryMonitor()
    steps = list(LoopBenchmark(server, hands, SIZES, work=tmp_path, memory=memory, show=show, seed=5).run())
    assert [step.model for step in steps] == ["tiny", "intents@1", "intents@2", "intents@3"]
    assert [step.learned for step in steps] == [0, 8, 14, 20]
    right = [sum(int(query.text.split()[-1][:-1]) % 4 < number for query in hands.held_out) for number in range(4)]
    assert [step.right for step in steps] == right
    assert {step.general_loss for step in steps} == {2.5}
    assert [step.train_seconds for step in steps] == [None, 10.0, 20.0, 30.0]
    assert [step.gates for step in steps] == [None, (), ("too bold", "few rows"), ()]
    assert server.live == 3

    # What was asked of the server.
    held_out = sorted(query.text for query in hands.held_out)
    assert {model: sorted(texts) for model, texts in server.measured.items()} == dict.fromkeys(
        ["tiny", "intents@1", "intents@2", "intents@3"], held_out
    )
    gates, rows = server.uploaded
    assert [row["messages"][-1]["content"] for row in rows] == [query.label for query in hands.rows]
    assert len(gates) == len(hands.gates)
    first, second, third = server.jobs_asked
    assert (first["model"], first["training_file"]) == ("tiny", "file-2")
    assert (second["model"], third["model"]) == ("intents@1", "intents@2")
    assert {job["training_file"] for job in (second, third)} == {"feedback"}
    assert {job["validation_file"] for job in server.jobs_asked} == {"file-1"}
    assert [job["hyperparameters"]["n_epochs"] for job in server.jobs_asked] == [4, 2, 1]
    assert "method" not in second, "the server chooses it by the feedback"

    # What users said: of every query they asked, of the version that was live, and truly.
    for number, hand in enumerate(hands.asked, 1):
        mine = {id.partition(" ")[2]: said for id, said in server.said if id.startswith(f"intents@{number} ")}
        assert mine.keys() == {query.text for query in hand}
        for query in hand:
            is_right = int(query.text.split()[-1][:-1]) % 4 < number
            assert mine[query.text] == ({"thumb": "up"} if is_right else {"thumb": "down", "correction": query.label})
        corrected = sum("correction" in said for said in mine.values())
        assert (steps[number + 1].corrections, steps[number + 1].thumbs_up) == (corrected, 6 - corrected)


def test_a_job_that_fails_ends_it(
    hands: LoopDataSplit, show: LoopDisplay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_loop, "LOOK_SECONDS", 0.0)
    server: Any = Server(fails=True)
    steps = LoopBenchmark(server, hands, SIZES, work=tmp_path, memory=MemoryMonitor(), show=show, seed=0).run()
    assert next(steps).model == "tiny"
    with pytest.raises(BenchmarkError, match="ftjob-1 failed"):
        next(steps)


def test_the_peer_learns_the_same_rows_and_is_asked_the_same(
    hands: LoopDataSplit, show: LoopDisplay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_loop, "trl_script", fake_trl)
    asking = {"base": tmp_path, "work": tmp_path, "show": show}
    found = whole_loop.peer("plain", hands.rows, hands, SIZES, 12.0, **asking)
    asked = json.loads((tmp_path / "peer-asked.json").read_text())
    assert [row["completion"][0]["content"] for row in asked["rows"]] == [query.label for query in hands.rows]
    assert [turns[-1]["content"] for turns in asked["questions"]] == [query.text for query in hands.held_out]
    assert (asked["seconds"], asked["epochs"], asked["learning_rate"]) == (12.0, 4, 1e-3)
    right = sum(query.label == hands.rows[0].label for query in hands.held_out)
    assert (found.right, found.asked, found.learned, found.train_seconds) == (right, 6, 8, 1.5)
    with pytest.raises(BenchmarkError, match="there is no time"):
        whole_loop.peer("plain", hands.rows, hands, SIZES, 0, **asking)


def test_the_peer_alone_has_the_time_of_an_earlier_runs_steps(
    hands: LoopDataSplit, show: LoopDisplay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = LoopReport(about={}, steps=[VersionResult(model="tiny", learned=0, right=0, asked=6)])
    earlier.steps += [
        VersionResult(model=f"intents@{n}", learned=8 * n, right=n, asked=6, train_seconds=10.0 * n, gates=("no",))
        for n in (1, 2, 3)
    ]
    (tmp_path / "earlier.json").write_text(earlier.to_json())
    report = LoopReport(about={}, steps=VersionResult.read(tmp_path / "earlier.json"))
    assert [step.to_json() for step in report.steps] == json.loads(earlier.to_json())["steps"]
    given: list[tuple[int, float]] = []

    def timed(
        title: str, queries: Any, hands: LoopDataSplit, sizes: LoopBenchmarkSizes, seconds: float, **_: Any
    ) -> VersionResult:
        given.append((len(queries), seconds))
        return VersionResult(model=title, learned=len(queries), right=1, asked=6, train_seconds=seconds)

    monkeypatch.setattr(whole_loop, "peer", timed)
    monkeypatch.setattr(whole_loop, "prepare", lambda *_: SimpleNamespace(path=str(tmp_path)))
    whole_loop.measure(hands, SIZES, report, home=tmp_path, seed=0, peers=True, show=show, after_each=lambda: None)
    everything = len(hands.rows) + sum(map(len, hands.asked))
    assert given == [(len(hands.rows), 10.0), (everything, 60.0)]
    assert len(report.peers) == 2


def test_the_table(hands: LoopDataSplit) -> None:
    report = LoopReport(about={"cpu": "two"})
    assert json.loads(report.to_json()) == {"cpu": "two", "steps": [], "peers": []}
    report.steps += [
        VersionResult(model="base", learned=0, right=0, asked=200, general_loss=3.0),
        VersionResult(
            model="intents@1",
            learned=480,
            right=100,
            asked=200,
            general_loss=3.03,
            train_seconds=61.2,
            job_seconds=80.4,
            run_bytes=2_000_000_000,
            server_bytes=1_500_000_000,
            gates=("general_loss is worse",),
        ),
    ]
    report.peers.append(VersionResult(model="plain", learned=480, right=90, asked=200, train_seconds=60.0))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.to_markdown().splitlines()]
    assert {len(row) for row in rows} == {9}
    first = "50.0% (43.1% to 56.9%)"
    assert rows[3] == [
        "intents@1", "480", first, "3.030 (+1.0 %)", "61 s", "80 s", "2.0 GB", "1.5 GB", "general_loss is worse"
    ]  # fmt: skip
    assert rows[4][3:] == ["–", "60 s", "–", "–", "–", "–"]
    low, high = json.loads(report.to_json())["steps"][1]["low"], report.steps[1].interval[1]
    assert low == pytest.approx(0.4314, abs=1e-4)
    assert high == pytest.approx(0.5686, abs=1e-4)


def test_a_file_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.csv").write_text("what,why\n1,2\n")
    assert whole_loop.main([str(tmp_path / "odd.csv")]) == ExitCode.FAILED
    assert "has the columns what, why" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        whole_loop.main([str(tmp_path / "odd.csv"), "--epochs", "1,2"])
    assert "takes 3 numbers" in capsys.readouterr().err
