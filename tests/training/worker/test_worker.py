"""The training worker with real routes, registry and store; runs are fakes with the same contract."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from sqlalchemy.exc import OperationalError

from graftwork.adapters import names
from graftwork.adapters.errors import Unavailable
from graftwork.adapters.experiments.metrics import Metric
from graftwork.adapters.experiments.plan import Arm, ExperimentPlan
from graftwork.adapters.feedback.erasure import pending_erasures
from graftwork.adapters.feedback.lineage import Lineage, interaction_hash
from graftwork.adapters.learning.job import Job, NewJob
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.split_ledger import SplitLedger
from graftwork.adapters.storage.database import Database
from graftwork.server.processes import die_with_parent
from graftwork.training.run import folder as folder_module
from graftwork.training.worker import events
from graftwork.training.worker.job.spec import JobSpec
from graftwork.training.worker.throttle import LINGER_SECONDS, PERIOD_SECONDS, Throttle
from graftwork.training.worker.worker import TrainingWorker
from tests.adapters.records import Records
from tests.e2e.server_process import eventually, free_port
from tests.server.fakes import World, adapter_files, form, make_world
from tests.training import worker_process

ROWS = b'{"prompt": "Where is my card?", "completion": "card_arrival"}\n'
SECONDS = 90.0


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """A server; with the parameter ``bucket`` one whose adapters and files are in a bucket."""
    is_in_bucket = getattr(request, "param", None) == "bucket"
    world = make_world(tmp_path, artifacts=f"file://{tmp_path}/bucket" if is_in_bucket else None)
    (tmp_path / "base.json").write_text(world.services.base.to_json())
    return world


@pytest.fixture
def url(world: World) -> Iterator[str]:
    """Where the world's routes are served."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(world.app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started, SECONDS, "the routes are served")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def jobs(world: World) -> Jobs:
    return world.services.jobs


@contextmanager
def working(world: World, url: str) -> Iterator[TrainingWorker]:
    """A worker in a thread of this process."""
    cache = world.services.artifact_cache
    artifacts = None if cache is None else f"file://{world.home}/bucket"
    worker = TrainingWorker(replace(worker_process.config(world.home, url), artifacts=artifacts))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stopping.set()
        thread.join()


def submit(world: World, rows: bytes = ROWS, **asked: Any) -> Job:
    steps = asked.pop("steps", 12)
    with world.services.files.upload() as upload:
        upload.write(rows)
        file = world.services.files.keep(upload, filename="rows.jsonl", purpose="fine-tune", key_id="k")
    new = NewJob(
        **{
            "model": "tiny-base",
            "name": "intents",
            "method": "sft",
            "training_file": file.id,
            "hyperparameters": {"batch_size": steps},
            **asked,
        }
    )
    return world.services.jobs.submit(new, actor="ann", key_id="k")[0]


def ended(jobs: Jobs, id: str, seconds: float = SECONDS) -> Job:
    return eventually(lambda: job if (job := jobs.get(id)).ended else None, seconds, "the job has ended") or jobs.get(
        id
    )


def messages(jobs: Jobs, id: str) -> list[str]:
    return [event.message for event in jobs.events(id, limit=100)][::-1]


