"""Control runs learn from the base all that the earlier jobs of their adapter learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.job import CONTROL_KEY
from graftwork.training.run.folder import ANSWERS_FILE, FEEDBACK_FILE
from graftwork.training.worker.job.plan import compared_version, plan_job
from graftwork.training.worker.job.runner import JobRunner
from graftwork.training.worker.job.spec import JobSpec
from tests.training.conftest import chat
from tests.training.exports import answer, said

WORDS = ["amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "kiosk", "larch"]


def judged(first: int, count: int) -> list[dict[str, Any]]:
    """Answers to different questions, each with its correction, as feedback that was written down has them."""
    rows = []
    for number in range(first, first + count):
        asked = {
            "messages": [{"role": "user", "content": f"What about {WORDS[number]} {number} and {WORDS[-number]}?"}]
        }
        rows += [answer(f"chatcmpl-{number}", f"nothing {number}", prompt=asked)]
        rows += [said(f"chatcmpl-{number}", number, correction=f"{WORDS[number]} it is")]
    return rows


def make(folder: Path, base: BaseInfo, rows: list[dict[str, Any]], data: Path | None = None, **fields: Any) -> Path:
    """A run's folder; with ``data`` its rows are that file, else feedback in the folder itself."""
    folder.mkdir(parents=True)
    path = data or folder / FEEDBACK_FILE
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    hyperparameters = {"rank": 4, "num_epochs": 1, "precision": "float32", "validation": 0.1}
    JobSpec(
        job_id=folder.name, name="tickets", base=base, data=(path,), hyperparameters=hyperparameters, **fields
    ).write(folder)
    return folder


def test_of_files_and_of_the_newest_feedback(tiny_base: BaseInfo, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    rows = [chat(f"Ticket {number} on {WORDS[number % 12]}", WORDS[number % 12]) for number in range(60)]
    make(jobs / "ftjob-1", tiny_base, rows, data=tmp_path / "file-1.jsonl")
    make(jobs / "ftjob-2", tiny_base, judged(1, 4), parent=1, parent_folder=tmp_path)
    make(jobs / "ftjob-3", tiny_base, rows[:3], data=tmp_path / "file-3.jsonl")
    for name, status in (("ftjob-1", "succeeded"), ("ftjob-2", "succeeded"), ("ftjob-3", "failed")):
        (jobs / name / "result.json").write_text(json.dumps({"status": status}))
    folder = make(jobs / "ftjob-4", tiny_base, judged(1, 9), metadata={CONTROL_KEY: "tickets@2"})
    (folder / ANSWERS_FILE).write_text(json.dumps(["chatcmpl-1"]))
    spec = JobSpec.read(folder)
    run = plan_job(spec, folder)
    assert (run.parent, run.num_replayed) == (None, 0)
    assert len(run.rows) + len(run.validation) == 69
    assert compared_version(spec, run) == "tickets@2"
    assert run.data == "file-1.jsonl + feedback.jsonl"
    assert json.loads((folder / ANSWERS_FILE).read_text()) == [f"chatcmpl-{number}" for number in range(1, 10)]
    spec_without = replace(spec, metadata={})
    plain = plan_job(spec_without, folder)
    assert compared_version(spec_without, plain) is None
    assert len(plain.rows) + len(plain.validation) == 9
    continued = replace(spec, metadata={}, parent=1, parent_folder=tmp_path)
    assert compared_version(continued, plan_job(continued, folder)) == "tickets@1"
    # What was deleted is not learned again.
    (tmp_path / "file-1.jsonl").unlink()
    assert plan_job(spec, folder).data == "feedback.jsonl"


def test_answers_that_may_be_replayed_are_remembered(tiny_base: BaseInfo, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    older = make(jobs / "ftjob-1", tiny_base, judged(1, 4))
    (older / "result.json").write_text(json.dumps({"status": "succeeded"}))
    folder = make(jobs / "ftjob-2", tiny_base, judged(5, 4))
    spec = replace(JobSpec.read(folder), name="other")
    plan_job(spec, folder)
    assert json.loads((folder / ANSWERS_FILE).read_text()) == [f"chatcmpl-{number}" for number in range(5, 9)]
    continued = replace(spec, parent_name="tickets", parent=1, parent_folder=tmp_path)
    assert plan_job(continued, folder).num_replayed
    assert json.loads((folder / ANSWERS_FILE).read_text()) == [f"chatcmpl-{number}" for number in range(1, 9)]


def test_its_version_says_so(tiny_base: BaseInfo, tmp_path: Path) -> None:
    rows = [chat(f"Ticket {number} on {WORDS[number % 12]}", WORDS[number % 12]) for number in range(12)]
    folder = make(
        tmp_path / "jobs" / "ftjob-1", tiny_base, rows, tmp_path / "rows.jsonl", metadata={CONTROL_KEY: "tickets@2"}
    )
    assert JobRunner(folder).run() == 0
    assert json.loads((folder / "result.json").read_text())["card"]["control"] is True
