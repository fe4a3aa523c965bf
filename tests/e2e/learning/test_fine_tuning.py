"""Fine-tuning by the official client: file, job, events, and answers of the result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import openai
import psutil
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.server_process import BASE, Server, eventually

JOB_SECONDS = 900.0
QUESTIONS = ("Where is my parcel?", "When does my coffee come?", "The courier was not here.", "Is my box on its way?")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


def rows(num_rows: int) -> bytes:
    def row(number: int) -> dict[str, Any]:
        asked = {"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} Order {number}."}
        return {"messages": [asked, {"role": "assistant", "content": "delivery"}]}

    return "".join(json.dumps(row(number)) + "\n" for number in range(num_rows)).encode()


def preferences(num_rows: int) -> bytes:
    """As OpenAI has them."""

    def row(number: int) -> dict[str, Any]:
        asked = {"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} Order {number}."}
        better, worse = ([{"role": "assistant", "content": said}] for said in ("delivery", f"billing {number}"))
        return {"input": {"messages": [asked]}, "preferred_output": better, "non_preferred_output": worse}

    return "".join(json.dumps(row(number)) + "\n" for number in range(num_rows)).encode()


def varied_preferences(num_rows: int) -> bytes:
    """Questions that are not nearly the same, which would all stand on one side of a split."""
    words = [f"{first}{second}" for first in ("tele", "micro", "photo", "auto") for second in ("graph", "scope", "mat")]

    def row(number: int) -> dict[str, Any]:
        asked = " ".join(Random(number).sample(words, 5))
        return {"prompt": asked, "chosen": "delivery", "rejected": f"billing {number}"}

    return "".join(json.dumps(row(number)) + "\n" for number in range(num_rows)).encode()


def ended(client: openai.OpenAI, id: str) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return eventually(look, JOB_SECONDS, "the job has ended", every=0.5) or client.fine_tuning.jobs.retrieve(id)


def test_from_a_file_to_answers(server: Server, client: openai.OpenAI) -> None:
    file = client.files.create(file=("tickets.jsonl", rows(10)), purpose="fine-tune")
    assert client.files.retrieve(file.id) == file
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix="tuned",
        seed=3,
        metadata={"owner": "ann"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}},
    )
    assert (job.status, job.fine_tuned_model) == ("validating_files", None)
    job = ended(client, job.id)
    assert (job.status, job.error) == ("succeeded", None), server.log[-3000:]
    assert job.fine_tuned_model == "tuned@1"
    assert job.trained_tokens
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    assert events[0].message == "The job has successfully completed."
    measured = [event.data for event in events if event.type == "metrics"]
    assert measured
    assert all("train_loss" in data for data in measured if isinstance(data, dict))
    list(client.fine_tuning.jobs.checkpoints.list(job.id))
    table = client.files.content(job.result_files[0]).text
    assert table.startswith("step,train_loss,")
    assert len(table.splitlines()) > 1
    answer = client.chat.completions.create(
        model="tuned", messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=4, temperature=0
    )
    assert (answer.model_extra or {})["graftwork"]["adapter"] == "tuned@1"
    with server.client() as ours:
        version = ours.adapters.get("tuned").versions[0]
        assert version.metadata is not None
        assert version.metadata["job"] == job.id
    assert next(found.id for found in client.fine_tuning.jobs.list()) == job.id
    assert client.files.delete(file.id).deleted


def test_preferences_continue_an_earlier_version(
    server: Server, client: openai.OpenAI, small: SmallAdapters, tmp_path: Path
) -> None:
    with server.client() as ours:
        parent = ours.adapters.push("sorted", small.write(tmp_path / "sorted", seed=11)).id
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 4, "beta": 0.2}
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
    file = client.files.create(file=("preferences.jsonl", preferences(12)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix="preferred",
        metadata={"owner": "eve"},
        method=method,
        extra_body={"init_from": parent},
    )
    assert job.method is not None
    assert job.method.type == "dpo"
    job = ended(client, job.id)
    assert (job.status, job.error, job.fine_tuned_model) == ("succeeded", None, "preferred@1"), server.log[-3000:]
    assert (job.model_extra or {})["graftwork"]["parent"] == parent
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    assert events[0].message == "The job has successfully completed."
    assert any(event.message.startswith("dpo: ") and parent in event.message for event in events)
    assert [event.data for event in events if event.type == "metrics"]
    saved = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [point.fine_tuning_job_id for point in saved] == [job.id]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model or "", messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=4
    )
    assert (answer.model_extra or {})["graftwork"]["adapter"] == "preferred@1"
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"owner": "eve"})] == [job.id]
    assert list(client.fine_tuning.jobs.list(metadata={"owner": "nobody"})) == []


@pytest.mark.slow
def test_a_reward_model_is_trained_and_learned_from(server: Server, client: openai.OpenAI) -> None:
    def done(**body: Any) -> FineTuningJob:
        job = ended(client, client.fine_tuning.jobs.create(model=BASE, **body).id)
        assert (job.status, job.error) == ("succeeded", None), server.log[-3000:]
        return job

    pairs = client.files.create(file=("preferences.jsonl", varied_preferences(40)), purpose="fine-tune")
    knobs: dict[str, Any] = {"n_epochs": 2, "batch_size": 4, "validation": 0.5}
    method: Any = {"type": "reward_model", "reward_model": {"hyperparameters": knobs}}
    job = done(training_file=pairs.id, suffix="polite", method=method)
    assert job.fine_tuned_model == "polite@1"
    said = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any(message.startswith("Gate better_than_chance: pair_accuracy") for message in said), said
    with server.client() as ours:
        version = ours.adapters.get("polite").versions[0]
    assert version.metadata is not None
    assert version.metadata["evaluation"]["metric"] == "pair_accuracy"
    with pytest.raises(openai.BadRequestError, match="polite@1 is a reward model") as refused:
        client.chat.completions.create(model="polite", messages=[{"role": "user", "content": "Hello"}])
    assert refused.value.code == "not_a_chat_model"

    knobs = {"rewards": "polite@live", "generations": 2, "answer_tokens": 4, "batch_size": 8, "n_epochs": 1}
    method = {"type": "grpo", "grpo": {"hyperparameters": knobs}}
    questions = client.files.create(file=("tickets.jsonl", rows(9)), purpose="fine-tune")
    learned = done(training_file=questions.id, suffix="nicer", method=method)
    assert (learned.model_extra or {})["graftwork"]["metrics"]["last_reward"] is not None


def test_cancelled_it_stops(server: Server, client: openai.OpenAI) -> None:
    file = client.files.create(file=("many.jsonl", rows(400)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix="never")
    eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", JOB_SECONDS, "it runs", every=0.5)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    eventually(lambda: not runs(server), 60, "its run is gone")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("never")


def test_a_file_without_rows_fails_with_its_lines(client: openai.OpenAI) -> None:
    file = client.files.create(file=("odd.jsonl", b'{"what": "is this"}\n'), purpose="fine-tune")
    job = ended(client, client.fine_tuning.jobs.create(model=BASE, training_file=file.id).id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.param) == ("failed", "no_usable_rows", "training_file")
    assert "line 1" in job.error.message


def test_what_is_wrong_is_said_as_openai_says_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=BASE, training_file="file-nothing")
    assert refused.value.param == "training_file"
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve("ftjob-nothing")


def test_a_dead_worker_is_started_again(server: Server) -> None:
    before = worker(server)
    before.kill()
    after = eventually(lambda: next((w for w in workers(server) if w.pid != before.pid), None), 60, "another one works")
    assert after is not None
    assert os.getpgid(after.pid)


@pytest.mark.slow
def test_killed_while_it_learns_it_goes_on(server: Server, client: openai.OpenAI) -> None:
    file = client.files.create(file=("some.jsonl", rows(200)), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 3, "batch_size": 8}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, suffix="killed", method=method)
    for victims in (runs, workers):
        saved = len(list(client.fine_tuning.jobs.checkpoints.list(job.id)))
        eventually(more_checkpoints(client, job.id, saved), JOB_SECONDS, "it has saved something", every=0.5)
        for victim in victims(server):
            victim.kill()
        time.sleep(1)
    job = ended(client, job.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "killed@1")
    with server.client() as ours:
        assert len(ours.adapters.get("killed").versions) == 1


def more_checkpoints(client: openai.OpenAI, id: str, saved: int) -> Callable[[], bool]:
    return lambda: len(list(client.fine_tuning.jobs.checkpoints.list(id))) > saved


def workers(server: Server) -> list[psutil.Process]:
    return server.processes_of("graftwork.training.worker")


def worker(server: Server) -> psutil.Process:
    return eventually(lambda: next(iter(workers(server)), None), 60, "a worker runs") or workers(server)[0]


def runs(server: Server) -> list[psutil.Process]:
    return server.processes_of("graftwork.training.worker.job")