def runs() -> list[psutil.Process]:
    """The runs of this process's workers, wherever they are below it."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if is_run(process)]


def is_run(process: psutil.Process) -> bool:
    try:
        return any("stand_in_run" in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------------------------------------- how it should go


def test_a_job_becomes_a_version(world: World, url: str, jobs: Jobs) -> None:
    first = submit(world, metadata={"owner": "ann"})
    with working(world, url):
        job = ended(jobs, first.id)
        assert (job.status, job.version, job.error) == ("succeeded", "intents@1", None)
        adapter = world.services.registry.adapter("intents")
        assert adapter.aliases == {"live": 1}
        version = adapter.versions[0]
        assert (version.metadata["job"], version.parent, version.metadata["method"]) == (job.id, None, "sft")
        assert (job.trained_tokens, job.metrics) == (1200, {"loss": 10 / 12})
        assert (job.progress["step"], job.progress["total"], job.progress["phase"]) == (12, 12, "train")
        assert [point.step for point in jobs.checkpoints(job.id)] == [10, 5]
        assert jobs.checkpoints(job.id)[0].metrics["train_loss"] == 1.0
        steps = [event.data["step"] for event in jobs.events(job.id, limit=100) if event.data]
        assert steps[::-1] == list(range(1, 13))
        assert messages(jobs, job.id)[-1] == "The job has successfully completed."
        table = world.services.files.path(world.services.files.get(job.result_files[0])).read_text().splitlines()
        assert (len(table), table[0].split(",")[:2], table[2].split(",")[:2]) == (
            13,
            ["step", "train_loss"],
            ["2", "5.0"],
        )
        again = ended(jobs, submit(world).id)
        assert again.version == "intents@1", "the same bytes are the same version"
        other = ended(jobs, submit(world, seed=1, parent="intents@1", model="intents").id)
        assert other.version == "intents@2"
        assert world.services.registry.version("intents", 2).parent == 1
        assert JobSpec.read(world.home / "jobs" / other.id).ancestors == (first.id,)
        assert world.services.registry.adapter("intents").aliases == {"live": 1}, "no alias moves by itself"
        left = {path.name for path in (world.home / "jobs" / job.id).iterdir()}
        assert left == {"job.json", "progress.jsonl", "result.json", "run.log", "run.lock"}


@pytest.mark.parametrize("world", ["bucket"], indirect=True)
def test_what_only_the_bucket_has_is_fetched_for_a_job(world: World, url: str, jobs: Jobs) -> None:
    with working(world, url):
        assert ended(jobs, submit(world).id).version == "intents@1"
    parent = world.services.registry.version("intents", 1).digest
    job = submit(world, seed=1, parent="intents@1", model="intents")
    world.services.store.withdraw(parent)
    for file in world.services.files.root.glob("*.jsonl"):
        file.unlink()
    with working(world, url):
        done = ended(jobs, job.id)
    assert (done.status, done.version) == ("succeeded", "intents@2")
    folder = JobSpec.read(world.home / "jobs" / job.id).parent_folder
    assert folder is not None
    assert folder.parent == world.home / "jobs" / job.id / "parents"
    assert parent not in world.services.store.sizes()
    table = world.services.files.path(world.services.files.get(done.result_files[0]))
    table.unlink()
    assert world.services.files.fetch(world.services.files.get(done.result_files[0])) == table


def test_a_candidate_gets_its_alias_if_all_gates_passed(world: World, url: str, jobs: Jobs) -> None:
    def end(seed: int, **asked: str) -> Job:
        return ended(jobs, submit(world, seed=seed, metadata=asked).id)

    def aliases() -> dict[str, int]:
        return dict(world.services.registry.adapter("intents").aliases)

    with working(world, url):
        first = end(1, gates="refuse")
        assert (first.status, aliases()) == ("succeeded", {"live": 1})
        (why,) = [event for event in jobs.events(first.id, limit=100) if event.level == "warn"]
        assert "accuracy fell by 0.100, and at most 0.02 is allowed" in why.message
        passed = end(2, gates="pass")
        assert aliases() == {"live": 1, "candidate": 2}
        assert "All gates are passed: intents@candidate is intents@2 now." in messages(jobs, passed.id)
        end(3, gates="refuse")
        end(4)  # which nobody judged
        assert aliases() == {"live": 1, "candidate": 2}

        arms = (Arm(name="now", version=1), Arm(name="next", version=2, weight=0.5, alias="candidate"))
        plan = ExperimentPlan(adapter="intents", arms=arms, metric=Metric.of("thumb"))
        services = world.services
        services.experiments.start("first", plan, base_digest=services.base.digest, actor="ann")
        meanwhile = end(5, gates="pass")
        assert (meanwhile.status, meanwhile.version) == ("succeeded", "intents@5")
        assert aliases() == {"live": 1, "candidate": 2}, "what an experiment compares stays what it is"
        assert any("the experiment 'first'" in message for message in messages(jobs, meanwhile.id))
    assert services.registry.version("intents", 3).metadata["gates"]["passed"] is False


def test_the_sides_of_questions_outlive_their_jobs(world: World, url: str, jobs: Jobs) -> None:
    ledger = SplitLedger(Database(world.home / "graftwork.db"))
    with working(world, url):
        assert ended(jobs, submit(world, seed=1, metadata={"side": "train", "fail": "yes"}).id).status == "failed"
        assert ledger.sides("intents") == {}, "nothing was learned"
        for seed, side in ((2, "validation"), (3, "train")):
            job = ended(jobs, submit(world, seed=seed, metadata={"side": side}).id)
            assert job.status == "succeeded"
            kept = world.home / "jobs" / job.id / folder_module.SIDES_FILE
            eventually(lambda: not kept.exists(), 10, "the worker clears up behind a job that has ended")  # noqa: B023
            assert ledger.sides("intents") == {"0" * 16: "validation"}


def test_one_that_the_gates_cannot_judge_is_a_candidate_for_an_experiment(world: World, url: str, jobs: Jobs) -> None:
    with working(world, url):
        assert ended(jobs, submit(world, seed=1, metadata={"gates": "pass"}).id).status == "succeeded"
        open_one = ended(jobs, submit(world, seed=2, metadata={"gates": "inconclusive"}).id)
    assert dict(world.services.registry.adapter("intents").aliases) == {"live": 1, "candidate": 2}
    (said,) = [event for event in jobs.events(open_one.id, limit=100) if event.level == "warn"]
    assert said.message == (
        "The gates cannot say: 12 held-out rows, and fewer than 20 let nothing pass. intents@candidate is intents@2 "
        "now: compare it in an experiment before you promote it."
    )


def test_a_trial_that_was_killed_ends_with_its_job(world: World, url: str, jobs: Jobs) -> None:
    job, other = submit(world), "ftjob-of-another-home"
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        for number, of in enumerate((job.id, other)):
            said = {"metadata": json.dumps({"job": of})}
            pushed = client.post(
                f"/v1/adapters/{names.TRIAL}{number:016x}/versions", files=form(adapter_files(number)), data=said
            )
            assert pushed.status_code == 201
    with working(world, url):
        assert ended(jobs, job.id).status == "succeeded"
        eventually(lambda: len(world.services.registry.trials()) == 1, SECONDS, "the trial has ended")
    assert [version.metadata["job"] for version in world.services.registry.trials()] == [other]


def test_feedback_is_learned_from_and_that_is_on_record(world: World, url: str, jobs: Jobs) -> None:
    records = Records.at(world.home / "graftwork.db")
    with working(world, url):
        none = ended(jobs, submit(world, training_file="feedback", name="intents", method="auto").id)
        assert (none.error or {})["code"] == "no_feedback"
        first = ended(jobs, submit(world).id)
        id = records.log(records.mint("intents@1", user="ann"), user="ann")
        world.services.records.feedback.add(intake_said(id), key_id="k")
        job = ended(jobs, submit(world, training_file="feedback", method="auto", seed=5).id)
        assert (job.status, job.error) == ("succeeded", None), job.error
    assert first.version == "intents@1"
    digest = world.services.registry.version("intents", 2).data_digest
    assert digest is not None
    lineage = Lineage(records.database)
    assert lineage.hashes([digest]) == {interaction_hash(id)}
    kept = world.home / "jobs" / job.id / folder_module.FEEDBACK_FILE
    assert id in kept.read_text(), "later rounds learn it again"
    report = kept.with_name("report.html")
    report.write_text("what ann said")
    world.services.records.erasure.erase_user("ann")
    with working(world, url):
        eventually(lambda: not pending_erasures(records.database), SECONDS, "the worker has done it")
    assert kept.read_text() == "", "unless somebody asked to be forgotten"
    assert not report.exists()
    records.database.close()


def intake_said(id: str) -> Any:
    from graftwork.adapters.feedback.feedback import SubmittedFeedback

    return SubmittedFeedback(interaction_id=id, correction="card_arrival")


# --------------------------------------------------------------------------------------------------- how it may end


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (b'{"nothing": "known"}\n', "line 1"),
        (b"[1]\n[2]\n", "the array ends on line 1"),
        (b'{"prompt": "a", "completion": ""}\n', "line 1"),
    ],
)
def test_data_that_nothing_can_be_learned_from(world: World, url: str, jobs: Jobs, rows: bytes, says: str) -> None:
    with working(world, url):
        job = ended(jobs, submit(world, rows).id)
    assert job.error is not None
    assert (job.status, job.error["param"], job.started_at) == ("failed", "training_file", None)
    assert says in job.error["message"]


def test_some_bad_rows_are_told(world: World, url: str, jobs: Jobs) -> None:
    with working(world, url):
        job = ended(jobs, submit(world, ROWS + b"{oops\n" + ROWS).id)
    assert job.status == "succeeded"
    (warning,) = [event for event in jobs.events(job.id, limit=100) if event.level == "warn"]
    assert warning.message.startswith("1 of 3 rows cannot be used: ")
    assert "2" in warning.message


@pytest.mark.parametrize("down_for", [1, 2])
def test_a_database_that_fails_before_the_run_leaves_no_claim_behind(
    world: World, url: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, down_for: int
) -> None:
    """It fails once; or again, when the job is to be given back, and then the claim expires."""
    failures = [OperationalError("SELECT", {}, Exception("the connection was lost")) for _ in range(down_for)]

    def failing(before: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if failures:
                raise failures.pop()
            return before(*args, **kwargs)

        return call

    spec, release = TrainingWorker._spec, Jobs.release
    monkeypatch.setattr(TrainingWorker, "_spec", failing(spec))
    monkeypatch.setattr(Jobs, "release", failing(release))
    first = submit(world)
    with working(world, url) as worker:
        job = ended(jobs, first.id)
        assert (job.status, job.version) == ("succeeded", "intents@1")
        assert worker._heartbeat._claims == {}
    said = [message for message in messages(jobs, job.id) if "database was busy" in message]
    assert len(said) == (down_for == 1)


def test_a_worker_that_fails_at_a_job_ends_it(
    world: World, url: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("embedded null byte")

    monkeypatch.setattr(TrainingWorker, "_spec", fail)
    worker, id = TrainingWorker(worker_process.config(world.home, url)), submit(world).id

    def step() -> bool:
        with suppress(ValueError):
            worker.step()
        return jobs.get(id).ended

    eventually(step, SECONDS, "the job has ended")
    worker._stop()
    error = jobs.get(id).error
    assert error is not None
    assert error["code"] == "too_many_attempts"
    assert "ValueError" in error["message"]
    assert worker._heartbeat._claims == {}


def test_a_run_that_fails_says_why_and_publishes_nothing(world: World, url: str, jobs: Jobs) -> None:
    with working(world, url):
        job = ended(jobs, submit(world, metadata={"fail": "yes"}).id)
    assert (job.status, job.error) == ("failed", {"code": "nan_loss", "message": "It diverged.", "param": None})
    assert list(world.services.registry.adapters()) == []


def test_a_run_that_always_dies_ends_with_the_reason(world: World, url: str, jobs: Jobs) -> None:
    with working(world, url):
        job = ended(jobs, submit(world, metadata={"crash_at": "3"}).id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "too_many_attempts")
    assert "SIGKILL" in job.error["message"]
    assert sum(message.startswith("From step 0") for message in messages(jobs, job.id)) == 3


def test_a_refused_version_ends_the_job(world: World, url: str, jobs: Jobs) -> None:
    world.engine.refuse = True
    with working(world, url):
        job = ended(jobs, submit(world).id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "inert_adapter")


def test_a_version_waits_until_the_server_can_take_it(world: World, url: str, jobs: Jobs) -> None:
    world.engine.state = "recovering"
    job = submit(world)
    with working(world, url):
        eventually(lambda: jobs.get(job.id).publishing, SECONDS, "it is being published")
        eventually(lambda: waits(jobs, job.id), SECONDS, "it is said why it waits")
        assert jobs.get(job.id).status == "running"
        world.engine.state = "ready"
        assert ended(jobs, job.id).version == "intents@1"
    assert len(waits(jobs, job.id)) == 1


def waits(jobs: Jobs, id: str) -> list[str]:
    return [message for message in messages(jobs, id) if "waits for the server" in message]


@pytest.mark.parametrize(
    ("errno_", "code", "says", "told"),
    [(errno.ENOSPC, "disk_full", "disk is full", 0), (errno.EIO, "push_refused", "failed at the version 3 times", 1)],
)
def test_a_server_that_breaks_at_a_version_ends_the_job(
    world: World,
    url: str,
    jobs: Jobs,
    errno_: int,
    code: str,
    says: str,
    told: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno_, os.strerror(errno_))

    monkeypatch.setattr("graftwork.adapters.registry.artifacts.StagedFile.write", broken)
    monkeypatch.setattr("graftwork.training.worker.worker.PUSH_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("graftwork.training.worker.worker.MAX_BROKEN_PUSHES", 3)
    with working(world, url):
        job = ended(jobs, submit(world).id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", code)
    assert says in job.error["message"]
    assert len(waits(jobs, job.id)) == told
    assert list(world.services.registry.adapters()) == []


def test_a_version_that_is_there_fails_no_job(
    world: World, url: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("graftwork.adapters.registry.registry.Registry.set_alias", full)
    monkeypatch.setattr("graftwork.training.worker.events.results_csv", full)
    with working(world, url):
        job = ended(jobs, submit(world, metadata={"gates": "pass"}).id)
    assert (job.status, job.version, job.result_files) == ("succeeded", "intents@1", ())
    told = [event.message for event in jobs.events(job.id, limit=100) if event.level == "warn"]
    assert any("intents@candidate stays where it is" in message for message in told)
    assert any("table of measurements was not kept" in message for message in told)


def test_cancelled_while_it_runs_it_stops_and_publishes_nothing(world: World, url: str, jobs: Jobs) -> None:
    job = submit(world, metadata={"hang": "yes"})
    with working(world, url):
        eventually(lambda: jobs.get(job.id).progress.get("step"), SECONDS, "it runs")
        (run,) = runs()
        trials = world.home / "jobs" / job.id / "trials"
        (trials / "trial-1" / "adapter").mkdir(parents=True)  # as a search leaves them
        assert jobs.cancel(job.id, actor="ann").status == "cancelled"
        run.wait(10)
        assert ended(jobs, submit(world).id).status == "succeeded", "the worker goes on with the next one"
    assert not trials.exists()
    assert messages(jobs, job.id)[-1] == "The job was cancelled by ann."
    assert [version.number for version in world.services.registry.adapter("intents").versions] == [1]


def test_a_run_may_begin_before_its_check_is_over(
    world: World, url: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job waits for its run from the moment in which that is written; the thread that wrote it is not done then."""
    write, may_end = Jobs.mark_validated, threading.Event()

    def validated(*args: Any) -> None:
        write(*args)
        may_end.wait(SECONDS)

    monkeypatch.setattr(Jobs, "mark_validated", validated)
    job = submit(world, metadata={"hang": "yes"})
    try:
        with working(world, url) as worker:
            eventually(lambda: jobs.get(job.id).progress.get("step"), SECONDS, "it runs")
            may_end.set()
            eventually(lambda: worker._checking is None, SECONDS, "the check is over")
            (run,) = runs()
            jobs.cancel(job.id, actor="ann")
            run.wait(10)
    finally:
        may_end.set()


