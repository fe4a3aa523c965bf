"""The job queue: states and transitions, expiring claims, attempts, events."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.learning.files import Files
from graftwork.adapters.learning.job import Claim, ClaimLost, Job, NewJob, NewJobEvent
from graftwork.adapters.learning.jobs import Jobs, unfinished_job_using
from graftwork.adapters.storage.database import Database, migrate

NEW = NewJob(model="tiny-base", name="intents", training_file="file-1", hyperparameters={"n": 1}, metadata={"a": "b"})


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def files(database: Database, tmp_path: Path) -> Files:
    """With the files ``file-1`` and ``file-2``."""
    files = Files(database, tmp_path / "files")
    for id in ("file-1", "file-2"):
        with files.upload() as upload:
            upload.write(b"{}\n")
            files.keep(upload, filename="rows.jsonl", purpose="fine-tune", key_id="k", id=id)
    return files


@pytest.fixture
def jobs(database: Database, files: Files) -> Jobs:
    return Jobs(database)


def submit(jobs: Jobs, new: NewJob = NEW) -> Job:
    return jobs.submit(new, actor="ann", key_id="k")[0]


def validate(jobs: Jobs, owner: str = "w") -> None:
    claim = jobs.claim(owner, "validating_files", seconds=60)
    assert claim is not None
    jobs.mark_validated(claim)


def run(jobs: Jobs, owner: str = "w") -> Claim:
    claim = jobs.claim(owner, "queued", seconds=60)
    assert claim is not None
    return claim


def expire(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE jobs SET lease_until = '2000-01-01T00:00:00.000000Z' WHERE owner IS NOT NULL"))


def messages(jobs: Jobs, id: str) -> list[str]:
    return [event.message for event in jobs.events(id, limit=100)][::-1]


def test_the_life_of_a_job(jobs: Jobs) -> None:
    job = submit(jobs)
    assert (job.status, job.metadata, job.hyperparameters) == ("validating_files", {"a": "b"}, {"n": 1})
    assert jobs.claim("w", "queued", seconds=60) is None, "its files are not validated yet"
    validate(jobs)
    assert jobs.get(job.id).status == "queued"
    assert jobs.claim("w", "validating_files", seconds=60) is None
    claim = run(jobs)
    assert jobs.claim("other", "queued", seconds=60) is None
    assert (claim.job.status, claim.job.started_at is not None) == ("running", True)
    measured = {"step": 1, "train_loss": 2.5}
    first = [NewJobEvent(message="Step 1/2", data=measured)]
    jobs.report(claim, first, checkpoints={1: measured}, progress={"step": 1, "total": 2}, relayed_bytes=10)
    jobs.report(claim, checkpoints={1: measured, 2: {}}, progress={"step": 2})
    jobs.publish(claim)
    with pytest.raises(Conflict, match="being registered"):
        jobs.cancel(job.id, actor="ann")
    jobs.succeed(claim, "intents@1", metrics={"loss": 1.0}, trained_tokens=7, result_files=["file-2"])
    ended = jobs.get(job.id)
    assert (ended.status, ended.version, ended.metrics, ended.trained_tokens, ended.result_files) == (
        "succeeded", "intents@1", {"loss": 1.0}, 7, ("file-2",),
    )  # fmt: skip
    assert (ended.owner, ended.finished_at is not None, ended.relayed_bytes) == (None, True, 10)
    assert ended.progress == {"step": 2, "total": 2}
    assert [point.step for point in jobs.checkpoints(job.id)] == [2, 1]
    assert messages(jobs, job.id) == [
        f"Created fine-tuning job: {job.id}",
        "Files validated, the job is queued.",
        "The job has started.",
        "Step 1/2",
        "New fine-tuned model created: intents@1",
        "The job has successfully completed.",
    ]
    assert [event.data for event in jobs.events(job.id)][2] == measured
    with pytest.raises(Conflict, match="already"):
        jobs.cancel(job.id, actor="ann")
    with pytest.raises(ClaimLost):
        jobs.report(claim, [NewJobEvent(message="too late")])


def test_without_a_name_the_job_lends_its_own(jobs: Jobs) -> None:
    job = submit(jobs, NewJob(model="tiny-base", name="", training_file="file-1"))
    assert job.name == job.id


def test_oldest_first_and_pages(jobs: Jobs) -> None:
    ids = [submit(jobs).id for _ in range(3)]
    for _ in ids:
        validate(jobs)
    assert [run(jobs, owner).job.id for owner in "abc"] == ids
    page = jobs.find(limit=2)
    assert ([job.id for job in page], page.has_more) == (ids[:0:-1], True)
    assert [job.id for job in jobs.find(after=page[-1].id)] == ids[:1]
    assert list(jobs.find(name="nobody")) == []
    events = jobs.events(ids[0], limit=1)
    assert events.has_more
    assert [event.message for event in jobs.events(ids[0], after=events[0].id)][-1].startswith("Created")
    for wrong in (lambda: jobs.get("x"), lambda: jobs.events("x"), lambda: jobs.checkpoints("x")):
        with pytest.raises(NotFound):
            wrong()
    with pytest.raises(InvalidRequest):
        jobs.find(after="x")


def test_cancelled_in_every_state(jobs: Jobs) -> None:
    waiting, queued, running, validating = (submit(jobs) for _ in range(4))
    jobs.cancel(waiting.id, actor="ann")
    validate(jobs)
    jobs.cancel(queued.id, actor="ann")
    validate(jobs)
    mine = run(jobs)
    assert mine.job.id == running.id
    checking = jobs.claim("w", "validating_files", seconds=60)
    assert checking is not None
    for job, claim in ((running, mine), (validating, checking)):
        jobs.cancel(job.id, actor="ann")
        for write in (
            lambda claim=claim: jobs.renew(claim, seconds=60),
            lambda claim=claim: jobs.report(claim, [NewJobEvent(message="x")]),
            lambda claim=claim: jobs.mark_validated(claim),
            lambda claim=claim: jobs.publish(claim),
            lambda claim=claim: jobs.release(claim, "x", forgiven=True),
            lambda claim=claim: jobs.fail(claim, code="x", message="x"),
            lambda claim=claim: jobs.succeed(claim, "intents@1", metrics={}, trained_tokens=1),
        ):
            with pytest.raises(ClaimLost, match="cancelled"):
                write()
    for job in (waiting, queued, running, validating):
        assert jobs.cancel(job.id, actor="ann").status == "cancelled"
        assert messages(jobs, job.id)[-1] == "The job was cancelled by ann."
    assert jobs.claim("w", "queued", seconds=60) is None


def test_a_dead_workers_job_is_resumed_and_the_dead_one_finds_out(jobs: Jobs, database: Database) -> None:
    job = submit(jobs)
    validate(jobs)
    dead = run(jobs, "dead")
    expire(database)
    alive = run(jobs, "alive")
    assert (alive.job.id, alive.token, alive.job.attempts) == (job.id, dead.token + 1, 2)
    with pytest.raises(ClaimLost, match="another worker"):
        jobs.succeed(dead, "intents@1", metrics={}, trained_tokens=1)
    jobs.renew(alive, seconds=60)
    jobs.publish(alive)
    jobs.succeed(alive, "intents@1", metrics={}, trained_tokens=1)


def test_attempts_without_progress_end(jobs: Jobs, database: Database) -> None:
    job = submit(jobs)
    validate(jobs)
    for attempt in (1, 2, 3):
        assert run(jobs, f"w{attempt}").job.attempts == attempt
        expire(database)
    assert jobs.claim("w4", "queued", seconds=60) is None
    failed = jobs.get(job.id)
    assert failed.error is not None
    assert (failed.status, failed.error["code"]) == ("failed", "too_many_attempts")
    assert "3 times" in failed.error["message"]


def test_what_is_being_published_is_not_given_up(jobs: Jobs, database: Database) -> None:
    submit(jobs)
    validate(jobs)
    for _ in range(5):
        claim = run(jobs)
        jobs.publish(claim)
        expire(database)
    claim = run(jobs)
    jobs.succeed(claim, "intents@1", metrics={}, trained_tokens=1)


def test_a_checkpoint_forgives_and_so_does_a_stop(jobs: Jobs, database: Database) -> None:
    submit(jobs)
    validate(jobs)
    for step in range(5):
        claim = run(jobs)
        jobs.report(claim, checkpoints={step: {}})
        expire(database)
    for _ in range(5):
        claim = run(jobs)
        assert claim.job.attempts == 2
        jobs.release(claim, "The server stops.", forgiven=True)
    claim = run(jobs)
    jobs.release(claim, "killed.", forgiven=False)
    claim = run(jobs)
    jobs.report(claim, checkpoints={0: {}})  # an old one: nothing was won
    jobs.release(claim, "killed by signal 9.", forgiven=False)
    job = jobs.get(claim.job.id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "too_many_attempts")
    assert "signal 9" in job.error["message"]


def test_an_idempotency_key(jobs: Jobs) -> None:
    first, new = jobs.submit(NEW, actor="ann", key_id="k", idempotency_key="a")
    assert new
    assert jobs.submit(NEW, actor="ann", key_id="k", idempotency_key="a") == (first, False)
    assert jobs.submit(NEW, actor="ann", key_id="other", idempotency_key="a")[1]
    with pytest.raises(Conflict, match="another seed"):
        jobs.submit(NewJob(**{**vars(NEW), "seed": 3}), actor="ann", key_id="k", idempotency_key="a")
    nameless = NewJob(**{**vars(NEW), "name": ""})
    kept, _ = jobs.submit(nameless, actor="ann", key_id="k", idempotency_key="b")
    assert jobs.submit(nameless, actor="ann", key_id="k", idempotency_key="b") == (kept, False)


def test_files_that_unfinished_jobs_need(jobs: Jobs, files: Files) -> None:
    job = submit(jobs, NewJob(**{**vars(NEW), "validation_file": "file-2"}))
    for id in ("file-1", "file-2"):
        with pytest.raises(Conflict, match=job.id):
            files.delete(id, users=[unfinished_job_using])
    jobs.cancel(job.id, actor="ann")
    files.delete("file-2", users=[unfinished_job_using])
    with pytest.raises(InvalidRequest, match="file-2") as refused:
        submit(jobs, NewJob(**{**vars(NEW), "validation_file": "file-2"}))
    assert (refused.value.param, refused.value.code) == ("validation_file", "file_not_found")
    assert len(jobs.find()) == 1


def test_a_file_is_deleted_or_used_and_never_both(jobs: Jobs, files: Files) -> None:
    """While a file is being deleted a job is made from it, by another thread."""
    for _ in range(20):
        with files.upload() as upload:
            upload.write(b"{}\n")
            id = files.keep(upload, filename="rows.jsonl", purpose="fine-tune", key_id="k").id
        with ThreadPoolExecutor(2) as pool:
            deleted = pool.submit(files.delete, id, users=[unfinished_job_using])
            used = pool.submit(submit, jobs, NewJob(**{**vars(NEW), "training_file": id}))
        assert isinstance(deleted.exception(), Conflict) != isinstance(used.exception(), InvalidRequest)
        assert files.path(deleted.result()).exists() is False if deleted.exception() is None else files.get(id)


def test_many_workers_one_claim_each(jobs: Jobs) -> None:
    ids = {submit(jobs).id for _ in range(8)}
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: jobs.claim(f"w{n}", "validating_files", seconds=60), range(12)))
    assert sorted(claim.job.id for claim in claims if claim) == sorted(ids)


def test_the_record_stays(jobs: Jobs, database: Database) -> None:
    job = submit(jobs)
    jobs.cancel(job.id, actor="ann")
    for statement in (
        "UPDATE job_events SET message = 'x'",
        "DELETE FROM job_events",
        "DELETE FROM jobs",
        "UPDATE jobs SET status = 'queued', finished_at = NULL",
    ):
        with pytest.raises(IntegrityError), database.write() as connection:
            connection.execute(text(statement))
