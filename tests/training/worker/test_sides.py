"""Over many rounds no question changes sides, and what the gates judge by was neither learned nor watched."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.job import CONTROL_KEY
from graftwork.adapters.learning.split_ledger import SplitLedger
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.adapters.storage.database import Database, migrate
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.source import file_sources
from graftwork.training.data.row import Row
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import DataStore
from graftwork.training.data.tokens import TokenRow
from graftwork.training.run.folder import FEEDBACK_FILE, SIDES_FILE
from graftwork.training.run.plan import TrainingRun
from graftwork.training.worker.job.plan import plan_job
from graftwork.training.worker.job.spec import JobSpec
from tests.training.conftest import chat
from tests.training.exports import answer, said


class Rounds:
    """Rounds of one adapter, of which only the plans are made, beside the ledger as the worker keeps it."""

    def __init__(self, home: Path, base: BaseInfo) -> None:
        (home / "jobs").mkdir(parents=True)
        self.home, self.base, self.number = home, base, 0
        database = Database(home / "graftwork.db")
        migrate(database)
        self.ledger = SplitLedger(database)
        self.prompts = Prompts(Path(base.path))

    def plan(self, data: Path | list[dict[str, Any]], validation: Path | None = None, **fields: Any) -> TrainingRun:
        self.number += 1
        folder = self.home / "jobs" / f"ftjob-{self.number:02}"
        folder.mkdir()
        if isinstance(data, list):
            (folder / FEEDBACK_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in data))
            data = folder / FEEDBACK_FILE
        parent = {} if self.number == 1 or CONTROL_KEY in fields.get("metadata", {}) else {"parent": 1}
        given = {"rank": 4, "precision": "float32", **fields.pop("hyperparameters", {})}
        JobSpec(
            job_id=folder.name,
            name="tickets",
            base=self.base,
            data=(data,),
            validation=() if validation is None else (validation,),
            parent_folder=self.home if parent else None,
            hyperparameters=given,
            **parent,
            **fields,
        ).write(folder)
        before = self.ledger.sides("tickets")
        (folder / SIDES_FILE).write_text(json.dumps(before))
        run = plan_job(JobSpec.read(folder), folder)
        after = json.loads((folder / SIDES_FILE).read_text())
        assert before.items() <= after.items()
        self.ledger.record("tickets", after)
        (folder / "result.json").write_text(json.dumps({"status": "succeeded"}))
        return run

    def numbers(self, rows: Iterable[Row | TokenRow]) -> set[int]:
        """The numbers of the questions, which are written into them."""
        texts = (row.question if isinstance(row, Row) else self.prompts.decode(_ids(row)) for row in rows)
        return {int(text.split("number ")[1].split(" ")[0]) for text in texts}


def _ids(row: TokenRow) -> list[int]:
    return list(row.input_ids)


@pytest.fixture
def rounds(tiny_base: BaseInfo, tmp_path: Path) -> Rounds:
    return Rounds(tmp_path / "home", tiny_base)


def question(number: int) -> str:
    words = [
        f"{chr(97 + (number * step + offset) % 26)}{'aeiou'[number * step % 5]}{step}"
        for step in (3, 7, 11, 17)
        for offset in (1, 5)
    ]
    return f"{' '.join(words)} number {number} ?"


def file_of(path: Path, numbers: Iterable[int]) -> Path:
    path.write_text("".join(f"{json.dumps(chat(question(number), f'label {number % 3}'))}\n" for number in numbers))
    return path


def feedback_on(numbers: Iterable[int]) -> list[dict[str, Any]]:
    rows = []
    for number in numbers:
        asked = {"messages": [{"role": "user", "content": question(number)}]}
        rows += [answer(f"chatcmpl-{number}", f"no {number}", prompt=asked)]
        rows += [said(f"chatcmpl-{number}", number, correction=f"label {number % 3}")]
    return rows


def test_no_question_ever_changes_sides(rounds: Rounds, tmp_path: Path) -> None:
    """Files that grow, feedback, a kept data set, a file of the user's own to measure on, shares from none to 40 %, and
    controls: whatever is learned or watched once is never judged by, and the other way round."""
    store = DataStore(rounds.home / "datasets")
    with prepare(
        file_sources([file_of(tmp_path / "set.jsonl", range(150, 260))], None),
        DataPolicy(shares=Shares(validation=0.2, test=0.2)),
    ) as prepared:
        stored, _ = store.save("support", prepared)
    control = {CONTROL_KEY: "tickets@2"}
    runs = [
        rounds.plan(file_of(tmp_path / "1.jsonl", range(80))),
        rounds.plan(file_of(tmp_path / "2.jsonl", range(160)), hyperparameters={"validation": 0.4}),
        rounds.plan(feedback_on(range(120, 200))),
        rounds.plan(stored.folder),
        rounds.plan(feedback_on(range(100, 220)), metadata=control),
        rounds.plan(
            file_of(tmp_path / "3.jsonl", range(300)),
            validation=file_of(tmp_path / "own.jsonl", range(60, 330)),
        ),
        rounds.plan(file_of(tmp_path / "4.jsonl", range(340)), hyperparameters={"validation": 0}),
        rounds.plan(file_of(tmp_path / "5.jsonl", range(400)), hyperparameters={"validation": 0.25, "search": 3}),
        rounds.plan(feedback_on(range(390, 410)), metadata=control),
    ]
    learned = set().union(*(rounds.numbers(run.rows) for run in runs))
    judged = set().union(*(rounds.numbers([*run.held_out, *run.held_out_older]) for run in runs))
    final = set().union(*(rounds.numbers(run.final) for run in runs))
    watched = set().union(*(rounds.numbers(run.replay_validation) for run in runs))
    watched |= rounds.numbers(runs[7].validation)
    assert len(learned) > 200
    assert len(judged) > 40
    assert final
    assert watched
    assert not judged & learned
    assert not judged & watched
    assert not final & (learned | judged | watched)
    assert not watched & learned
    assert set(rounds.ledger.sides("tickets").values()) == {"train", "validation", "test"}


def test_a_control_learns_from_data_sets_too(rounds: Rounds, tmp_path: Path) -> None:
    with prepare(file_sources([file_of(tmp_path / "set.jsonl", range(60))], None), DataPolicy()) as prepared:
        stored, _ = DataStore(rounds.home / "datasets").save("support", prepared)
    first = rounds.plan(stored.folder)
    control = rounds.plan(feedback_on(range(100, 130)), metadata={CONTROL_KEY: "tickets@1"})
    assert rounds.numbers(control.rows) > rounds.numbers(first.rows)
    assert rounds.numbers(control.held_out) >= rounds.numbers(first.held_out)
    assert control.data == "feedback.jsonl + support@1"


def test_rounds_before_there_was_a_ledger_count_as_well(rounds: Rounds, tmp_path: Path) -> None:
    """A home of 0.1.0: its rounds are there, and their sides are written nowhere."""
    first = rounds.plan(file_of(tmp_path / "1.jsonl", range(100)))
    empty = Database(tmp_path / "empty.db")
    migrate(empty)
    rounds.ledger = SplitLedger(empty)
    second = rounds.plan(file_of(tmp_path / "2.jsonl", range(150)), hyperparameters={"validation": 0.4})
    assert not rounds.numbers(second.held_out) & rounds.numbers(first.rows)
    assert not rounds.numbers(second.rows) & rounds.numbers([*first.held_out, *first.final])


def test_a_round_of_feedback_is_judged_by_what_files_held_out(rounds: Rounds, tmp_path: Path) -> None:
    first = rounds.plan(file_of(tmp_path / "1.jsonl", range(200)))
    second = rounds.plan(feedback_on(range(300, 340)))
    references = [row for row in second.held_out if not row.interactions]
    assert rounds.numbers(references) == rounds.numbers(first.held_out)
    assert replace(references[0], source="", line=0).answer.startswith("label ")
