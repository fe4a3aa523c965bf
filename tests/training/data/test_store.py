"""The store of data sets: atomic, immutable, with erasure."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.errors import GraftworkError, InvalidRequest, NotFound
from graftwork.training.data import store as store_module
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.source import Source, record_source
from graftwork.training.data.report.numbers import report_from_json
from graftwork.training.data.row import SPLITS, group_of
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import DataStore, StoredDataSet
from tests.training.exports import answer, said
from tests.training.records import pair, question

HALVES = DataPolicy(shares=Shares(validation=0.25, test=0.25))


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(tmp_path / "datasets")


def save(store: DataStore, *records: dict[str, Any], name: str = "support") -> StoredDataSet:
    source = record_source("here", records)
    with prepare([source], HALVES, earlier=store.earlier_sides(name)) as prepared:
        return store.save(name, prepared)[0]


RECORDS = [pair(question(number), f"answer {number}", user=f"user {number % 20}") for number in range(60)]


def test_what_is_saved_is_read_again(store: DataStore, tmp_path: Path) -> None:
    with prepare([record_source("here", RECORDS)], HALVES) as prepared:
        stored, is_new = store.save("support", prepared, made_by={"adapter": "sort@1"})
        assert is_new
        assert {side: list(stored.rows(side)) for side in SPLITS} == {
            side: list(prepared.rows(side)) for side in SPLITS
        }
        assert stored.report == prepared.report
        assert stored.digest == prepared.digest
    assert stored.id == "support@1"
    assert stored.folder == tmp_path / "datasets" / "support" / "1"
    assert sum(stored.num_rows.values()) == 60
    assert stored.manifest["made_by"] == {"adapter": "sort@1"}
    assert stored.manifest["policy"]["shares"] == {"validation": 0.25, "test": 0.25}
    assert store.get("support") == store.get("support@1") == stored
    stored.verify()


def test_rows_on_disk_are_what_trainers_read(store: DataStore) -> None:
    import datasets

    preferences = [{"prompt": question(number), "chosen": "A", "rejected": "B"} for number in range(20)]
    stored = save(store, *preferences)
    table = datasets.Dataset.from_list([json.loads(line) for line in (stored.folder / "train.jsonl").open()])
    assert {"prompt", "chosen", "rejected"} <= set(table.column_names)
    assert table[0]["chosen"] == [{"role": "assistant", "content": "A"}]


def test_the_same_rows_are_the_same_version(store: DataStore) -> None:
    first = save(store, *RECORDS)
    assert save(store, *RECORDS) == first
    assert save(store, *RECORDS[:-1]).id == "support@2"
    assert save(store, *RECORDS).id == "support@3"
    assert save(store, *RECORDS, name="other").id == "other@1"
    assert [stored.id for stored in store.all()] == ["other@1", "support@1", "support@2", "support@3"]


def test_what_one_version_trained_on_the_next_does_not_hold_out(store: DataStore) -> None:
    first = save(store, *RECORDS)
    # Other users ask the same: by themselves they would fall elsewhere.
    others = [{**record, "user": f"other {record['prompt']}"} for record in RECORDS]
    second = save(store, *others)
    trained = {row.question_key() for row in first.rows("train")}
    measured = {row.question_key() for row in first.rows("test")}
    assert trained <= {row.question_key() for row in second.rows("train")}
    assert not trained & {row.question_key() for side in ("validation", "test") for row in second.rows(side)}  # type: ignore[arg-type]
    assert measured & {row.question_key() for row in second.rows("test")}


def test_files_cannot_be_changed_unseen(store: DataStore) -> None:
    stored = save(store, *RECORDS)
    path = stored.folder / "train.jsonl"
    assert not path.stat().st_mode & 0o222
    path.chmod(0o644)
    text = path.read_text()
    path.write_text(text.replace("answer", "Answer", 1))
    with pytest.raises(GraftworkError, match=r"train.jsonl is not as it was written"):
        stored.verify()
    for broken in ("{", "[]\n", '{"hello": 1}\n'):
        path.write_text(broken)
        with pytest.raises(GraftworkError, match="broken at line 1"):
            list(stored.rows("train"))
    (stored.folder / "manifest.json").chmod(0o644)
    (stored.folder / "manifest.json").write_text("{")
    with pytest.raises(GraftworkError, match="cannot be read"):
        store.get("support@1")


def test_what_is_not_there_is_said_with_what_is(store: DataStore) -> None:
    with pytest.raises(NotFound, match="no data set 'support'; there is none yet"):
        store.get("support")
    save(store, *RECORDS)
    for reference in ("support@2", "other", "support@live", "../support@1", "support@", "", "@1", "support@1@1"):
        with pytest.raises(NotFound, match="there is support@1"):
            store.get(reference)
    for name in ("", "Support", "a/b", "..", "a" * 65):
        with pytest.raises(InvalidRequest, match="cannot be a data set's name"):
            save(store, *RECORDS, name=name)


def test_many_may_save_at_once(store: DataStore) -> None:
    barrier = threading.Barrier(4)

    def save_one(number: int) -> int:
        with prepare([record_source("here", RECORDS[number:])], HALVES) as prepared:
            barrier.wait()
            return store.save("support", prepared)[0].version

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(save_one, range(4))) == [1, 2, 3, 4]
    for stored in store.all():
        stored.verify()
    assert [path.name for path in store.get("support").folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_save_leaves_nothing(store: DataStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        save(store, *RECORDS)
    assert store.all() == []
    assert list((tmp_path / "datasets" / "support").iterdir()) == []


def killed_after(steps: int, work: Callable[[], object]) -> bool:
    """Does the work in a process that dies after so many operations on the disk; whether it came to its end."""
    child = os.fork()
    if child == 0:
        left = steps

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return original(*given, **more)

            return call

        code = 1
        try:
            for place, name in ((Path, "rename"), (Path, "mkdir"), (os, "fsync"), (shutil, "rmtree")):
                setattr(place, name, counted(getattr(place, name)))
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


def test_a_save_that_is_killed_leaves_a_whole_version_or_none(tmp_path: Path) -> None:
    outcomes = []
    with prepare([record_source("here", RECORDS)], HALVES) as prepared:
        for steps in range(100):
            store = DataStore(tmp_path / str(steps))
            is_done = killed_after(steps, lambda store=store: store.save("support", prepared))  # type: ignore[misc]
            found = store.all()
            for stored in found:
                stored.verify()
                assert list(stored.rows("train")) == list(prepared.rows("train"))
            assert store.save("support", prepared)[0].version == 1
            outcomes.append(len(found))
            if is_done:
                break
    assert is_done
    assert {0, 1} == set(outcomes)


def feedback() -> Source:
    records = []
    for number in range(40):
        asked = {"messages": [{"role": "user", "content": question(number)}]}
        records += [answer(f"a{number}", "pause", prompt=asked, unit=f"u{number}"), said(f"a{number}", thumb="up")]
    return record_source("export", records)


@pytest.fixture
def remembered(store: DataStore) -> StoredDataSet:
    """A data set of forty logged answers."""
    with prepare([feedback()], HALVES) as prepared:
        return store.save("support", prepared)[0]


def test_rows_of_a_user_can_be_forgotten(store: DataStore, remembered: StoredDataSet) -> None:
    assert sorted(remembered.interactions()) == sorted(f"a{number}" for number in range(40))
    other = save(store, *RECORDS, name="other")
    (stored,) = store.erase(["a1", "a2", "unknown"])
    assert stored.id == remembered.id
    assert stored.digest == remembered.digest
    assert set(stored.interactions()) == {f"a{number}" for number in range(40)} - {"a1", "a2"}
    assert [event["rows"] for event in stored.manifest["erased"]] == [2]
    stored.verify()
    assert question(1) not in "".join(path.read_text() for path in stored.folder.iterdir())
    assert [one.id for one in store.erase(groups=[group_of("user 3")])] == [other.id]
    assert sum(store.get("other").num_rows.values()) == 57
    assert store.erase(["a1"]) == []
    report_from_json(stored.manifest["report"])


def test_an_erasure_that_is_killed_is_finished_or_not_begun(remembered: StoredDataSet, tmp_path: Path) -> None:
    outcomes = set()
    for steps in range(100):
        folder = tmp_path / f"erase-{steps}"
        shutil.copytree(tmp_path / "datasets", folder)
        store = DataStore(folder)
        is_done = killed_after(steps, lambda store=store: store.erase(["a1"]))  # type: ignore[misc]
        (stored,) = store.all()
        stored.verify()
        outcomes.add(sum(stored.num_rows.values()))
        store.erase(["a1"])
        assert sum(store.get("support").num_rows.values()) == 39
        kept = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
        assert question(1) not in kept
        if is_done:
            break
    assert is_done
    assert outcomes == {39, 40}


def test_leftovers_of_a_crash_go_after_a_day(store: DataStore, remembered: StoredDataSet) -> None:
    left = [remembered.folder.with_name(f".staged-{name}") for name in ("old", "new")]
    for path in left:
        path.mkdir()
    os.utime(left[0], (0, 0))
    save(store, *RECORDS)
    assert [path.exists() for path in left] == [False, True]


def test_a_folder_of_another_format_is_refused(store: DataStore, remembered: StoredDataSet) -> None:
    path = remembered.folder / "manifest.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**remembered.manifest, "format": 99}))
    with pytest.raises(GraftworkError, match="another version of Graftwork"):
        store.get("support")


def test_the_report_of_a_stored_data_set_is_the_same(store: DataStore) -> None:
    stored = save(store, *RECORDS, {"bad": 1}, pair(question(1) + " now", "answer 1"))
    report = stored.report
    assert report_from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.fates["bad"] == 1
