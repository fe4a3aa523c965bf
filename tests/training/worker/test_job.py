"""The run as a process in a folder: its files, its termination, its resumption."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.learning.knobs import ALIASES
from graftwork.training.data.pipeline import prepare
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.read.source import file_sources
from graftwork.training.data.store import DataStore
from graftwork.training.run import estimate
from graftwork.training.worker import events, intake
from graftwork.training.worker.job.plan import parse_hyperparameters, plan_job
from graftwork.training.worker.job.runner import JobRunner
from graftwork.training.worker.job.spec import JobSpec
from tests.training.conftest import chat
from tests.training.run_files import progress, result

LABELS = ("delivery", "pause", "cancel")


QUICK = {"rank": 4, "learning_rate": 1e-2, "batch_size": 8, "num_epochs": 2, "precision": "float32"}


@pytest.fixture(autouse=True)
def _sigterm_as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def make_job(tiny_base: BaseInfo, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(id: str = "ftjob-1", rows: Any = None, **fields: Any) -> Path:
        folder = tmp_path / "jobs" / id
        folder.mkdir(parents=True)
        if rows is None:
            rows = [chat(f"Ticket {number} about {LABELS[number % 3]}", LABELS[number % 3]) for number in range(40)]
        data = write_rows(*rows, name=f"{id}.jsonl")
        fields.setdefault("hyperparameters", QUICK)
        JobSpec(job_id=id, name=fields.pop("name", "tickets"), base=tiny_base, data=(data,), **fields).write(folder)
        return folder

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_leaves_an_adapter_a_result_and_what_happened(make_job: Callable[..., Path], tiny_base: BaseInfo) -> None:
    folder = make_job()
    assert JobRunner(folder).run() == 0
    found = result(folder)
    assert found["status"] == "succeeded"
    assert Path(found["adapter"]) == folder / "adapter"
    assert found["trained_tokens"] == found["metrics"]["num_tokens"] > 0
    assert found["card"]["method"] == "sft"
    assert "say what the right answer is" in found["card"]["reason"]
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["graftwork"]["base_digest"] == tiny_base.digest
    lines = progress(folder)
    assert next(line["phase"] for line in lines if line.get("message")) == "data"
    assert any("GB of memory" in line.get("message", "") for line in lines)
    steps = [line["step"] for line in lines if line.get("loss") is not None]
    assert steps[-1] == lines[-1]["total"] if "total" in lines[-1] else steps
    assert any("checkpoint" in line for line in lines)
    assert not (folder / "checkpoints").exists()
    assert JobRunner(folder).run() == 0  # done is done


@pytest.mark.parametrize("end", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_ended_at_any_moment_it_goes_on_to_the_same_bits(make_job: Callable[..., Path], end: signal.Signals) -> None:
    ends_and_goes_on(make_job, end, hyperparameters={**QUICK, "num_epochs": 3, "checkpoint_steps": 1})


@pytest.mark.slow
def test_killed_a_job_with_a_grader_goes_on_to_the_same_bits(make_job: Callable[..., Path]) -> None:
    slow = {**GRADED, "num_epochs": 3, "checkpoint_steps": 1, "eval_interval": 2, "validation": 0.4}
    ends_and_goes_on(make_job, signal.SIGKILL, method="grpo", rows=QUESTIONS, hyperparameters=slow)


def ends_and_goes_on(make_job: Callable[..., Path], end: signal.Signals, **job: Any) -> None:
    whole, folder = (make_job(f"ftjob-{name}", **job) for name in ("whole", "ended"))

    def start(folder: Path) -> subprocess.Popen[bytes]:
        # Each in a process of its own, as jobs are: what other tests did to torch in this one changes bits.
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        return subprocess.Popen([sys.executable, "-m", "graftwork.training.worker.job", str(folder)], env=environment)

    assert start(whole).wait(300) == 0
    process = start(folder)
    try:
        deadline = time.monotonic() + 300
        while not any(folder.glob("checkpoints/step-*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(end)
        code = process.wait(300)
    finally:
        process.kill()
    if code == 0:
        pytest.skip("the run was quicker than the signal")
    assert code == (143 if end == signal.SIGTERM else -9)
    assert not (folder / "result.json").exists()
    assert not (folder / "adapter").exists()
    assert start(folder).wait(300) == 0
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(whole).items())
    ends = [{**result(each)["metrics"], "seconds": None} for each in (folder, whole)]
    assert ends[0] == ends[1]


def test_a_run_whose_end_was_lost_ends_again_in_the_same_bits(
    make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last step and before the result."""
    folder = make_job()

    def lost(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(JobRunner, "_write_result", lost)
        with pytest.raises(KeyboardInterrupt):
            JobRunner(folder).run()
    first = weights(folder)
    assert JobRunner(folder).run() == 0
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in first.items())