def test_a_full_disk_is_a_clear_end(world: World, url: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "job.json")

    monkeypatch.setattr("graftwork.training.worker.job.spec.JobSpec.write", full)
    with working(world, url):
        job = ended(jobs, submit(world).id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "disk_full")


def test_folders_that_cannot_be_tidied_do_not_hold_up_the_others(world: World, url: str, jobs: Jobs) -> None:
    job = submit(world)
    jobs.cancel(job.id, actor="ann")
    folders = world.home / "jobs"
    left = folders / job.id / "checkpoints"
    for folder in ("aaa-of-another-database", "zzz-of-another-database", job.id):
        (folders / folder / "checkpoints").mkdir(parents=True)
    worker = TrainingWorker(worker_process.config(world.home, url))
    worker.step()
    assert not left.exists()
    left.mkdir()
    worker.step()
    assert left.exists(), "it is swept in its own time, and not at every step"


# ---------------------------------------------------------------------------------------------- stops, kills, pauses


def test_a_stopped_worker_gives_its_job_back_and_the_next_one_goes_on(world: World, url: str, jobs: Jobs) -> None:
    job = submit(world, steps=60, metadata={"step_seconds": "0.05"})
    with working(world, url):
        eventually(lambda: len(jobs.checkpoints(job.id)) >= 2, SECONDS, "it has checkpoints")
    stopped = jobs.get(job.id)
    assert (stopped.status, stopped.owner) == ("queued", None)
    assert messages(jobs, job.id)[-1].startswith("The server stops")
    assert runs() == []
    with working(world, url):
        assert ended(jobs, job.id).status == "succeeded"
    assert "The job goes on." in messages(jobs, job.id)
    assert "From step 0." in messages(jobs, job.id)


