"""Files and jobs over HTTP: OpenAI's formats, roles and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from graftwork.adapters.access.keys import Role
from graftwork.adapters.learning.job import Claim, NewJobEvent
from graftwork.adapters.learning.jobs import Jobs
from graftwork.adapters.learning.knobs import ALIASES, HYPERPARAMETERS
from graftwork.adapters.storage.database import Database
from graftwork.training.config import TrainConfig
from graftwork.training.worker.job.plan import parse_hyperparameters
from tests.server.fakes import ADMIN_KEY, World, adapter_files, form, make_world
from tests.server.http_errors import HERE, error

FILES, JOBS = "/v1/files", "/v1/fine_tuning/jobs"
ROWS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def jobs(world: World) -> Iterator[Jobs]:
    """The same database, as a worker would have it."""
    database = Database(world.home / "graftwork.db")
    yield Jobs(database)
    database.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with asking(world) as client:
        yield client


@pytest.fixture(scope="module")
def still_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """For requests that are refused: all may ask the same routes, since none changes what is behind them."""
    with asking(make_world(tmp_path_factory.mktemp("still"))) as client:
        yield client


@contextmanager
def asking(world: World) -> Iterator[TestClient]:
    """A client, when an adapter has two versions."""
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        for seed in range(2):
            client.post("/v1/adapters/intents/versions", files=form(adapter_files(seed)))
        yield client


def upload(client: TestClient, content: bytes = ROWS, filename: str = "rows.jsonl", **fields: str) -> Any:
    fields = {"purpose": "fine-tune", **fields}
    return client.post(FILES, files={"file": (filename, content)}, data=fields)


def file_id(client: TestClient) -> str:
    response = upload(client)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def submit(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(JOBS, json={"model": "tiny-base", "suffix": "tickets", **body})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


def running(jobs: Jobs) -> Claim:
    claim = jobs.claim("w", "validating_files", seconds=60)
    assert claim is not None
    jobs.mark_validated(claim)
    claim = jobs.claim("w", "queued", seconds=60)
    assert claim is not None
    return claim


# ---------------------------------------------------------------------------------------------------------- files


def test_a_file_comes_in_and_goes(client: TestClient, world: World) -> None:
    file = upload(client).json()
    FileObject.model_validate(file, strict=True)
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(ROWS), "rows.jsonl", "fine-tune")
    assert client.get(f"{FILES}/{file['id']}").json() == file
    assert client.get(f"{FILES}/{file['id']}/content").content == ROWS
    second = upload(client, b"a,b\n1,2\n", "b.csv").json()
    assert [row["id"] for row in client.get(FILES).json()["data"]] == [second["id"], file["id"]]
    page = client.get(FILES, params={"order": "asc", "limit": 1}).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == ([file["id"]], True)
    assert client.get(FILES, params={"purpose": "fine-tune-results"}).json()["data"] == []
    assert client.delete(f"{FILES}/{file['id']}").json() == {"id": file["id"], "object": "file", "deleted": True}
    for gone in (client.get(f"{FILES}/{file['id']}"), client.get(f"{FILES}/{file['id']}/content")):
        assert error(gone, 404)["code"] == "file_not_found"


def test_a_large_file_comes_in_whole(client: TestClient) -> None:
    content = ROWS * 10_000
    content = content[: (1 << 20) - 100]
    file = upload(client, content).json()
    assert client.get(f"{FILES}/{file['id']}/content").content == content


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({"content": b""}, "file", "empty"),
        ({"content": b"oops\n"}, "file", "line 1"),
        ({"purpose": "assistants"}, "purpose", "not supported"),
        ({"purpose": "fine-tune-results"}, "purpose", "written by the server"),
        ({"purpose": "batch_output"}, "purpose", "written by the server"),
        ({"expires_after[seconds]": "3600"}, "expires_after[seconds]", "not supported here"),
    ],
)
def test_a_bad_upload_is_refused_and_leaves_nothing(
    client: TestClient, world: World, given: dict[str, Any], param: str, says: str
) -> None:
    found = error(upload(client, **given), 400)
    assert found["param"] == param
    assert says in found["message"]
    assert [path for path in world.services.files.root.rglob("*") if path.is_file()] == []


def test_a_form_that_is_none(client: TestClient) -> None:
    assert error(client.post(FILES, json={"file": "x"}), 400)["param"] == "file"
    assert error(client.post(FILES, data={"purpose": "fine-tune"}, files={"other": b"x"}), 400)["param"] == "other"
    assert error(client.post(FILES, files={"file": ("a.jsonl", ROWS)}), 400)["param"] == "purpose"
    broken = client.post(FILES, content=b"--x\r\n", headers={"content-type": "multipart/form-data; boundary=x"})
    assert "ended before" in error(broken, 400)["message"]
    assert error(upload(client, ROWS * 40_000), 413)["code"] == "too_large"


# ----------------------------------------------------------------------------------------------------------- jobs


def test_a_job_from_its_submission_to_its_version(client: TestClient, jobs: Jobs) -> None:
    rows, held_out = file_id(client), file_id(client)
    job = submit(
        client,
        training_file=rows,
        validation_file=held_out,
        seed=7,
        metadata={"owner": "ann"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "rank": 8}}},
    )
    FineTuningJob.model_validate(job, strict=True)
    assert (job["status"], job["model"], job["seed"], job["fine_tuned_model"]) == (
        "validating_files", "tiny-base", 7, None,
    )  # fmt: skip
    assert job["hyperparameters"] == {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        "rank": 8,
    }
    assert (job["graftwork"]["adapter"], job["graftwork"]["method"]) == ("tickets", "sft")
    assert error(client.delete(f"{FILES}/{held_out}"), 409)["message"].count(job["id"]) == 1
    claim = running(jobs)
    step = {"step": 1, "train_loss": 2.0}
    now = claim.job.created_at.timestamp()
    progress = {"step": 1, "total": 2, "eta_seconds": 10.0, "at": now}
    jobs.report(claim, [NewJobEvent(message="Step 1/2", data=step)], checkpoints={1: step}, progress=progress)
    job = client.get(f"{JOBS}/{job['id']}").json()
    FineTuningJob.model_validate(job, strict=True)
    assert (job["status"], job["estimated_finish"]) == ("running", int(now + 10))
    jobs.publish(claim)
    jobs.succeed(claim, "tickets@1", metrics={"loss": 1.0}, trained_tokens=99, result_files=["file-1"])
    job = client.get(f"{JOBS}/{job['id']}").json()
    FineTuningJob.model_validate(job, strict=True)
    assert (job["status"], job["fine_tuned_model"], job["trained_tokens"], job["result_files"]) == (
        "succeeded", "tickets@1", 99, ["file-1"],
    )  # fmt: skip
    events = client.get(f"{JOBS}/{job['id']}/events").json()["data"]
    for event in events:
        FineTuningJobEvent.model_validate(event, strict=True)
    assert events[-1]["message"].startswith("Created")
    assert [event["data"] for event in events if event["type"] == "metrics"] == [step]
    rest = client.get(f"{JOBS}/{job['id']}/events", params={"after": events[-2]["id"]}).json()
    assert (rest["data"], rest["has_more"]) == (events[-1:], False)
    (point,) = client.get(f"{JOBS}/{job['id']}/checkpoints").json()["data"]
    FineTuningJobCheckpoint.model_validate(point, strict=True)
    assert (point["step_number"], point["fine_tuned_model_checkpoint"]) == (1, "tickets:ckpt-step-1")
    assert error(client.post(f"{JOBS}/{job['id']}/cancel"), 409)["code"] == "job_ended"


def test_a_failed_job_says_why(client: TestClient, jobs: Jobs) -> None:
    job = submit(client, training_file=file_id(client))
    jobs.fail(running(jobs), code="no_usable_rows", message="Nothing to learn from.", param="training_file")
    job = client.get(f"{JOBS}/{job['id']}").json()
    FineTuningJob.model_validate(job, strict=True)
    assert job["error"] == {
        "code": "no_usable_rows",
        "message": "Nothing to learn from.",
        "param": "training_file",
    }


def test_what_is_continued_and_what_it_is_called(client: TestClient) -> None:
    rows = file_id(client)
    client.put("/v1/adapters/intents/aliases/candidate", json={"version": 2})

    def named(**body: Any) -> tuple[str, str | None]:
        job = client.post(JOBS, json={"training_file": rows, **body}).json()["graftwork"]
        return job["adapter"], job["parent"]

    assert named(model="intents") == ("intents", "intents@1")
    assert named(model="intents@candidate") == ("intents", "intents@2")
    assert named(model="intents@2", suffix="tickets") == ("tickets", "intents@2")
    assert named(model="tiny-base", suffix="intents") == ("intents", None)
    assert named(model="tiny-base", suffix="intents", init_from="intents@2") == ("intents", "intents@2")
    assert named(model="intents@2", init_from="intents@2") == ("intents", "intents@2")
    name, parent = named(model="tiny-base")
    assert (name.startswith("ftjob-"), parent) == (True, None)


@pytest.mark.parametrize(("type", "shown"), [("dpo", "dpo"), ("kto", None), ("auto", None), ("pretrain", None)])
def test_methods_beyond_openais_are_none_of_its_field(client: TestClient, type: str, shown: str | None) -> None:
    job = submit(client, training_file=file_id(client), method={"type": type, type: {"hyperparameters": {"beta": 0.2}}})
    FineTuningJob.model_validate(job, strict=True)
    assert (job["method"] and job["method"]["type"], job["graftwork"]["method"]) == (shown, type)
    assert job["hyperparameters"]["beta"] == 0.2


def test_what_a_run_can_be_told_a_job_can(client: TestClient, jobs: Jobs) -> None:
    """Each knob of a run by its name here; a job's own are its method, its seed, and modules by name."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)} - {"method", "seed", "targets"}
    offered = HYPERPARAMETERS.keys() - {"learning_rate_multiplier"}
    assert {ALIASES.get(name, name) for name in offered} == fields
    assert set(parse_hyperparameters(dict.fromkeys(HYPERPARAMETERS, 1))) >= {"epochs", "anchor"}


