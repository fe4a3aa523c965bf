"""The loop's own logic beside a server of the tests' own making, in which version 2 is as good as a test wants it.

What real servers do with all this is in ``tests/e2e/learning/test_demo.py``.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
from rich.console import Console

from graftwork.clients.demo.display import LoopDisplay, render_result
from graftwork.clients.demo.loop import DemoLoop, DemoSizes
from graftwork.clients.demo.queries import Query, split_queries
from graftwork.clients.demo.results import DemoResult
from graftwork.clients.errors import InvalidArgumentError, NotFoundError
from graftwork.clients.types.adapters import AdapterEvent
from graftwork.clients.types.experiments import Experiment, ExperimentArm, ExperimentDecision, ExperimentMetric
from graftwork.clients.types.experiments import ExperimentOutcome as Ended
from graftwork.clients.types.learning.rounds import Round

NOW = datetime(2026, 11, 22, tzinfo=UTC)
RIGHT = {query.text: query.label for query in (Query(f"{a} {n}", f"l{a}") for a in range(3) for n in range(40))}


@dataclass
class Town:
    """A server that promotes version 2 if it was right for twenty users, and ends undecided after all of them.

    With ``refused`` the gates refuse version 2, and there is no experiment.
    """

    second_is_right: bool
    refused: bool = False
    versions: list[int] = field(default_factory=list)
    live: int = 1
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    jobs_made: list[dict[str, Any]] = field(default_factory=list)
    policy: dict[str, Any] | None = None
    ended: str | None = None
    answers: Any = field(default_factory=lambda: itertools.count())
    judged: set[str] = field(default_factory=set)

    url = "http://town"

    @property
    def adapters(self) -> Any:
        return SimpleNamespace(get=self._adapter, history=lambda name, limit: SimpleNamespace(data=self._events()))

    @property
    def feedback(self) -> Any:
        return SimpleNamespace(send=self._say)

    @property
    def files(self) -> Any:
        return SimpleNamespace(upload=lambda path: SimpleNamespace(id=f"file-{path.name}"))

    @property
    def jobs(self) -> Any:
        return SimpleNamespace(create=self._create, get=lambda id: self._job())

    @property
    def learning_policies(self) -> Any:
        return SimpleNamespace(set=self._learn, remove=lambda name: None)

    @property
    def rounds(self) -> Any:
        return SimpleNamespace(list=lambda adapter, limit: [self._round()], get=lambda id: self._round())

    @property
    def experiments(self) -> Any:
        return SimpleNamespace(get=self._experiment, stop=self._stop)

    def models(self) -> list[Any]:
        return [SimpleNamespace(id="base")]

    def chat(self, model: str, messages: list[dict[str, str]], *, user: str | None, store: Any, **_: Any) -> Any:
        assert (store is False) == ("@" in model)
        number = int(
            model.partition("@")[2]
            or (self.live if self.plan is None or self.ended else 1 + crc32(str(user).encode()) % 2)
        )
        question = messages[-1]["content"]
        right = number == 2 and self.second_is_right
        id = f"{number}-{user}-{next(self.answers)}"
        arm = None if "@" in model or self.plan is None or self.ended else f"intents@{number}"
        origin = SimpleNamespace(arm=arm)
        return SimpleNamespace(
            text=RIGHT[question] if right else "?", adapter=f"intents@{number}", graftwork=origin, id=id
        )

    def _say(self, id: str, **said: Any) -> None:
        self.said.append((id, said))
        if self.plan is None or self.ended:
            return
        self.judged.add(id.split("-", 1)[1].rpartition("-")[0])
        if self.second_is_right and sum(one["thumb"] == "up" for _, one in self.said) >= 20:
            self.ended, self.live = "promoted", 2
        elif len(self.judged) >= self.plan["max_units"]:
            self.ended = "undecided"

    def _adapter(self, name: str) -> Any:
        if not self.versions:
            raise NotFoundError("no such adapter", status=404)
        return SimpleNamespace(aliases={"live": self.live})

    def _events(self) -> tuple[AdapterEvent, ...]:
        made = AdapterEvent(
            id=1, at=NOW, action="push", name="intents", alias=None, from_version=None, to_version=1, actor="local"
        )
        return (made,)

    def _create(self, **given: Any) -> Any:
        self.jobs_made.append(given)
        self.versions.append(1)
        return self._job()

    def _job(self) -> Any:
        progress = SimpleNamespace(progress={"step": 1, "total": 3, "phase": "train"})
        return SimpleNamespace(id="ftjob-1", ended=True, fine_tuned_model="intents@1", graftwork=progress)

    def _learn(self, name: str, **policy: Any) -> None:
        assert policy["after"] == len(self.said)
        self.policy = policy
        self.versions.append(2)
        self.plan = None if self.refused else policy["experiment"]

    def _round(self) -> Round:
        state = "set_aside" if self.refused else "experimenting"
        return Round(
            id="round-1",
            adapter="intents",
            number=1,
            state={"promoted": "promoted", None: state}.get(self.ended, "set_aside"),
            reason="so it is",
            control=False,
            live="intents@1",
            judgements={"thumb": 15},
            policy={},
            job="ftjob-2",
            created_by="keeper",
            created_at=NOW,
            updated_at=NOW,
            rows={"train": 20},
            candidate="intents@2",
            experiment=None if self.refused else "intents-round-1",
        )

    def _stop(self, name: str, reason: str) -> Experiment:
        self.ended = "stopped"
        return self._experiment(name)

    def _experiment(self, name: str) -> Experiment:
        ended = Ended(decision=self.ended, arm=None, reason="so it is", actor="keeper", reading=None)
        return Experiment(
            name=name,
            adapter="intents",
            status="running" if self.ended is None else "ended",
            started_at=NOW,
            started_by="local",
            ended_at=None,
            arms=(
                ExperimentArm(name="intents@1", version=1, adapter="intents@1", control=True, weight=0.5),
                ExperimentArm(name="intents@2", version=2, adapter="intents@2", weight=0.5),
            ),
            metric=ExperimentMetric(name="thumb", label="thumb", goal="up"),
            guardrails=(),
            decision=ExperimentDecision(promote_above=0.0, stop_below=0.0, max_units=40, until=None, automatic=True),
            ramp=None,
            window_seconds=4.0,
            alpha=0.05,
            unrated="leave_out",
            allocation="fixed",
            epochs=(),
            outcome=None if self.ended is None else ended,
            reading=None,
        )


def go(town: Town, work: Path) -> tuple[DemoResult, Path]:
    """The outcome, and what was shown."""
    queries = [Query(text, label) for text, label in RIGHT.items()]
    dealt = split_queries(queries, classes=3, first=2, judged=4, asked=5, traffic=20, seed=0)
    shown = work / "shown"
    with shown.open("w") as file, LoopDisplay(Console(file=file, width=160, force_terminal=True)) as show:
        client: Any = town
        sizes = DemoSizes(users=40, users_a_second=1000.0, poll_seconds=0.01)
        result = DemoLoop(client, "intents", dealt, work=work, sizes=sizes, seed=0, watcher=show).run()
    Console(file=shown.open("a"), width=160).print(render_result(result))
    return result, shown


def test_a_better_version_is_promoted(tmp_path: Path) -> None:
    town = Town(second_is_right=True)
    result, shown = go(town, tmp_path)
    assert (result.promoted, result.decision, result.live) == (True, "promoted", "intents@2")
    assert [measured.share for measured in result.accuracy] == [0.0, 1.0]
    assert (result.corrections, result.thumbs_up) == (15, 0)
    assert all(said["correction"].startswith("l") for _, said in town.said if said["thumb"] == "down")
    assert result.flips == 0
    assert result.visits == sum(result.arms.values()) <= 40
    (job,) = town.jobs_made
    assert (job["model"], job["name"], job["training_file"]) == ("base", "intents", "file-rows.jsonl")
    assert town.policy is not None
    assert (town.policy["experiment"]["metric"], town.policy["experiment"]["max_units"]) == ("thumb", 40)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6
    assert json.loads(json.dumps(result.to_json()))["accuracy"]["intents@2"] == {
        "right": 12,
        "asked": 12,
        "accuracy": 1,
    }
    assert "intents@2 won and is live" in shown.read_text()


def test_one_that_is_not_better_is_not(tmp_path: Path) -> None:
    result, shown = go(Town(second_is_right=False), tmp_path)
    assert (result.promoted, result.decision, result.live) == (False, "set_aside", "intents@1")
    assert result.visits == 40
    assert "intents@2 did not win" in shown.read_text()


def test_one_that_the_gates_refuse_is_not_tried_out(tmp_path: Path) -> None:
    result, shown = go(Town(second_is_right=True, refused=True), tmp_path)
    assert (result.promoted, result.decision, result.experiment, result.visits) == (False, "set_aside", None, 0)
    assert json.loads(json.dumps(result.to_json()))["experiment"] is None
    assert "intents@2 did not win: intents@1 stays live. so it is" in shown.read_text()


def test_a_name_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    town = Town(second_is_right=True, versions=[1])
    with pytest.raises(InvalidArgumentError, match="choose another name with --adapter"):
        go(town, tmp_path)
    assert not town.said
