"""Files and jobs: both clients and the command line against the real routes, without a training worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.learning.job import Claim, NewJobEvent
from graftwork.adapters.learning.jobs import Jobs
from graftwork.clients import errors
from graftwork.clients.async_client import AsyncClient
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.cli.learning.jobs import _progress_text
from graftwork.clients.client import Client
from tests.clients.test_records import ClientsHarness
from tests.clients.test_records import harness as harness  # the fixture

ROWS = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.fixture
def jobs(harness: ClientsHarness) -> Jobs:
    return harness.world.services.jobs


def claimed(jobs: Jobs) -> Claim:
    while (claim := jobs.claim("w", "validating_files", seconds=60)) is None:
        time.sleep(0.02)
    jobs.mark_validated(claim)
    claim = jobs.claim("w", "queued", seconds=60)
    assert claim is not None
    return claim


def work(jobs: Jobs, *, fail: bool = False) -> None:
    """What a worker does, without training."""
    claim = claimed(jobs)
    measured = {"step": 1, "train_loss": 2.0}
    progress = {"step": 1, "total": 2, "loss": 2.0, "eta_seconds": 3.0}
    jobs.report(claim, [NewJobEvent(message="Step 1/2", data=measured)], checkpoints={1: measured}, progress=progress)
    if fail:
        jobs.fail(claim, code="nan_loss", message="It diverged.")
    else:
        jobs.succeed(claim, "tickets@1", metrics={"loss": 1.0}, trained_tokens=9, result_files=["file-1"])


@pytest.fixture
def worker(jobs: Jobs) -> Iterator[None]:
    thread = threading.Thread(target=work, args=(jobs,), daemon=True)
    thread.start()
    yield
    thread.join(20)


def test_from_a_file_to_a_version(harness: ClientsHarness, rows: Path, jobs: Jobs) -> None:
    with Client(harness.url) as client:
        told: list[tuple[int, int]] = []
        file = client.files.upload(rows, progress=lambda sent, total: told.append((sent, total)))
        assert (file.bytes, file.filename, told[-1]) == (len(ROWS), "rows.jsonl", (len(ROWS), len(ROWS)))
        assert client.files.get(file.id) == file
        assert list(client.files.list(purpose="fine-tune")) == [file]
        assert client.files.content(file.id) == ROWS
        job = client.jobs.create(
            model="tiny-base", training_file=file.id, name="tickets", method="kto", hyperparameters={"rank": 4}, seed=3
        )
        assert (job.status, job.graftwork.adapter, job.graftwork.method, job.seed, job.ended) == (
            "validating_files", "tickets", "kto", 3, False,
        )  # fmt: skip
        assert job.hyperparameters["rank"] == 4
        with pytest.raises(errors.ConflictError):
            client.files.delete(file.id)
        work(jobs)
        job = client.jobs.get(job.id)
        assert (job.status, job.fine_tuned_model, job.ended, job.result_files) == (
            "succeeded", "tickets@1", True, ("file-1",),
        )  # fmt: skip
        assert list(client.jobs.list(adapter="tickets")) == [job]
        events = client.jobs.events(job.id)
        assert [event.data for event in events if event.type == "metrics"] == [{"step": 1, "train_loss": 2.0}]
        assert [point.step_number for point in client.jobs.checkpoints(job.id)] == [1]
        assert client.files.delete(file.id).deleted
        with pytest.raises(errors.NotFoundError):
            client.jobs.get("ftjob-x")


async def test_the_async_client_does_the_same(harness: ClientsHarness, rows: Path) -> None:
    async with AsyncClient(harness.url) as client:
        file = await client.files.upload(rows)
        job = await client.jobs.create(model="tiny-base", training_file=file.id)
        assert (await client.jobs.cancel(job.id)).status == "cancelled"
        assert [found.id for found in await client.jobs.list()] == [job.id]


def test_one_idempotency_key_is_one_job(harness: ClientsHarness, rows: Path) -> None:
    with Client(harness.url) as client:
        asked: dict[str, Any] = {"model": "tiny-base", "training_file": client.files.upload(rows).id}
        first, again = (client.jobs.create(**asked, idempotency_key="a") for _ in range(2))
        assert first.id == again.id
        assert client.jobs.create(**asked).id != client.jobs.create(**asked).id


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.usefixtures("worker")
def test_train_submits_and_watches(harness: ClientsHarness, rows: Path) -> None:
    done = harness.run("train", "tickets", "--data", rows, "--epochs", 2, "--seed", 5)
    assert done.exit_code == 0, done.stderr
    assert "tickets@1" in done.stdout
    assert "New fine-tuned model created: tickets@1" in done.stderr
    (job,) = harness.json("jobs", "list")
    assert (
        job["hyperparameters"]["n_epochs"],
        job["hyperparameters"].get("rank"),
        job["seed"],
    ) == (2, None, 5)
    assert "tickets@1" in harness.run("jobs", "list").stdout
    assert "search" not in job["hyperparameters"]
    shown = harness.run("jobs", "show", job["id"]).stdout
    assert "The job has started." in shown
    assert harness.json("jobs", "watch", job["id"])["fine_tuned_model"] == "tickets@1"
    assert harness.run("jobs", "cancel", job["id"]).exit_code == ExitCode.FAILED


def test_a_search_is_submitted_and_tells_its_trials(harness: ClientsHarness, rows: Path, jobs: Jobs) -> None:
    given = ("--search", 3, "--report-to", "trackio", "--detach")
    done = harness.run("train", "tickets", "--data", rows, *given)
    assert done.exit_code == 0, done.stderr
    (job,) = harness.json("jobs", "list")
    assert (job["hyperparameters"]["search"], job["hyperparameters"]["report_to"]) == (3, ["trackio"])
    assert jobs.claim("w", "validating_files", seconds=60) is not None
    refused = harness.run("train", "tickets", "--data", rows, "--report-to", "wandb")
    assert refused.exit_code == ExitCode.FAILED
    assert "pip install wandb" in refused.stderr
    assert _progress_text({"trial": 2, "trials": 3, "step": 7, "total": 20}) == "trial 2 of 3 · 7/20"
    assert _progress_text({"step": 7, "total": 20, "loss": 0.0, "reward": 0.25}) == "7/20 · reward 0.250"


def test_a_failed_job_is_a_failed_command(harness: ClientsHarness, rows: Path, jobs: Jobs) -> None:
    threading.Thread(target=work, args=(jobs,), kwargs={"fail": True}, daemon=True).start()
    done = harness.run("train", "tickets", "--data", rows)
    assert done.exit_code == ExitCode.FAILED
    assert "It diverged." in done.stdout


def test_detached_and_cancelled(harness: ClientsHarness, rows: Path) -> None:
    job = harness.json("train", "tickets", "--data", rows, "--continue", "intents@1", "--method", "dpo", "--detach")
    assert (job["model"], job["graftwork"]["parent"], job["graftwork"]["method"]) == ("intents@1", "intents@1", "dpo")
    assert harness.json("jobs", "cancel", job["id"])["status"] == "cancelled"
    assert harness.run("jobs", "watch", job["id"]).exit_code == ExitCode.FAILED
    feedback = harness.json("train", "intents", "--from-feedback", "--detach")
    assert (feedback["training_file"], feedback["graftwork"]["method"]) == ("feedback", "auto")


def test_ctrl_c_leaves_the_job_alone(harness: ClientsHarness, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graftwork.clients.cli.learning.jobs.time.sleep", interrupt)
    done = harness.run("train", "tickets", "--data", rows)
    assert done.exit_code == ExitCode.INTERRUPTED
    assert "graftwork jobs watch ftjob-" in done.stderr
    assert harness.world.services.jobs.find()[0].status == "validating_files"


def test_what_jobs_do_not_have_is_refused(harness: ClientsHarness, rows: Path) -> None:
    for options in (
        ["--data", rows, "--alias", "candidate"],
        ["--data", rows, "--epochs", 0.5],
        ["--data", rows, "--from-feedback"],
        [],
        ["--from-feedback", "--local"],
    ):
        done = harness.run("train", "tickets", *options)
        assert done.exit_code == ExitCode.USAGE, options
    assert list(harness.world.services.jobs.find()) == []
    assert harness.run("train", "tickets", "--data", "missing.jsonl").exit_code == ExitCode.FAILED
