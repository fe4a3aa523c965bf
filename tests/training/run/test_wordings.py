"""Generated paraphrases: deterministic for a seed, and added to the training rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.storage.database import Database
from graftwork.training.config import TrainConfig
from graftwork.training.data.mix.paraphrases import Wording, rejection_of
from graftwork.training.data.splits import Shares
from graftwork.training.run import wordings as augment
from graftwork.training.run.folder import WORDINGS_FILE
from graftwork.training.run.material import read_files
from graftwork.training.run.plan import TrainingRun, assemble_run
from graftwork.training.worker.folders import JobFolders
from graftwork.training.worker.job import plan
from graftwork.training.worker.job.plan import plan_job
from graftwork.training.worker.job.runner import JobRunner
from graftwork.training.worker.job.spec import JobSpec
from tests.training.conftest import chat
from tests.training.run_files import progress, result
from tests.training.worker.test_job import QUICK, make_job

__all__ = ["make_job"]

QUESTIONS = (
    "Why was my card declined at the shop?",
    "I forgot my passcode, how can I set a new one?",
    "How long does a transfer to another bank take?",
    "My new card still hasn't arrived.",
    "Is there a fee for taking out cash abroad?",
    "There is a payment of 20 euros on my account that I didn't make.",
)


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base with random weights comes to no end."""
    monkeypatch.setattr(augment, "ROOM", 0.2)


@pytest.fixture
def written(
    tiny_base: BaseInfo, few_tokens: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[list[Wording]]]:
    monkeypatch.setattr(augment, "BATCH", 4)
    return partial(augment.generate_wordings, tiny_base, each=2, seed=3, precision="float32")


def test_wordings_are_the_seeds_and_nothing_elses(written: Callable[..., list[list[Wording]]]) -> None:
    seen: list[tuple[int, int]] = []
    first = written(QUESTIONS, on_progress=lambda *told: seen.append(told))
    assert [len(each) for each in first] == [2] * 6
    assert len({wording.text for each in first for wording in each}) > 6
    assert seen == [(0, 12), (4, 12), (8, 12), (12, 12)]
    assert written(QUESTIONS) == first
    assert written(QUESTIONS, seed=4) != first
    assert written(()) == []


