"""The trainer on a tiny random Llama with the real tokenizer; each run takes seconds."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import peft
import pytest
import safetensors.torch
import torch
import trl

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import IGNORED, LabeledTokens
from graftwork.training.model import head
from graftwork.training.run import estimate, rehearsal
from graftwork.training.run import trainer as trainer_module
from graftwork.training.run.execution import execute
from graftwork.training.run.plan import TrainingRun, plan_run
from graftwork.training.run.progress import RunMetrics, TrainingStep
from tests.training.conftest import chat

LABELS = ("delivery", "pause", "cancel")


@pytest.fixture
def run(tiny_base: BaseInfo, write_rows: Callable[..., Path]) -> TrainingRun:
    """48 rows of a task that a tiny model can begin to learn: the answer does not depend on the question's number."""
    rows = [chat(f"Ticket {number} about {LABELS[number % 3]}", LABELS[number % 3]) for number in range(48)]
    config = TrainConfig(
        rank=4, alpha=8, learning_rate=2e-2, epochs=6, batch_size=8, validation=0.2, precision="float32"
    )
    return plan_run(name="tickets", data=write_rows(*rows), base=tiny_base, config=config)


def train(run: TrainingRun, folder: Path, **changes: Any) -> tuple[RunMetrics, list[TrainingStep]]:
    steps: list[TrainingStep] = []
    folder.mkdir(exist_ok=True)
    config = dataclasses.replace(run.config, **changes)
    return trainer_module.train(run.base, run.rows, run.validation, config, folder, steps.append), steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


def test_the_loss_falls_and_every_step_is_told(run: TrainingRun, tmp_path: Path) -> None:
    metrics, steps = train(run, tmp_path / "out")
    assert metrics.last_loss < metrics.first_loss - 1
    assert metrics.validation_loss is not None
    assert metrics.base_validation_loss is not None
    assert metrics.validation_loss < metrics.base_validation_loss - 1
    assert metrics.validation_token_accuracy is not None
    assert 0 < metrics.validation_token_accuracy <= 1

    numbers = [step.step for step in steps if step.loss is not None]
    assert sorted(set(numbers)) == list(range(1, metrics.num_steps + 1))
    assert {step.num_steps for step in steps} == {metrics.num_steps}
    assert metrics.num_steps == 6 * math.ceil(len(run.rows) / 8)
    assert metrics.num_tokens == 6 * sum(len(tokens.input_ids) for tokens in run.rows)
    assert steps[0].step == 0
    assert steps[-1].seconds_left == 0
    assert steps[-1].tokens_per_second is not None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_adapter_is_float32_and_is_what_serving_reads(run: TrainingRun, tmp_path: Path, precision: str) -> None:
    metrics, _ = train(run, tmp_path / "out", precision=precision, epochs=1)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    tensors = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not any("lm_head" in name or "embed_tokens" in name for name in tensors)
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    spec = read_spec(tmp_path / "out", run.base, AdapterLimits())
    assert spec.num_parameters == metrics.num_trainable == sum(tensor.numel() for tensor in tensors.values())
    assert {graft.rank for graft in spec.grafts} == {4}
    assert len(spec.grafts) == 14
    assert metrics.precision == precision


@pytest.mark.parametrize("epochs", [2, 1.5])
def test_the_saved_adapter_gives_the_loss_that_was_measured(run: TrainingRun, tmp_path: Path, epochs: float) -> None:
    metrics, _ = train(run, tmp_path / "out", epochs=epochs)
    model = load_model(run.base, dtype="float32", device="cpu")
    model = peft.PeftModel.from_pretrained(model, str(tmp_path / "out"))
    total, count = 0.0, 0
    for tokens in run.validation:
        logits = model(torch.tensor([tokens.input_ids])).logits[0, :-1]
        labels = torch.tensor(tokens.labels[1:])
        total += float(
            torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").detach()
        )
        count += int((labels != IGNORED).sum())
    assert metrics.validation_loss == pytest.approx(total / count, abs=2e-3)


