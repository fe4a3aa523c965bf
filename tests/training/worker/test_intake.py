"""Feedback as the data of a job, and erasure from everything that training stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.feedback.erasure import Erasure, pending_erasures
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.feedback.interactions import Completion, interactions_table
from graftwork.adapters.feedback.lineage import Lineage
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.learning import data_sets
from graftwork.adapters.registry import Registry
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.read.source import file_sources, record_source
from graftwork.training.data.row import Row
from graftwork.training.data.splits import Shares
from graftwork.training.data.store import DataStore
from graftwork.training.run import folder as folder_module
from graftwork.training.run.folder import REPORT_FILE, RESULT_FILE, SPEC_FILE
from graftwork.training.run.material import read_files
from graftwork.training.worker import erasing
from graftwork.training.worker import intake as intake_module
from tests.adapters.records import BASE_ID, Records
from tests.training.records import question


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    records = Records.new(tmp_path / "graftwork.db")
    yield records
    records.database.close()


def answer(
    records: Records, text: str, *, user: str = "ann", arm: str | None = None, days_ago: float = 0, **more: Any
) -> str:
    drawn = {} if arm is None else {"experiment": "first", "arm": arm, "probability": 1.0}
    completions = (Completion(index=0, text=text, finish_reason="stop"),)
    id = records.mint(user=user, days_ago=days_ago, **drawn)
    return records.log(id, user=user, completions=completions, **more)


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": question(number)}]


def say(records: Records, id: str, **said: Any) -> None:
    records.feedback.add(SubmittedFeedback(interaction_id=id, **said), key_id="local")


def rows(path: Path) -> list[Row]:
    return [row for source in file_sources([path]) for row in source.rows() if isinstance(row, Row)]


def test_of_a_shadows_answers_only_the_judged_ones_are_learned_from(records: Records, tmp_path: Path) -> None:
    shown = [answer(records, f"shown {number}", arm="live") for number in range(3)]
    copies = [
        answer(records, f"copy {number}", arm="shadow", metadata={"shadow_of": id}) for number, id in enumerate(shown)
    ]
    say(records, shown[0], thumb="up")
    say(records, shown[1], preferred_over=copies[1])
    say(records, copies[2], correction="what a reviewer wrote")
    kept = tmp_path / "feedback.jsonl"
    intake_module.write_feedback(records.database, "intents", kept)
    assert copies[0] not in kept.read_text(), "nobody judged it"
    found = {row.interactions: row for row in rows(kept)}
    assert found.keys() == {(shown[0],), (shown[1], copies[1]), (copies[2],)}
    liked, compared, corrected = found[shown[0],], found[shown[1], copies[1]], found[copies[2],]
    assert (liked.answer, liked.label) == ("shown 0", True)
    assert (compared.answer, compared.rejected) == ("shown 1", "copy 1")
    assert (corrected.answer, corrected.rejected) == ("what a reviewer wrote", "copy 2")


def test_feedback_outlives_its_answers_and_is_never_a_reason_to_refuse(records: Records, tmp_path: Path) -> None:
    """400 thumbs over 120 days, of which the log keeps 90."""
    old = [
        answer(records, f"card {number}", days_ago=120 * (1 - number / 400), prompt={"messages": asked(number)})
        for number in range(400)
    ]
    for id in old:
        say(records, id, thumb="up")
    policies = LogPolicies(records.database, retention_days=90)
    erasure = Erasure(records.database, records.ids, Registry(records.database), base_id=BASE_ID)
    gone = erasure.expire(policies).num_interactions
    assert 95 <= gone <= 101
    kept = tmp_path / "feedback.jsonl"
    assert intake_module.write_feedback(records.database, "intents", kept) == 400
    events, ids = intake_module.check_files([kept], "training_file")
    assert ids == set(old[gone:])
    assert [(event.level, event.message) for event in events] == [
        ("info", f"{gone} of 400 judged answers are no longer in the log: what was said of them is left out")
    ]
    found = read_files([kept], shares=Shares(validation=0.1, test=0))
    assert found.num_rows == 400 - gone
    assert found.report.fates == {"kept": 400 - gone, "expired": gone}
    assert found.report.sources[0].expired == gone
    assert (found.bad, found.report.sources[0].bad) == ((), 0)
    assert f"{gone} judged answers no longer there" in found.report.notes[0]

    with records.database.write() as connection:  # more than any share of the rows, and the first 200 of them
        connection.execute(delete(interactions_table).where(interactions_table.c.id.in_(old[:395])))
    kept.unlink()
    intake_module.write_feedback(records.database, "intents", kept)
    assert read_files([kept], shares=Shares(validation=0, test=0)).report.fates == {"kept": 5, "expired": 395}
    assert erasure.expire(policies, now=datetime.now(UTC) + timedelta(days=100)).num_interactions == 5
    kept.unlink()
    intake_module.write_feedback(records.database, "intents", kept)
    with pytest.raises(InvalidRequest, match=r"no usable row .*its retention has ended"):
        intake_module.check_files([kept], "training_file")


class Home:
    """Ann's and Bob's words in a data set, and in the folders of two jobs that learned from them."""

    def __init__(self, records: Records, path: Path) -> None:
        self.records, self.path = records, path
        questions = {"ann": "Where is my card?", "bob": "How do I cancel the transfer of yesterday?"}
        self.ids = {
            user: answer(
                records, f"words of {user}", user=user, prompt={"messages": [{"role": "user", "content": asked}]}
            )
            for user, asked in questions.items()
        }
        for id in self.ids.values():
            say(records, id, thumb="up")
        answers = [asdict(records.interactions.get(id)) for id in self.ids.values()]
        said = [{"interaction_id": id, "thumb": "up"} for id in self.ids.values()]
        with prepare([record_source("log", json.loads(json.dumps([*answers, *said], default=str)))]) as prepared:
            self.data_set, _ = DataStore(path / data_sets.FOLDER).save("support", prepared)
        self.from_feedback, self.of_bob = self.job("one", "sha256:one"), self.job("two", "sha256:two")
        intake_module.write_feedback(records.database, "intents", self.from_feedback / folder_module.FEEDBACK_FILE)
        lineage = Lineage(records.database)
        lineage.record("sha256:one", self.ids.values())
        lineage.record("sha256:two", [self.ids["bob"]])
        self.erasure = Erasure(records.database, records.ids, Registry(records.database), base_id=BASE_ID)

    def job(self, name: str, digest: str) -> Path:
        folder = self.path / "jobs" / name
        folder.mkdir(parents=True)
        (folder / RESULT_FILE).write_text(json.dumps({"status": "succeeded", "data_digest": digest}))
        (folder / REPORT_FILE).write_text("words of both")
        return folder

    def begin(self, folder: Path) -> None:
        """As if its run were under way."""
        (folder / SPEC_FILE).write_text("{}")
        (folder / RESULT_FILE).unlink(missing_ok=True)

    def carry_out(self) -> None:
        erasing.erase_pending(self.records.database, self.path)

    def text(self) -> str:
        files = (path for folder in ("datasets", "jobs") for path in (self.path / folder).rglob("*") if path.is_file())
        return "".join(path.read_text() for path in files)


def test_who_is_erased_goes_from_data_sets_and_jobs(records: Records, tmp_path: Path) -> None:
    home = Home(records, tmp_path)
    assert "words of ann" in home.text()
    home.erasure.erase_user("ann")
    home.carry_out()
    assert pending_erasures(records.database) == []
    text = home.text()
    assert "words of ann" not in text
    assert "words of bob" in text
    assert not (home.from_feedback / REPORT_FILE).exists(), "it quotes what it was tried on"
    assert (home.of_bob / REPORT_FILE).exists()
    (left,) = DataStore(tmp_path / "datasets").all()
    assert (left.digest, set(left.interactions())) == (home.data_set.digest, {home.ids["bob"]})
    assert home.ids["ann"] not in (home.from_feedback / folder_module.FEEDBACK_FILE).read_text()
    # A version trained on the data set by hand is named from now on.
    assert home.data_set.digest in Lineage(records.database).data_digests([home.ids["ann"]])


def test_a_run_that_has_begun_keeps_its_data_and_one_that_waits_does_not(records: Records, tmp_path: Path) -> None:
    home = Home(records, tmp_path)
    waits = home.job("three", "")
    (waits / RESULT_FILE).unlink()
    intake_module.write_feedback(records.database, "intents", waits / folder_module.FEEDBACK_FILE)
    home.begin(home.from_feedback)
    home.erasure.erase_user("ann")
    home.carry_out()
    assert home.ids["ann"] in (home.from_feedback / folder_module.FEEDBACK_FILE).read_text()
    assert home.ids["ann"] not in (waits / folder_module.FEEDBACK_FILE).read_text()
    erasing.erase_in_folder(records.database, home.from_feedback)  # as the worker does when it has ended
    assert "words of ann" not in home.text()


def test_an_erasure_that_was_killed_is_done_again(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(records, tmp_path)
    home.erasure.erase_user("ann")
    home.erasure.erase_user("nobody")
    assert len(pending_erasures(records.database)) == 1

    class Killed(Exception):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    for step in ("erase_in_folder", "finish_erasure"):
        with monkeypatch.context() as patched:
            patched.setattr(erasing, step, kill)
            with pytest.raises(Killed):
                home.carry_out()
        assert len(pending_erasures(records.database)) == 1
    home.carry_out()
    assert pending_erasures(records.database) == []
    assert "words of ann" not in home.text()
