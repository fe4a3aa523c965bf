"""Feedback: by id only, once per idempotency key, durable after a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from graftwork.adapters.errors import Conflict, InvalidRequest
from graftwork.adapters.feedback import feedback as module
from graftwork.adapters.feedback.feedback import FEEDBACK_KINDS, FeedbackFilter, SubmittedFeedback
from graftwork.adapters.feedback.interactions import BARE_BASE
from tests.adapters.records import Records


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records.new(tmp_path / "graftwork.db")
    yield records
    records.database.close()


def add(records: Records, interaction_id: str, *, key: str | None = None, key_id: str = "local", **said: Any) -> Any:
    return records.feedback.add(
        SubmittedFeedback(interaction_id=interaction_id, **said), key_id=key_id, idempotency_key=key
    )


def test_every_kind_of_feedback_without_a_logged_row(records: Records) -> None:
    id = records.mint(user="ann", experiment="seven", arm="b", probability=0.25, days_ago=400)
    said = SubmittedFeedback(
        interaction_id=id,
        choice=2,
        thumb="down",
        score=0.25,
        correction="Kärtchen 🂡\n",
        preferred_over=records.mint(),
        comment="wrong intent",
        metadata={"page": "7"},
        user="ann",
    )
    row, new = records.feedback.add(said, key_id="k1")
    assert new
    assert SubmittedFeedback(
        **{field: getattr(row, field) for field in SubmittedFeedback.__dataclass_fields__}
    ) == replace(said, preferred_over_choice=0)
    assert (row.adapter, row.experiment, row.arm, row.probability) == ("intents@7", "seven", "b", 0.25)
    assert (row.unit, row.key_id, row.erased_at) == (records.ids.unit(user="ann"), "k1", None)
    assert row.interaction_at.timestamp() == records.ids.read(id).at
    assert abs((row.at - datetime.now(UTC)).total_seconds()) < 10
    assert row.kinds == FEEDBACK_KINDS
    assert list(records.feedback.find()) == [row]


def test_feedback_knows_whether_it_was_asked_for(records: Records) -> None:
    asked, _ = add(records, records.mint(asked=True), thumb="up")
    unasked, _ = add(records, records.mint(), thumb="down")
    assert (asked.asked, unasked.asked) == (True, False)
    for wish, found in ((True, [asked]), (False, [unasked]), (None, [unasked, asked])):
        assert list(records.feedback.find(FeedbackFilter(asked=wish))) == found
        assert list(records.feedback.each(FeedbackFilter(asked=wish))) == found[::-1]


@pytest.mark.parametrize(
    ("said", "param", "says"),
    [
        ({}, None, "at least one of thumb, score"),
        ({"choice": 1, "user": "ann"}, None, "at least one of"),
        ({"score": 1.01}, "score", "0 \\(worst\\) to 1"),
        ({"score": float("nan")}, "score", "0 \\(worst\\) to 1"),
        ({"thumb": "up", "choice": -1}, "choice", "index of a choice"),
        ({"thumb": "up", "choice": 256}, "choice", "index of a choice"),
        ({"thumb": "up", "preferred_over_choice": 1}, "preferred_over_choice", "name that answer in preferred_over"),
        ({"preferred_over": "chatcmpl-1"}, "preferred_over", "no id of an answer"),
        ({"correction": "x" * (module.MAX_TEXT_CHARS + 1)}, "correction", "shorten it"),
        ({"comment": "a\0b"}, "comment", "NUL"),
        ({"correction": "\ud800"}, "correction", "surrogate"),
        ({"thumb": "up", "user": "x" * 257}, "user", "shorten it"),
    ],
)
def test_refused_feedback(records: Records, said: dict[str, Any], param: str | None, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        add(records, records.mint(), **said)
    assert refused.value.param == param
    assert not records.feedback.find()


def test_an_answer_is_not_better_than_itself_but_perhaps_than_its_other_choice(records: Records) -> None:
    id = records.mint()
    for same in ({}, {"preferred_over_choice": 0}):
        with pytest.raises(InvalidRequest, match="preferred over itself"):
            add(records, id, preferred_over=id, **same)
    row, _ = add(records, id, choice=1, preferred_over=id)
    assert (row.choice, row.preferred_over, row.preferred_over_choice) == (1, id, 0)


def test_a_forged_id_is_refused_whoever_the_arm(records: Records) -> None:
    id = records.mint(experiment="e", arm="a", probability=0.5)
    for forged in (id[:-1], id + "A", id.replace("chatcmpl-", "cmpl-"), "chatcmpl-0123456789abcdef"):
        with pytest.raises(InvalidRequest, match="no id of an answer of this server"):
            add(records, forged, thumb="up")
    assert not records.feedback.find()


def test_the_same_key_says_the_same_thing_once(records: Records) -> None:
    id = records.mint()
    first, new = add(records, id, key="a", thumb="up", comment="good")
    assert new
    assert add(records, id, key="a", thumb="up", comment="good") == (first, False)
    for other in (
        {"thumb": "down", "comment": "good"},
        {"thumb": "up"},
        {"thumb": "up", "comment": "good", "user": "x"},
    ):
        with pytest.raises(Conflict, match="was used before, for feedback with another"):
            add(records, id, key="a", **other)
    with pytest.raises(Conflict, match="another interaction_id"):
        add(records, records.mint(), key="a", thumb="up", comment="good")
    assert add(records, id, key="a", key_id="another key", thumb="up")[1], "keys are each caller's own"
    assert add(records, id, key="b", thumb="up")[1]
    assert add(records, id, thumb="up")[1], "without a key everything is new"
    assert add(records, id, thumb="up")[1]
    with pytest.raises(InvalidRequest) as refused:
        add(records, id, key="x" * 257, thumb="up")
    assert refused.value.param == "idempotency_key"
    assert len(records.feedback.find()) == 5


def add_in_another_process(path: Path, id: str, count: int) -> list[tuple[int, bool]]:
    records = Records.at(path)
    added = [add(records, id, key=f"key-{number}", score=number / count) for number in range(count)]
    return [(row.id, new) for row, new in added]


def test_threads_and_processes_that_say_the_same_thing_at_once_say_it_once(records: Records, tmp_path: Path) -> None:
    id, count, path = records.mint(), 20, tmp_path / "graftwork.db"
    with get_context("spawn").Pool(2) as processes:
        started = processes.starmap_async(add_in_another_process, [(path, id, count)] * 2)
        with ThreadPoolExecutor(2) as threads:
            here = list(threads.map(add_in_another_process, [path] * 2, [id] * 2, [count] * 2))
        answers = here + started.get(120)
    rows = {row.id for row in records.feedback.each()}
    assert len(rows) == count
    assert [{row for row, _ in answer} for answer in answers] == [rows] * 4
    assert sum(new for answer in answers for _, new in answer) == count


def acknowledge_for_ever(path: Path, id: str, acknowledged: Any) -> None:
    records = Records.at(path)
    while True:
        row, _ = add(records, id, thumb="up", comment="x" * 500)
        acknowledged.send(row.id)


def test_what_was_acknowledged_is_there_when_the_writer_is_killed(records: Records, tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=acknowledge_for_ever, args=(tmp_path / "graftwork.db", records.mint(), theirs), daemon=True
        )
        process.start()
        theirs.close()
        enough = len(seen) + 20
        while len(seen) < enough:
            assert ours.poll(60)
            seen.append(ours.recv())
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            while True:
                seen.append(ours.recv())
        except EOFError:
            ours.close()
    there = [row.id for row in records.feedback.each()]
    assert set(seen) <= set(there)
    assert len(there) <= len(seen) + 3, "at most one a process was written and not yet acknowledged"
    with records.database.read() as connection:
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"


def test_every_filter_and_pages(records: Records) -> None:
    v7, v8 = records.mint("intents@7", experiment="e", arm="a", probability=0.5), records.mint("intents@8")
    base = records.mint(None)
    rows = {
        "up": add(records, v7, thumb="up")[0],
        "fix": add(records, v8, correction="better", user="ann")[0],
        "best": add(records, v8, preferred_over=v7)[0],
        "base": add(records, base, score=0.5, comment="so so", metadata={"a": "b"})[0],
    }

    def found(**which: Any) -> list[str]:
        matching = [row.id for row in records.feedback.find(FeedbackFilter(**which))]
        assert [row.id for row in records.feedback.each(FeedbackFilter(**which))] == matching[::-1]
        return [name for name, row in rows.items() if row.id in matching]

    assert found() == ["up", "fix", "best", "base"]
    assert found(interaction_id=v8) == ["fix", "best"]
    assert found(adapter="intents") == ["up", "fix", "best"]
    assert found(adapter="intents@7") == found(experiment="e") == found(arm="a") == ["up"]
    assert found(adapter=BARE_BASE) == ["base"]
    assert found(user="ann") == ["fix"]
    assert [found(kind=kind) for kind in FEEDBACK_KINDS] == [["up"], ["base"], ["fix"], ["best"], ["base"], ["base"]]
    assert found(since=rows["best"].at) == ["best", "base"]
    assert found(until=rows["best"].at) == ["up", "fix"]
    assert found(since=datetime.now(UTC) + timedelta(hours=1)) == []
    first = records.feedback.find(limit=3)
    assert first.has_more
    last = records.feedback.find(after=first[-1].id, limit=3)
    assert [row.id for row in (*first, *last)] == sorted((row.id for row in rows.values()), reverse=True)
    assert records.feedback.find(after=2**70)[0].id == rows["base"].id


def test_reading_goes_on_where_it_ended(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 2)
    ids = [add(records, records.mint(), thumb="up")[0].id for _ in range(5)]
    assert [row.id for row in records.feedback.each()] == ids
    assert [row.id for row in records.feedback.each(after=ids[2])] == ids[3:]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE feedback SET thumb = 'down'",
        "UPDATE feedback SET adapter = 'other'",
        "UPDATE feedback SET asked = 1",
        "UPDATE feedback SET correction = 'another'",
        "UPDATE feedback SET correction = NULL",
        "UPDATE feedback SET erased_at = at",
        "DELETE FROM feedback",
        "INSERT OR REPLACE INTO feedback SELECT * FROM feedback",
    ],
)
def test_the_database_itself_refuses_changes(records: Records, statement: str) -> None:
    row, _ = add(records, records.mint(), key="a", thumb="up", correction="better")
    with pytest.raises(DBAPIError, match="append-only"), records.database.write() as connection:
        connection.execute(text(statement))
    assert list(records.feedback.find()) == [row]


def test_the_database_holds_no_other_judgement(records: Records, tmp_path: Path) -> None:
    add(records, records.mint(), thumb="up")
    raw = sqlite3.connect(tmp_path / "graftwork.db")
    columns = [name for (name,) in raw.execute("SELECT name FROM pragma_table_info('feedback') WHERE name <> 'id'")]
    for change in ("'left' AS thumb", "1.5 AS score", "'x' AS preferred_over"):
        name = change.split()[-1]
        values = ", ".join(change.removesuffix(f" AS {name}") if column == name else column for column in columns)
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            raw.execute(f"INSERT INTO feedback ({', '.join(columns)}) SELECT {values} FROM feedback")
    raw.close()


def test_times_follow_ids(records: Records) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: add(records, records.mint(), thumb="up"), range(30)))
    times = [row.at for row in records.feedback.each()]
    assert times == sorted(times)
    assert time.time() - times[0].timestamp() < 60