def kills(world: World, url: str, jobs: Jobs, count: int, seed: int) -> None:
    """Kill worker or run at random moments; jobs end as undisturbed ones do, or failed with their reason. The first job
    learns from feedback, and feedback comes all the time."""
    moments = random.Random(seed)
    records = Records.at(world.home / "graftwork.db")
    acknowledged: list[int] = []

    def say(name: str) -> None:
        id = records.log(records.mint(f"{name}@1"))
        acknowledged.append(world.services.records.feedback.add(intake_said(id), key_id="k")[0].id)

    def submit_one(name: str, number: int) -> str:
        feedback = {"training_file": "feedback", "method": "auto"} if number == 0 else {}
        for _ in range(20 * bool(feedback)):
            say(f"{name}{number}")
        return submit(world, steps=40, seed=number, name=f"{name}{number}", **feedback).id

    submitted = [submit_one("killed", number) for number in range(2)]
    worker: subprocess.Popen[bytes] | None = None
    try:
        killed = 0
        while killed < count or any(not jobs.get(id).ended for id in submitted):
            if all(jobs.get(id).ended for id in submitted):
                submitted.append(submit_one("killed", len(submitted)))
            if worker is None or worker.poll() is not None:
                worker = start_worker(world, url)
            time.sleep(moments.uniform(0.1, 1.5))
            say("intents")
            if killed < count:
                victims = [psutil.Process(worker.pid), *runs()]
                victim = moments.choice(victims)
                try:
                    victim.kill()
                    killed += 1
                except psutil.NoSuchProcess:
                    continue
                if victim.pid == worker.pid:
                    worker.wait()
                    eventually(lambda: not runs(), 10, "the run died with its worker")
    finally:
        if worker is not None:
            worker.terminate()
            worker.wait()
    ends = [jobs.get(id) for id in submitted]
    with working(world, url):
        calm_ids = [submit_one("calm", number) for number in range(len(ends))]
        undisturbed = [ended(jobs, id) for id in calm_ids]
    registry = world.services.registry
    for job, calm in zip(ends, undisturbed, strict=True):
        if job.status == "failed":
            assert job.error is not None
            assert job.error["code"] == "too_many_attempts"
            continue
        assert (job.status, job.version) == ("succeeded", f"{job.name}@1")
        assert registry.version(job.name, 1).digest == registry.version(calm.name, 1).digest
        assert len(registry.adapter(job.name).versions) == 1
        assert (job.trained_tokens, job.metrics) == (calm.trained_tokens, calm.metrics)
        table, calm_table = (
            world.services.files.path(world.services.files.get(j.result_files[0])) for j in (job, calm)
        )
        assert table.read_bytes() == calm_table.read_bytes()
        assert [point.step for point in jobs.checkpoints(job.id)] == [40, 35, 30, 25, 20, 15, 10, 5]
    assert any(job.status == "succeeded" for job in ends)
    assert [row.id for row in records.feedback.each()] == acknowledged
    kept = world.home / "jobs" / submitted[0] / folder_module.FEEDBACK_FILE
    if ends[0].status == "succeeded":
        learned = [json.loads(line) for line in kept.read_text().splitlines()]
        assert [row["id"] for row in learned if "interaction_id" in row] == acknowledged[:20]
    records.database.close()