def test_the_next_round_continues_and_replays_the_one_before(make_job: Callable[..., Path]) -> None:
    first = make_job("ftjob-1")
    assert JobRunner(first).run() == 0
    new = [chat(f"Where is parcel {number}?", "parcel") for number in range(30)]
    second = make_job("ftjob-2", rows=new, parent=1, parent_folder=first / "adapter")
    run = plan_job(JobSpec.read(second), second)
    assert run.parent is not None
    assert run.num_replayed == round((len(run.rows) - run.num_replayed) / 3)  # a quarter of all
    assert run.replay_validation
    assert run.config.learning_rate == 1e-2  # given
    # Twice the usual rates, since there are few rows.
    fresh = make_job("ftjob-3", rows=new, hyperparameters={})
    assert plan_job(JobSpec.read(fresh), fresh).config.learning_rate == 1e-3
    continued = make_job("ftjob-4", rows=new, parent=1, parent_folder=first / "adapter", hyperparameters={})
    assert plan_job(JobSpec.read(continued), continued).config.learning_rate == 2e-4
    assert JobRunner(second).run() == 0
    card = result(second)["card"]
    assert card["continues"] == "tickets@1"
    assert card["rows"]["replayed"] == run.num_replayed
    assert card["metrics"]["replay_loss"] is not None


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"rows": [{"nothing": 1}]}, "no_usable_rows", "no usable row"),
        ({"method": "grpo"}, None, "rewards names the reward functions"),
        ({"method": "distillation", "hyperparameters": {"teacher": "/nowhere"}}, None, "/nowhere"),
        ({"method": "full"}, None, "graftwork train --local --full"),
        ({"method": "sft", "hyperparameters": {"variant": "full"}}, None, "graftwork train --local --full"),
        ({"method": "prefix_tuning"}, None, "which serving does not know"),
        ({"method": "magic"}, None, "'magic' is no method: choose auto, sft"),
        ({"method": "kto"}, None, "no row that kto can learn from"),
        ({"hyperparameters": {"warp": 9}}, None, "'warp' is no hyperparameter"),
        ({"hyperparameters": {"rank": "wide"}}, None, "wrong kind"),
        ({"hyperparameters": {**QUICK, "learning_rate": 0.9, "max_grad_norm": 1e9}, "method": "sft"}, "-", ""),
    ],
)
def test_what_cannot_work_ends_with_its_reason(
    make_job: Callable[..., Path], fields: dict[str, Any], code: str | None, message: str
) -> None:
    folder = make_job(**fields)
    exit_code = JobRunner(folder).run()
    if code == "-":  # a wild rate: whatever becomes of it, it is one of the two ends
        assert (exit_code, result(folder)["status"]) in {(0, "succeeded"), (1, "failed")}
        return
    assert exit_code == 1
    error = result(folder)["error"]
    assert message in error["message"]
    assert code in (None, error["code"])
    assert not (folder / "adapter").exists()


@pytest.mark.parametrize("method", ["grpo", "distillation"])
def test_a_job_that_asks_its_model_tells_its_reward_or_its_teacher(
    make_job: Callable[..., Path], tiny_base: BaseInfo, method: str
) -> None:
    own = {"rewards": ["similar"], "generations": 4} if method == "grpo" else {"teacher": tiny_base.path}
    folder = make_job(method=method, hyperparameters={**QUICK, **own, "num_epochs": 1, "answer_tokens": 2})
    assert JobRunner(folder).run() == 0, result(folder)
    card = result(folder)["card"]
    assert card["method"] == method
    steps = [line for line in progress(folder) if line.get("loss") is not None]
    if method == "grpo":
        assert card["metrics"]["validation_reward"] is not None
        assert all("reward" in line for line in steps)
        assert events.results_csv(folder).decode().splitlines()[0].endswith(",train_reward_mean,valid_reward_mean")
    else:
        assert card["config"]["teacher"] == tiny_base.id  # a name, and no path of the server's
        assert tiny_base.path not in json.dumps(card)
    assert weights(folder)


GRADER = {
    "type": "multi",
    "name": "ticket",
    "graders": {
        "label": {
            "type": "string_check",
            "name": "label",
            "operation": "ilike",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.label }}",
        },
        "short": {
            "type": "text_similarity",
            "name": "short",
            "evaluation_metric": "rouge_1",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.label }}",
        },
    },
    "calculate_output": "(label + short) / 2",
}
QUESTIONS = [
    {"messages": [{"role": "user", "content": f"Ticket {number}, {LABELS[number % 3]}?"}], "label": LABELS[number % 3]}
    for number in range(14)
]
GRADED: dict[str, Any] = {**QUICK, "grader": GRADER, "generations": 4, "num_epochs": 1, "answer_tokens": 2}


