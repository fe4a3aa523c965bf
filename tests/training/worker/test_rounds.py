"""Rounds of a learning policy from what was said to a version: keeper and worker together; runs are stand-ins. And what
the run of a round holds out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.experiments.store import Experiments
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.learning.job import CONTROL_KEY
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.rounds.policies import LearningPolicies
from graftwork.adapters.learning.rounds.rounds import Rounds
from graftwork.adapters.registry import Registry
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Leases
from graftwork.server.background.keeper import Keeper
from graftwork.server.background.rounds import RoundScheduler
from graftwork.training.run.folder import BEGAN_FILE, FEEDBACK_FILE
from graftwork.training.run.plan import TrainingRun
from graftwork.training.worker.job.plan import job_material, plan_job
from graftwork.training.worker.job.rounds import RoundRecord
from graftwork.training.worker.job.spec import JobSpec
from tests.adapters.records import Records
from tests.e2e.server_process import eventually
from tests.server.fakes import World, adapter_files, form
from tests.training.exports import answer, said
from tests.training.worker.test_worker import SECONDS, working
from tests.training.worker.test_worker import url as url  # the fixtures
from tests.training.worker.test_worker import world as world


@contextmanager
def keeping(world: World) -> Iterator[None]:
    database = Database(world.home / "graftwork.db")
    registry, jobs = Registry(database), Jobs(database)
    policies = LearningPolicies(database, registry, jobs, base_id=world.services.base.id)
    experiments = Experiments(database, registry)
    rounds = Rounds(database, registry, jobs, experiments, base_digest=world.services.base.digest)
    keeper = Keeper(Leases(database), seconds=5)
    keeper.add_duty("learning", RoundScheduler(policies, rounds, Leases(database)).run, every=0.1)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()
        database.close()


def test_what_users_say_becomes_versions(world: World, url: str) -> None:
    records = Records.at(world.home / "graftwork.db")
    httpx.post(f"{url}/v1/adapters/intents/versions", files=form(adapter_files(0)), timeout=SECONDS).raise_for_status()

    def set_policy(**settings: Any) -> None:
        said = {"after": 2, **settings}
        httpx.put(f"{url}/v1/adapters/intents/learning_policy", json=said, timeout=SECONDS).raise_for_status()

    def say() -> None:
        for _ in range(2):
            said = SubmittedFeedback(interaction_id=records.log(records.mint("intents@1")), correction="card_lost")
            records.feedback.add(said, key_id="k")

    def last_round(number: int) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            policy = httpx.get(f"{url}/v1/adapters/intents/learning_policy", timeout=SECONDS).json()
            last = policy["last_round"]
            return last if last and last["number"] == number and last["candidate"] else None

        found: dict[str, Any] = eventually(ended, SECONDS, f"round {number} has ended")
        return found

    set_policy(hyperparameters={"batch_size": 5}, control_every=2)
    with working(world, url), keeping(world):
        say()
        first = last_round(1)
        assert (first["state"], first["candidate"], first["continues"]) == (
            "awaiting_decision", "intents@2", "intents@1",
        ), first  # fmt: skip
        set_policy(hyperparameters={"batch_size": 7}, control_every=2)
        say()
        second = last_round(2)
        assert (second["state"], second["candidate"], second["control"]) == ("awaiting_decision", "intents@3", True), (
            second
        )
    adapter = world.services.registry.adapter("intents")
    assert [version.parent for version in adapter.versions] == [None, 1, None]
    assert adapter.aliases == {"live": 1}
    spec = json.loads((world.home / "jobs" / second["job"] / "job.json").read_text())
    assert (spec["metadata"][CONTROL_KEY], spec["parent"]) == ("intents@1", None)
    assert len(world.services.jobs.find()) == 2
    records.database.close()


def made(home: Path, base: BaseInfo, rows: list[dict[str, Any]], **fields: Any) -> Path:
    """The folder of a run on this feedback."""
    home.mkdir(parents=True)
    (home / FEEDBACK_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = {"rank": 4, **fields.pop("hyperparameters", {})}
    data = (home / FEEDBACK_FILE,)
    JobSpec(job_id=home.name, name="tickets", base=base, data=data, hyperparameters=given, **fields).write(home)
    return home


def judged(count: int, *, user: str | None = None, **judgement: Any) -> list[dict[str, Any]]:
    """Answers to questions that are not like each other, and what was said of them."""
    rows = []
    for number in range(count):
        words = hashlib.sha256(str(number).encode()).hexdigest().translate(str.maketrans("0123456789", "ghijklmnop"))
        asked = {"messages": [{"role": "user", "content": f"{words[:9]} {words[9:18]} {words[18:27]}?"}]}
        rows.append(answer(f"chatcmpl-{number}", f"no {words[:4]}", prompt=asked, unit=user))
        rows.append(said(f"chatcmpl-{number}", number, **judgement))
    return rows


@pytest.mark.parametrize("judgement", [{"correction": "card_lost"}, {"thumb": "up"}])
@pytest.mark.parametrize("user", [None, "ann"])
def test_feedback_holds_out_a_tenth(
    tiny_base: BaseInfo, tmp_path: Path, user: str | None, judgement: dict[str, Any]
) -> None:
    folder = made(tmp_path / "jobs" / "ftjob-1", tiny_base, judged(200, user=user, **judgement))
    run, found = plan_job(JobSpec.read(folder), folder), job_material(JobSpec.read(folder))
    assert 10 <= len(found.held_out) <= 30
    assert len(run.rows) == 200 - len(found.held_out)
    assert len(run.held_out) < len(found.sides["validation"]), "some are watched while it learns"
    given = made(tmp_path / "given", tiny_base, judged(50, thumb="up"), hyperparameters={"validation": 0})
    assert not job_material(JobSpec.read(given)).held_out


def test_a_round_masks_personal_data_in_system_messages_if_asked_to(tiny_base: BaseInfo, tmp_path: Path) -> None:
    rows = judged(30, thumb="up")
    for row in rows[::2]:
        row["messages"].insert(0, {"role": "system", "content": "You talk to ann@acme.com."})

    def planned(**hyperparameters: Any) -> TrainingRun:
        folder = made(
            tmp_path / f"{len(hyperparameters)}" / "ftjob-1", tiny_base, rows, hyperparameters=hyperparameters
        )
        return plan_job(JobSpec.read(folder), folder)

    kept, masked = planned(), planned(personal_in_system="mask")
    assert kept.held_out[0].messages[0]["content"] == "You talk to ann@acme.com."
    assert masked.held_out[0].messages[0]["content"] == "You talk to [EMAIL]."
    assert any("30 rows with personal data in the system message" in remark for remark in kept.remarks)
    assert any("30 × email" in remark for remark in masked.remarks)


def test_what_a_round_learned_from_is_not_held_out_later(tiny_base: BaseInfo, tmp_path: Path) -> None:
    def questions(rows: Any) -> set[str]:
        return {row.question for row in rows}

    jobs = tmp_path / "jobs"
    first = made(jobs / "ftjob-1", tiny_base, judged(30, thumb="up", user="ann"))
    before = job_material(JobSpec.read(first))
    (first / "result.json").write_text(json.dumps({"status": "succeeded"}))
    # One whose feedback was erased altogether.
    empty = made(jobs / "ftjob-2", tiny_base, [])
    (empty / "result.json").write_text(json.dumps({"status": "succeeded"}))
    rows = judged(60, thumb="up", user="ann")
    second = made(jobs / "ftjob-3", tiny_base, rows, parent=1, parent_folder=tmp_path)
    run = plan_job(JobSpec.read(second), second)
    assert run.held_out
    assert not questions(run.held_out) & questions(before.sides["train"])
    # Read again, the first round is as it was: nothing is compared again.
    plan_job(JobSpec.read(first), first)
    record = RoundRecord.read(first)
    assert record is not None
    assert job_material(JobSpec.read(first), kept=record.rows).sides == before.sides
    # A smaller share keeps what it holds out.
    for count in (60, 80, 120, 200):
        wide, narrow = (
            job_material(JobSpec.read(made(tmp_path / f"rows-{number}", tiny_base, judged(number, thumb="up"))))
            for number in (count, count + 5)
        )
        assert questions(narrow.held_out) & questions(wide.sides["train"]) == set()


def test_of_much_feedback_a_round_learns_what_is_new_and_a_share_of_the_rest(
    tiny_base: BaseInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = tmp_path / "jobs"

    def round_(number: int, count: int, **fields: Any) -> TrainingRun:
        parent = {"parent": number - 1, "parent_folder": tmp_path} if number > 1 else {}
        given = {"method": "sft", "hyperparameters": {"validation": 0.1}, **parent, **fields}
        folder = made(jobs / f"ftjob-{number}", tiny_base, judged(count, thumb="up"), **given)
        run = plan_job(JobSpec.read(folder), folder)
        (folder / "result.json").write_text(json.dumps({"status": "succeeded"}))
        return run

    def num_held_out(run: TrainingRun) -> int:
        return len(run.validation) + len(run.final)

    first = round_(1, 80)
    few = round_(2, 120, ancestors=("ftjob-1",))
    assert len(few.rows) + num_held_out(few) == 120, "little feedback is learned as a whole"
    assert few.num_replayed == len(first.rows)
    assert {row.question for row in first.held_out} == {row.question for row in few.held_out_older}
    assert few.replay_validation

    monkeypatch.setattr("graftwork.training.run.plan.LEARNED_AGAIN", 60)
    monkeypatch.setattr("graftwork.training.worker.job.plan._read_again", pytest.fail)  # nothing is cleaned again
    many = round_(3, 160, ancestors=("ftjob-2", "ftjob-1"))
    new = 160 - num_held_out(many) - len(few.rows)
    assert 30 < new < 60
    assert (len(many.rows), many.num_replayed) == (60 + 20, 60 - new + 20)
    # A candidate that was refused has taught its parent nothing.
    apart = round_(4, 160, ancestors=("ftjob-1",))
    new = 160 - num_held_out(apart) - len(first.rows)
    assert (len(apart.rows), apart.num_replayed) == (new + round(new / 3), round(new / 3))
    other_method = round_(5, 160, ancestors=("ftjob-2", "ftjob-1"), method="weighted_sft")
    assert (other_method.num_replayed, len(other_method.rows)) == (0, 160 - num_held_out(other_method))


def test_files_that_earlier_rounds_learned_from_are_read_once(
    tiny_base: BaseInfo, tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rows(*({"prompt": f"{number:x} " * 9, "completion": "yes"} for number in range(40)))
    jobs = tmp_path / "jobs"
    for number in (1, 2):
        folder = jobs / f"ftjob-{number}"
        folder.mkdir(parents=True)
        JobSpec(job_id=folder.name, name="tickets", base=tiny_base, data=(file,), hyperparameters={"rank": 4}).write(
            folder
        )
        plan_job(JobSpec.read(folder), folder)
        (folder / "result.json").write_text(json.dumps({"status": "succeeded"}))
    folder = made(jobs / "ftjob-3", tiny_base, judged(60, thumb="up"), parent=2, parent_folder=tmp_path)
    monkeypatch.setattr(
        "graftwork.training.data.pipeline._Pipeline.find_near_duplicates", lambda self: compared.append(1)
    )
    compared: list[int] = []
    material = job_material(JobSpec.read(folder))
    own = len(compared)
    run = plan_job(JobSpec.read(folder), folder)
    assert run.num_replayed == round((len(run.rows) - run.num_replayed) / 3)
    assert len(compared) == 2 * own, "for the rows of this round alone"
    assert material.num_rows == 60


DATED = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_run_that_goes_on_after_midnight_reads_what_it_began_with(tiny_base: BaseInfo, tmp_path: Path) -> None:
    dated = shutil.copytree(tiny_base.path, tmp_path / "dated")
    (dated / "chat_template.jinja").write_text(DATED)
    base = replace(tiny_base, path=str(dated))
    folder = made(tmp_path / "jobs" / "ftjob-1", base, judged(30, thumb="up"))
    first, again = (plan_job(JobSpec.read(folder), folder) for _ in range(2))
    assert first.rows == again.rows
    (folder / BEGAN_FILE).unlink()
    assert plan_job(JobSpec.read(folder), folder).rows != first.rows