def test_what_was_written_before_the_end_is_not_written_again(
    written: Callable[..., list[list[Wording]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "wordings.jsonl"
    whole = written(QUESTIONS, kept=kept)
    lines = kept.read_text().splitlines()
    assert len(lines) == 4  # what of, and three batches
    kept.write_text("\n".join([*lines[:2], lines[2][:9]]))  # killed in the middle of a line
    seen: list[tuple[int, int]] = []
    assert written(QUESTIONS, kept=kept, on_progress=lambda *told: seen.append(told)) == whole
    assert seen == [(4, 12), (8, 12), (12, 12)]
    assert kept.read_text().splitlines() == lines
    # Of other questions, or as many others: all is written anew.
    written(QUESTIONS[:2], kept=kept)
    assert kept.read_text().splitlines()[0] != lines[0]
    written(QUESTIONS, kept=kept)

    def loaded(*args: Any, **more: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(augment, "load_model", loaded)
    assert written(QUESTIONS, kept=kept) == whole


@pytest.mark.slow
def test_the_real_base_says_some_of_it_in_other_words(embedded_base: BaseInfo) -> None:
    write = partial(augment.generate_wordings, embedded_base, QUESTIONS, each=4, seed=0, precision="float32")
    first = write()
    good = {
        question: [wording.text for wording in wordings if rejection_of(question, wording) is None]
        for question, wordings in zip(QUESTIONS, first, strict=True)
    }
    assert sum(map(len, good.values())) >= 2, first
    assert sum(wording.ended for each in first for wording in each) > 12
    assert write() == first


# --- in a run ---------------------------------------------------------------------------------------------------------


def about(base: BaseInfo, config: TrainConfig, questions: Sequence[str], **more: Any) -> list[list[Wording]]:
    """Of "Ticket 7 is about delivery" one good wording, and others that answer."""
    good = [f"About {words[-1]} is the ticket {words[1]}" for words in map(str.split, questions)]
    return [[Wording(text=text), *[Wording(text="Sure!")] * (config.augment - 1)] for text in good]


TICKETS = [chat(f"Ticket {number} is about {what}", what) for number in range(15) for what in ("delivery", "pause")]


def test_other_wordings_are_learned_from_beside_the_originals(
    tiny_base: BaseInfo, write_rows: Callable[..., Path]
) -> None:
    material = read_files([write_rows(*TICKETS, chat("Hi", "greeting"))], shares=Shares(validation=0.2, test=0))
    asked: list[str] = []

    def write(base: BaseInfo, config: TrainConfig, questions: Sequence[str]) -> list[list[Wording]]:
        asked.extend(questions)
        return about(base, config, questions)

    def run(number: int) -> TrainingRun:
        config = TrainConfig(balance="full", augment=number)
        return assemble_run("tickets", material, base=tiny_base, config=config, writer=write)

    plain = run(0)
    assert (asked, plain.num_augmented) == ([], 0)
    more = run(2)
    assert asked == [row.question for row in material.sides["train"] if row.question != "Hi"]
    assert more.num_augmented == len(more.rows) - len(plain.rows) > 0
    assert more.validation == plain.validation
    assert (
        f"Wrote {2 * len(asked)} other wordings of {len(asked)} questions, kept {more.num_augmented}." in more.remarks
    )
    # The weights of classes see them, and what was read is as it was.
    assert [row.input_ids for row in more.rows[: len(plain.rows)]] == [row.input_ids for row in plain.rows]  # type: ignore[union-attr]
    assert more.rows[0].weight != plain.rows[0].weight  # type: ignore[union-attr]


def test_a_job_learns_from_the_same_wordings_when_it_is_begun_again(
    few_tokens: None, make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_job(rows=TICKETS[:16], hyperparameters={**QUICK, "num_epochs": 1, "augment": 1})
    first = plan_job(JobSpec.read(folder), folder)
    there = (folder / WORDINGS_FILE).read_text()
    assert len(there.splitlines()) >= 2

    def loaded(*args: Any, **more: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(augment, "load_model", loaded)
        assert plan_job(JobSpec.read(folder), folder).rows == first.rows
    assert any(remark.startswith("Wrote ") and "other wordings" in remark for remark in first.remarks)


def test_the_card_says_how_many(make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*args: Any, kept: Path, began: datetime, on_progress: Callable[[int, int], None]) -> list[list[Wording]]:
        kept.write_text("somebody's words")
        on_progress(0, 24)
        return about(*args)

    monkeypatch.setattr(plan, "default_writer", write)
    folder = make_job(rows=TICKETS[:16], hyperparameters={**QUICK, "num_epochs": 1, "augment": 1})
    assert JobRunner(folder).run() == 0
    card = result(folder)["card"]
    assert card["rows"]["augmented"] > 0
    assert card["rows"]["train"] > card["rows"]["augmented"]
    assert card["config"]["augment"] == 1
    assert not (folder / WORDINGS_FILE).exists()
    assert f"{card['rows']['augmented']} in other words" in (folder / "adapter" / "README.md").read_text()
    assert any(line.get("message", "").startswith("Wrote ") for line in progress(folder))
    assert any("Writing other wordings: 0 of 24." in line.get("message", "") for line in progress(folder))
    assert json.loads((folder / "job.json").read_text())["hyperparameters"]["augment"] == 1


@pytest.mark.parametrize("method", ["dpo", "kto", "pretrain"])
def test_methods_that_do_not_learn_right_answers_have_no_other_wordings(method: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"this is {method}") as refused:
        TrainConfig(method=method, augment=1)
    assert refused.value.param == "augment"
    assert TrainConfig(method="weighted_sft", augment=8).augment == 8


@pytest.mark.parametrize("number", [-1, 9])
def test_there_are_bounds(number: int) -> None:
    with pytest.raises(ConfigurationError, match="0 to 8"):
        TrainConfig(augment=number)


def test_nothing_of_them_stays_when_a_job_has_ended(tmp_path: Path) -> None:
    database = Database(tmp_path / "graftwork.db")
    folders = JobFolders(tmp_path, database)
    job: Any = SimpleNamespace(id="ftjob-1", status="failed")
    kept = folders.of(job) / WORDINGS_FILE
    kept.write_text("somebody's words")
    folders.tidy(job)
    assert not kept.exists()
    database.close()