def test_a_job_learns_from_a_grader(make_job: Callable[..., Path]) -> None:
    lacking = {"messages": [{"role": "user", "content": "What is this?"}]}
    folder = make_job(
        method="grpo",
        rows=[*QUESTIONS, lacking, {"nothing": 1}],
        hyperparameters={**GRADED, "validation": 0.4, "eval_interval": 2},
    )
    assert JobRunner(folder).run() == 0, result(folder)
    card = result(folder)["card"]
    assert card["config"]["grader"] == GRADER
    assert card["rows"]["left_out"] == 2
    metrics = card["metrics"]
    assert metrics["validation_reward"] is not None
    assert metrics["validation_grades"].keys() == metrics["base_validation_grades"].keys() == {"label", "short"}
    steps = [line for line in progress(folder) if line.get("loss") is not None]
    assert all({"reward", "passed", "grades"} <= line.keys() for line in steps)
    update = events.read_progress(folder, 0, {})
    assert any("train_grade_label_mean" in event.data for event in update.events)
    assert "valid_passed_share" in update.checkpoints[steps[-1]["step"]]
    assert events.results_csv(folder).decode().splitlines()[0].endswith(",train_passed_share,valid_passed_share")


@pytest.mark.parametrize("grader", ["python", "gone"])
def test_a_grader_that_may_not_be_is_refused_again_when_the_run_begins(
    make_job: Callable[..., Path], grader: str
) -> None:
    program = {"type": "python", "name": "p", "source": "def grade(sample, item): return float(len(item['label']))"}
    asking = {"type": "reward", "name": "r", "function": "of-nobody"}
    graded = {**GRADED, "grader": program if grader == "python" else asking}
    folder = make_job(method="grpo", rows=QUESTIONS, hyperparameters=graded)
    assert JobRunner(folder).run() == 1
    assert result(folder)["error"]["code"] == (
        "python_graders_not_allowed" if grader == "python" else "reward_not_installed"
    )
    if grader == "python":
        allowed = make_job("ftjob-2", method="grpo", rows=QUESTIONS, hyperparameters=graded, allow_python_graders=True)
        assert JobRunner(allowed).run() == 0, result(allowed)
        assert result(allowed)["metrics"]["last_reward"] > 4


def test_where_memory_is_short_a_run_reads_less_at_a_time_and_stays_at_that(
    make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1
    monkeypatch.setattr(estimate, "_free_bytes", lambda: free)
    folder = make_job(hyperparameters={**QUICK, "num_epochs": 1, "micro_batch_tokens": 4096})
    assert JobRunner(folder).run() == 0
    tokens = result(folder)["card"]["config"]["micro_batch_tokens"]
    assert tokens < 4096
    assert any(line.get("message", "").startswith(f"Memory is short: {tokens} tokens") for line in progress(folder))
    before = weights(folder)

    free = 1 << 40  # started again with room to spare, it goes on as it began
    (folder / "result.json").unlink()
    assert JobRunner(folder).run() == 0
    assert result(folder)["card"]["config"]["micro_batch_tokens"] == tokens
    after = weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_kept_data_set_keeps_its_sides(tiny_base: BaseInfo, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    rows = [chat(f"Ticket {number} about {LABELS[number % 3]}", LABELS[number % 3]) for number in range(60)]
    with prepare(file_sources([write_rows(*rows)], None), DataPolicy()) as prepared:
        stored, _ = DataStore(tmp_path / "datasets").save("support", prepared)
    folder = tmp_path / "jobs" / "ftjob-1"
    folder.mkdir(parents=True)
    few = {**QUICK, "num_epochs": 1}
    JobSpec(job_id="ftjob-1", name="tickets", base=tiny_base, data=(stored.folder,), hyperparameters=few).write(folder)
    run = plan_job(JobSpec.read(folder), folder)
    assert len(run.rows) == stored.num_rows["train"]
    assert len(run.validation) == stored.num_rows["validation"] > len(run.held_out) > 0
    assert len(run.final) == stored.num_rows["test"] > 0
    assert intake.check_data_set(stored.folder) == ([], set())
    assert JobRunner(folder).run() == 0
    assert result(folder)["card"]["data"] == "support@1"


def test_a_full_disk_says_so(make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("graftwork.training.run.checkpoints.publish", full)
    folder = make_job()
    assert JobRunner(folder).run() == 1
    assert result(folder)["error"]["code"] == "disk_full"
    assert not (folder / "adapter").exists()


def test_hyperparameters_by_their_names() -> None:
    assert parse_hyperparameters({"num_epochs": 4, "rank": "auto", "layers": [0, 1]}) == {"epochs": 4, "layers": (0, 1)}
    with pytest.raises(ConfigurationError, match="learning_rate_multiplier"):
        parse_hyperparameters({"speed": 1})
    assert ALIASES["n_epochs"] == "epochs"