@pytest.mark.parametrize(
    "asked",
    [
        {"balance": "sqrt", "curriculum": "short_first"},
        {"variant": "dora", "quantization": "nf4", "precision": "bfloat16", "dropout": 0.1, "layers": [3, 1]},
        {"anchor": 0, "replay": 0.5, "forgetting": 0.1, "validation": 0.2, "layers": "auto"},
    ],
)
def test_any_knob_is_a_hyperparameter(client: TestClient, jobs: Jobs, asked: dict[str, Any]) -> None:
    job = submit(client, training_file=file_id(client), hyperparameters=asked)
    assert job["hyperparameters"].items() >= asked.items()
    assert jobs.get(job["id"]).hyperparameters == asked


def test_a_search_and_trackers_are_hyperparameters(client: TestClient, jobs: Jobs) -> None:
    asked = {"search": 8, "report_to": "trackio"}
    job = submit(client, training_file=file_id(client), hyperparameters=asked)
    FineTuningJob.model_validate(job, strict=True)
    assert (job["hyperparameters"]["search"], job["hyperparameters"]["report_to"]) == (8, ["trackio"])
    jobs.report(running(jobs), [], progress={"step": 3, "total": 80, "trial": 1, "trials": 8}, relayed_bytes=10)
    shown = client.get(f"{JOBS}/{job['id']}").json()["graftwork"]["progress"]
    assert (shown["trial"], shown["trials"]) == (1, 8)