def test_the_same_run_ends_in_the_same_bytes_and_another_seed_in_others(run: TrainingRun, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(run, tmp_path / name, epochs=1, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_run_of_one_step_learns(run: TrainingRun, tmp_path: Path) -> None:
    _, steps = train(run, tmp_path / "out", batch_size=64, epochs=1)
    assert steps[-1].num_steps == 1
    assert all(tensor.abs().sum() > 0 for name, tensor in weights(tmp_path / "out").items() if "lora_B" in name)


def test_a_batch_in_parts_is_the_same_batch(run: TrainingRun, tmp_path: Path) -> None:
    whole, _ = train(run, tmp_path / "whole", epochs=1)
    parts, _ = train(run, tmp_path / "parts", epochs=1, micro_batch_tokens=64)
    assert parts.num_steps == whole.num_steps
    assert parts.last_loss == pytest.approx(whole.last_loss, abs=1e-3)


@pytest.mark.parametrize(
    ("batch", "tokens", "longest", "rows"),
    [(16, 2048, 100, 16), (16, 2048, 200, 8), (16, 2048, 5000, 1), (6, 500, 100, 3)],
)
def test_rows_in_one_forward_pass(batch: int, tokens: int, longest: int, rows: int) -> None:
    assert estimate.micro_batch_size(TrainConfig(batch_size=batch, micro_batch_tokens=tokens), longest) == rows


def test_only_learned_positions_are_multiplied_with_the_vocabulary(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every position the vocabulary would cost more than all else."""
    scored: list[int] = []
    original = head.LossHead.apply

    def counting(hidden: torch.Tensor, *rest: Any) -> Any:
        scored.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(head.LossHead, "apply", counting)
    monkeypatch.setattr(rehearsal, "expected_seconds", lambda trainer, num_steps: None)  # which tries some rows
    train(run, tmp_path / "out", epochs=1)
    learned = sum(
        label != IGNORED for tokens in (*run.rows, *run.validation, *run.validation) for label in tokens.labels
    )
    assert sum(scored) == learned
    assert trl.trainer.utils._use_triton(torch.device("cpu")) is False


def test_a_loss_that_is_no_number_ends_the_run_and_writes_nothing(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        model.model.norm.weight.data.fill_(math.nan)
        return model

    monkeypatch.setattr(trainer_module, "load_model", poisoned)
    with pytest.raises(GraftworkError, match=r"loss is nan at step 1.*nothing was written.*--learning-rate") as ended:
        execute(run, tmp_path / "out", lambda step: None)
    assert ended.value.code == "training_diverged"
    assert list(tmp_path.iterdir()) == [tmp_path / "data.jsonl"]


def test_weights_that_are_no_numbers_are_not_written(
    run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(step: TrainingStep) -> None:
        if step.step == step.num_steps:
            models[0].base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.data.fill_(math.inf)

    models: list[Any] = []
    original = trainer_module.prepare_model

    def remember(*args: Any) -> Any:
        models.append(original(*args))
        return models[0]

    monkeypatch.setattr(trainer_module, "prepare_model", remember)
    with pytest.raises(GraftworkError, match="no numbers"):
        execute(run, tmp_path / "out", spoil)
    assert not (tmp_path / "out").exists()


def test_targets_that_the_base_does_not_have_are_refused(run: TrainingRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tiny-llama has no module.*qkv"):
        train(run, tmp_path / "out", targets=("qkv",))
    train(run, tmp_path / "some", targets=("q_proj", "v_proj"), epochs=1)
    assert len(read_spec(tmp_path / "some", run.base, AdapterLimits()).grafts) == 4


def test_something_is_trained_and_only_the_adapter(run: TrainingRun) -> None:
    model = trainer_module.prepare_model(load_model(run.base, dtype="bfloat16", device="cpu"), run.base, run.config)
    moved = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(moved) == 28
    assert all("lora_" in name and weight.dtype == torch.float32 for name, weight in moved)
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


def test_no_row_goes_without_a_learned_token(run: TrainingRun) -> None:
    def learns(tokens: LabeledTokens) -> bool:
        return any(label != IGNORED for label in tokens.labels[1:])

    assert all(map(learns, (*run.rows, *run.validation)))


def test_nothing_leaves_the_machine(run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"training asked the network for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("CI", raising=False)  # TRL keeps quiet there of its own accord
    monkeypatch.setattr("huggingface_hub.utils._telemetry._TELEMETRY_QUEUE.put", refuse)
    train(run, tmp_path / "out", epochs=0.1)


def test_telemetry_is_off_also_when_the_hub_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    importlib.reload(trainer_module)
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_the_folder_says_which_base_it_belongs_to_and_not_where_that_was(run: TrainingRun, tmp_path: Path) -> None:
    card = execute(run, tmp_path / "out", lambda step: None)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["graftwork"] == {"base_digest": run.base.digest}
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert read_spec(tmp_path / "out", run.base, AdapterLimits()).base_digest == run.base.digest
    for path in (tmp_path / "out").iterdir():
        assert str(Path(run.base.path).parent).encode() not in path.read_bytes()

    readme = (tmp_path / "out" / "README.md").read_text()
    for fact in (run.base.digest, run.data_digest, "none: trained from the base", "| seed | 0 |", "validation_loss"):
        assert fact in readme
    assert card.num_rows == len(run.rows)
    assert json.loads(json.dumps(card.to_json()))["metrics"]["num_steps"] == card.metrics.num_steps


def test_a_folder_that_is_there_is_never_written_over(run: TrainingRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        execute(run, tmp_path / "out", lambda step: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(run: TrainingRun, tmp_path: Path) -> None:
    def interrupt(step: TrainingStep) -> None:
        if step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(run, tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == [tmp_path / "data.jsonl"]


def test_rows_may_not_be_longer_than_the_base_reads(run: TrainingRun) -> None:
    assert run.config.max_length == run.base.max_positions == 512