def start_worker(world: World, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", worker_process.__name__, str(world.home), url],
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def test_killed_at_random_moments(world: World, url: str, jobs: Jobs) -> None:
    kills(world, url, jobs, count=4, seed=1)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(world: World, url: str, jobs: Jobs) -> None:
    kills(world, url, jobs, count=20, seed=2)


@pytest.mark.parametrize("is_full", [False, True])
def test_killed_between_push_and_record_it_is_one_version(
    world: World, url: str, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Also if the disk is full by then, and it could not be pushed once more; it gets its alias all the same."""
    job = submit(world, metadata={"gates": "pass"})

    def broken(*_: Any, **__: Any) -> None:
        raise Unavailable("the database went away")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "succeed", broken)
        patched.setattr(Jobs, "fail", broken)
        patched.setattr("graftwork.adapters.registry.registry.Registry.set_alias", broken)
        with working(world, url):
            eventually(lambda: list(world.services.registry.adapters()), SECONDS, "it was pushed")
    assert not jobs.get(job.id).ended
    if is_full:
        monkeypatch.setattr("graftwork.adapters.registry.artifacts.StagedFile.write", full)
    with working(world, url):
        assert ended(jobs, job.id).version == "intents@1"
    assert any("was pushed before" in message for message in messages(jobs, job.id)) == is_full
    assert len(world.services.registry.adapter("intents").versions) == 1
    assert world.services.registry.adapter("intents").aliases["candidate"] == 1


def test_a_second_worker_of_a_home_does_not_start(world: World, url: str) -> None:
    with working(world, url):
        time.sleep(0.3)
        second = start_worker(world, url)
        assert second.wait(SECONDS) == 1


def test_a_busy_server_pauses_the_run(world: World, url: str, jobs: Jobs) -> None:
    job = submit(world, steps=500, metadata={"step_seconds": "0.2"})
    worker = TrainingWorker(replace(worker_process.config(world.home, url), share=0.0))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        eventually(lambda: jobs.get(job.id).progress.get("step"), SECONDS, "it runs")
        worker.busy = True
        (run,) = runs()
        eventually(lambda: run.status() == psutil.STATUS_STOPPED, 10, "it pauses")
        worker.busy = False
        eventually(lambda: run.status() != psutil.STATUS_STOPPED, 10, "it goes on")
        worker.busy = True
        eventually(lambda: run.status() == psutil.STATUS_STOPPED, 10, "it pauses")
        jobs.cancel(job.id, actor="ann")
        run.wait(10)
    finally:
        worker.stopping.set()
        thread.join()


def test_the_pace_is_a_share_of_the_time() -> None:
    moments = [PERIOD_SECONDS * n / 100 for n in range(1000)]
    for share in (0.0, 0.25, 0.5, 1.0):
        pace = Throttle(share=share)
        for now in moments:
            pace.record(True, now)
        runs = sum(not pace.should_pause(now) for now in moments) / len(moments)
        assert runs == pytest.approx(share, abs=0.02)
        assert not pace.should_pause(moments[-1] + LINGER_SECONDS + 0.99)


def test_what_is_not_a_whole_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    assert events.read_progress(tmp_path, 0, {}).end == 0
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    first = events.read_progress(tmp_path, 0, {})
    assert [event.data for event in first.events] == [{"step": 1, "train_loss": 2.0}]
    path.write_bytes(path.read_bytes() + b'ss": NaN}\n{broken\n{"message": "hm", "level": "warn"}\n')
    rest = events.read_progress(tmp_path, first.end, first.progress)
    assert [(event.message, event.level) for event in rest.events] == [("hm", "warn")]
    assert rest.end == path.stat().st_size
    assert events.results_csv(tmp_path).decode().splitlines()[1:] == ["1,2.0,,,"]