def test_a_reward_and_a_teacher_are_hyperparameters(world: World, client: TestClient, jobs: Jobs) -> None:
    rows = file_id(client)
    grpo = {"rewards": "exact", "generations": 4, "answer_tokens": 16, "beta": 0.0}
    job = submit(client, training_file=rows, method={"type": "grpo", "grpo": {"hyperparameters": grpo}})
    FineTuningJob.model_validate(job, strict=True)
    assert jobs.get(job["id"]).hyperparameters == {**grpo, "rewards": ["exact"]}
    assert (job["method"], job["graftwork"]["method"]) == (None, "grpo")

    teacher = world.home / "shared" / "smollm2-1.7b"
    teacher.mkdir(parents=True)
    (teacher / "config.json").write_text("{}")
    job = submit(client, training_file=rows, method={"type": "distillation"}, hyperparameters={"teacher": str(teacher)})
    assert jobs.get(job["id"]).hyperparameters == {"teacher": str(teacher)}
    outside = world.home / "smollm2-1.7b"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    for path in (outside, teacher / ".." / ".." / "smollm2-1.7b", "smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B"):
        body = {"method": {"type": "distillation"}, "hyperparameters": {"teacher": str(path)}}
        answer = client.post(JOBS, json={"model": "tiny-base", "training_file": rows, "suffix": "tickets", **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (
            400,
            "hyperparameters.teacher",
            "path_not_allowed",
        )
        assert "--allowed-root" in error["message"]


def test_a_kept_data_set_is_a_training_file(world: World, client: TestClient, jobs: Jobs) -> None:
    (world.home / "datasets" / "support" / "3").mkdir(parents=True)
    job = submit(client, training_file="support@3")
    FineTuningJob.model_validate(job, strict=True)
    assert jobs.get(job["id"]).training_file == "support@3"
    for asked, param in (
        ({"training_file": "support@4"}, "training_file"),
        ({"training_file": "..@3"}, "training_file"),
        ({"training_file": "support@3", "validation_file": file_id(client)}, "validation_file"),
    ):
        answer = client.post(JOBS, json={"model": "tiny-base", "suffix": "tickets", **asked})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_feedback_as_a_training_file_chooses_its_method(client: TestClient) -> None:
    job = submit(client, model="intents", suffix=None, training_file="feedback")
    assert (job["training_file"], job["graftwork"]["method"], job["graftwork"]["adapter"]) == (
        "feedback", "auto", "intents",
    )  # fmt: skip


GRADER = {
    "type": "string_check",
    "name": "city",
    "operation": "eq",
    "input": "{{ sample.output_json.city }}",
    "reference": "{{ item.city }}",
}
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "intents",
    "input": [{"role": "user", "content": "How good is {{ sample.output_text }}?"}],
}


def reinforcement(**details: Any) -> dict[str, Any]:
    return {"method": {"type": "reinforcement", "reinforcement": details}}


def test_reinforcement_is_grpo_with_a_grader(client: TestClient, jobs: Jobs) -> None:
    asked = {"batch_size": 4, "n_epochs": 2, "compute_multiplier": "auto", "learning_rate_multiplier": 3.0}
    job = submit(client, training_file=file_id(client), **reinforcement(grader=GRADER, hyperparameters=asked))
    shown = FineTuningJob.model_validate(job, strict=True).method
    assert shown is not None
    assert shown.type == "reinforcement"
    assert job["method"]["reinforcement"]["grader"] == GRADER
    assert job["method"]["reinforcement"]["hyperparameters"].items() >= {**asked, "compute_multiplier": 1.0}.items()
    assert job["graftwork"]["method"] == "grpo"
    assert jobs.get(job["id"]).hyperparameters == {
        **{"grader": GRADER, "batch_size": 32, "n_epochs": 2, "learning_rate_multiplier": 3.0}
    }


def test_a_model_that_grades_is_the_version_that_it_was(client: TestClient, jobs: Jobs) -> None:
    job = submit(client, training_file=file_id(client), **reinforcement(grader=JUDGE))
    assert jobs.get(job["id"]).hyperparameters["grader"] == {**JUDGE, "model": "intents@1"}
    judged = submit(client, training_file=file_id(client), hyperparameters={"judge": JUDGE})
    assert jobs.get(judged["id"]).hyperparameters["judge"]["model"] == "intents@1"
    policy = client.put("/v1/adapters/intents/learning_policy", json={"hyperparameters": {"judge": JUDGE}}).json()
    assert policy["hyperparameters"]["judge"]["model"] == "intents@1"


BAD: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no file": ({"training_file": None}, 400, "training_file", "string"),
    "an unknown file": ({"training_file": "file-x"}, 400, "training_file", "no file"),
    "an unknown validation file": ({"validation_file": "file-x"}, 400, "validation_file", "no file"),
    "an unknown model": ({"model": "nobody"}, 404, "model", "nobody"),
    "an unknown start": ({"init_from": "nobody@1"}, 400, "init_from", "nobody"),
    "two starts": ({"model": "intents@1", "init_from": "intents@2"}, 400, "init_from", "one of the two"),
    "a bad name": ({"suffix": "My Adapter!"}, 400, "suffix", "name"),
    "the base's name": ({"suffix": "tiny-base"}, 400, "suffix", "base"),
    "a long name": ({"suffix": "x" * 65}, 400, "suffix", "64"),
    "an unknown method": ({"method": {"type": "magic"}}, 400, "method.type", "not supported"),
    "no grader": ({"method": {"type": "reinforcement"}}, 400, "method.reinforcement.grader", "missing"),
    "a grader that is wrong": (
        reinforcement(grader={**GRADER, "operation": "regex"}),
        400,
        "method.reinforcement.grader.operation",
        "ilike",
    ),
    "a grader that asks nobody": (
        reinforcement(grader={**JUDGE, "model": "nobody"}),
        400,
        "method.reinforcement.grader.model",
        "nobody",
    ),
    "a program": (
        reinforcement(grader={"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}),
        400,
        "method.reinforcement.grader.type",
        "--allow-python-graders",
    ),
    "a format that is none": (
        reinforcement(grader=GRADER, response_format={"type": "xml"}),
        400,
        "method.reinforcement.response_format",
        "json_schema",
    ),
    "an effort": (
        reinforcement(grader=GRADER, hyperparameters={"reasoning_effort": "high"}),
        400,
        "method.reinforcement.hyperparameters.reasoning_effort",
        "not supported",
    ),
    "a hyperparameter of nobody": (
        reinforcement(grader=GRADER, hyperparameters={"epochs": 3}),
        400,
        "method.reinforcement.hyperparameters.epochs",
        "n_epochs",
    ),
    "reinforcement by feedback": (
        {**reinforcement(grader=GRADER), "training_file": "feedback"},
        400,
        "training_file",
        "auto",
    ),
    "a grader and a reward": (
        {"method": {"type": "grpo"}, "hyperparameters": {"rewards": "exact", "grader": GRADER}},
        400,
        "hyperparameters.grader",
        "one of them",
    ),
    "a judge that is wrong": (
        {"hyperparameters": {"judge": {**JUDGE, "range": [1]}}},
        400,
        "hyperparameters.judge.range",
        "two numbers",
    ),
    "what is no adapter": ({"method": {"type": "full"}}, 400, "method.type", "graftwork train --local --full"),
    "a prompt for an adapter": ({"method": {"type": "prompt_tuning"}}, 400, "method.type", "serving knows no"),
    "all weights": ({"hyperparameters": {"variant": "full"}}, 400, "hyperparameters.variant", "lora"),
    "no reward": ({"method": {"type": "grpo"}}, 400, "hyperparameters.rewards", "such as exact"),
    "an empty reward": (
        {"method": {"type": "grpo"}, "hyperparameters": {"rewards": []}},
        400,
        "hyperparameters.rewards",
        "such as exact",
    ),
    "no teacher": ({"method": {"type": "distillation"}}, 400, "hyperparameters.teacher", "larger model"),
    "a reward for nobody": ({"hyperparameters": {"rewards": "exact"}}, 400, "hyperparameters.rewards", "grpo"),
    "an unknown reward": (
        {"method": {"type": "grpo"}, "hyperparameters": {"rewards": ["exact", "os:system"]}},
        400,
        "hyperparameters.rewards",
        "graftwork.rewards",
    ),
    "no reward's name": (
        {"method": {"type": "grpo"}, "hyperparameters": {"rewards": [1]}},
        400,
        "hyperparameters.rewards",
        "list of them",
    ),
    "a teacher that is a number": (
        {"method": {"type": "distillation"}, "hyperparameters": {"teacher": 7}},
        400,
        "hyperparameters.teacher",
        "path",
    ),
    "another method's settings": ({"method": {"type": "dpo", "supervised": {}}}, 400, "method.supervised", "belong"),
    "an unknown hyperparameter": ({"hyperparameters": {"epochs": 3}}, 400, "hyperparameters.epochs", "n_epochs"),
    "half an epoch": ({"hyperparameters": {"n_epochs": 0.5}}, 400, "hyperparameters.n_epochs", "whole number"),
    "a truth": ({"hyperparameters": {"n_epochs": True}}, 400, "hyperparameters.n_epochs", "whole number"),
    "a rate beyond": ({"hyperparameters": {"learning_rate": 5}}, 400, "hyperparameters.learning_rate", "1e-12 to 1"),
    "an unknown order": ({"hyperparameters": {"curriculum": "hard"}}, 400, "hyperparameters.curriculum", "short_first"),
    "a list of orders": ({"hyperparameters": {"curriculum": ["none"]}}, 400, "hyperparameters.curriculum", "one of"),
    "a layer below the first": ({"hyperparameters": {"layers": [-1]}}, 400, "hyperparameters.layers", "from 0"),
    "a layer twice": ({"hyperparameters": {"layers": [2, 2]}}, 400, "hyperparameters.layers", "different"),
    "no layers": ({"hyperparameters": {"layers": []}}, 400, "hyperparameters.layers", "a list"),
    "a layer's truth": ({"hyperparameters": {"layers": [True]}}, 400, "hyperparameters.layers", "numbers"),
    "too many wordings": ({"hyperparameters": {"augment": 9}}, 400, "hyperparameters.augment", "from 0 to 8"),
    "other wordings of a pair's question": (
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"augment": 2}}}},
        400,
        "method.dpo.hyperparameters.augment",
        "supervised methods alone, and this is dpo",
    ),
    "one trial": ({"hyperparameters": {"search": 1}}, 400, "hyperparameters.search", "from 2 to 100"),
    "an unknown tracker": ({"hyperparameters": {"report_to": "all"}}, 400, "hyperparameters.report_to", "no tracker"),
    "no tracker's name": ({"hyperparameters": {"report_to": [7]}}, 400, "hyperparameters.report_to", "list of them"),
    "a tracker that is not here": (
        {"hyperparameters": {"report_to": ["trackio", "wandb"]}},
        400,
        "hyperparameters.report_to",
        "pip install wandb",
    ),
    "integrations": ({"integrations": [{"type": "wandb", "wandb": {}}]}, 400, "integrations", "not supported"),
    "an unknown field": ({"trainingfile": "x"}, 400, "trainingfile", "did you mean training_file"),
    "feedback on nobody": ({"training_file": "feedback", "suffix": None}, 400, "suffix", "which adapter"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_job_is_refused_and_not_queued(still_client: TestClient, case: str) -> None:
    body, status, param, says = BAD[case]
    job = {"model": "tiny-base", "suffix": "t", "training_file": file_id(still_client), **body}
    found = error(still_client.post(JOBS, json=job), status)
    assert found["param"] == param
    assert says in found["message"]
    assert still_client.get(JOBS).json()["data"] == []


def test_lists_cancels_and_unknown_ids(client: TestClient, jobs: Jobs) -> None:
    rows = file_id(client)
    ids = [submit(client, training_file=rows)["id"] for _ in range(3)]
    assert [job["id"] for job in client.get(JOBS).json()["data"]] == ids[::-1]
    page = client.get(JOBS, params={"limit": 2}).json()
    assert page["has_more"]
    assert [job["id"] for job in client.get(JOBS, params={"after": ids[1]}).json()["data"]] == ids[:1]
    assert client.get(JOBS, params={"adapter": "nobody"}).json()["data"] == []
    claim = running(jobs)
    for id in (ids[0], ids[1]):
        cancelled = client.post(f"{JOBS}/{id}/cancel").json()
        FineTuningJob.model_validate(cancelled, strict=True)
        assert cancelled["status"] == "cancelled"
        assert client.post(f"{JOBS}/{id}/cancel").json() == cancelled
    assert claim.job.id == ids[0]
    for path in ("x", "x/events", "x/checkpoints"):
        assert error(client.get(f"{JOBS}/{path}"), 404)["code"] == "job_not_found"
    assert error(client.post(f"{JOBS}/x/cancel"), 404)["code"] == "job_not_found"
    assert error(client.get(f"{JOBS}/{ids[0]}/events", params={"after": "x"}), 400)["param"] == "after"
    assert error(client.get(JOBS, params={"after": "x"}), 400)["param"] == "after"


def test_submitted_twice_under_one_key_it_is_one_job(client: TestClient) -> None:
    body = {"model": "tiny-base", "training_file": file_id(client)}
    first, again = (client.post(JOBS, json=body, headers={"Idempotency-Key": "a"}).json() for _ in range(2))
    assert first == again
    other = client.post(JOBS, json={**body, "seed": 1}, headers={"Idempotency-Key": "a"})
    assert error(other, 409)["code"] == "idempotency_key_reused"


def test_operators_only(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY, open_to_loopback=False)
    secret, _ = world.keys.create("shop", Role.APP)
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        assert error(upload(client), 403)["code"] == "insufficient_role"
        for method, path in (("GET", JOBS), ("POST", JOBS), ("GET", f"{JOBS}/x")):
            error(client.request(method, path), 403)


def test_jobs_are_found_by_their_metadata(client: TestClient) -> None:
    rows = file_id(client)
    anns = submit(client, training_file=rows, metadata={"owner": "ann", 'a "b"': "", "n": "1"})["id"]
    bobs = submit(client, training_file=rows, metadata={"owner": "bob"})["id"]
    nobodys = [submit(client, training_file=rows)["id"] for _ in range(2)]

    def found(**filter: str) -> list[str]:
        response = client.get(JOBS, params=filter)
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["data"]]

    assert found() == [*reversed(nobodys), bobs, anns]
    assert found(**{"metadata[owner]": "ann"}) == [anns]
    assert found(**{"metadata[owner]": "ann", "metadata[n]": "1"}) == [anns]
    assert found(**{"metadata[owner]": "bob", "metadata[n]": "1"}) == []
    assert found(**{'metadata[a "b"]': ""}) == [anns]
    assert found(**{"metadata[owner]": ""}) == []
    assert found(metadata="null") == [*reversed(nobodys)]
    page = client.get(JOBS, params={"metadata": "null", "limit": "1"}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([nobodys[1]], True)
    rest = client.get(JOBS, params={"metadata": "null", "limit": "1", "after": nobodys[1]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([nobodys[0]], False)
    for wrong in ({"metadata": "ann"}, {"metadata[]": "ann"}, {"metadata[a]": ["b", "c"]}, {"metadatum[a]": "b"}):
        error(client.get(JOBS, params=wrong), 400)
