"""Online methods (GRPO and distillation), full fine-tuning, and the ``easy_first`` curriculum."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from graftwork.adapters.base import BaseInfo, load_model, prepare
from graftwork.adapters.errors import ConfigurationError, GraftworkError, InvalidRequest
from graftwork.adapters.learning import teachers
from graftwork.adapters.learning.graders import reward_plugins
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import IGNORED, LabeledTokens, PairTokens, QuestionTokens
from graftwork.training.methods.reward_functions import exact, load_reward_functions, similar
from graftwork.training.methods.samplers import LengthGroupedSampler, RepeatSampler
from graftwork.training.model import adapter
from graftwork.training.model.difficulty import difficulties
from graftwork.training.run import checkpoints, estimate, rehearsal
from graftwork.training.run import trainer as trainer_module
from graftwork.training.run.card import Card
from graftwork.training.run.execution import execute
from graftwork.training.run.plan import TrainingRun, plan_run
from graftwork.training.run.progress import TrainingStep
from tests.training.conftest import chat

LABELS = ("delivery", "pause", "cancel")
ROWS = [chat(f"Ticket {number} about {LABELS[number % 3]}", LABELS[number % 3]) for number in range(24)]
FAST: dict[str, Any] = {"rank": 4, "batch_size": 8, "precision": "float32", "validation": 0.2}


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a package with reward functions, each given as the source of its body."""

    def install(**bodies: str) -> None:
        site = tmp_path / "site"
        (info := site / "our_rewards-1.0.dist-info").mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-rewards\nVersion: 1.0\n")
        points = "".join(f"{name} = our_rewards_{tmp_path.name}:{name}\n" for name in bodies)
        (info / "entry_points.txt").write_text(f"[graftwork.rewards]\n{points}")
        functions = [
            f"def {name}(*, prompts, completions, answers, **others):\n    {body}\n" for name, body in bodies.items()
        ]
        (site / f"our_rewards_{tmp_path.name}.py").write_text("\n".join(functions))
        monkeypatch.syspath_prepend(str(site))

    return install


@pytest.fixture
def planned(tiny_base: BaseInfo, write_rows: Callable[..., Path]) -> Callable[..., TrainingRun]:
    def make(method: Any, *, teacher: BaseInfo | None = None, **knobs: Any) -> TrainingRun:
        if teacher is not None:
            knobs["teacher"] = teacher.id
        config = TrainConfig.start(method, continuing=False, **{**FAST, **knobs})
        return plan_run(name="tickets", data=write_rows(*ROWS), base=tiny_base, config=config, teacher=teacher)

    return make


def trained(run: TrainingRun, folder: Path, **more: Any) -> tuple[Any, list[TrainingStep]]:
    folder.mkdir(exist_ok=True)
    steps: list[TrainingStep] = []
    metrics = trainer_module.train(
        run.base, run.rows, run.validation, run.config, folder, steps.append, teacher=run.teacher, **more
    )
    return metrics, steps


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_grpo_learns_to_say_what_is_rewarded(
    embedded_base: BaseInfo, write_rows: Callable[..., Path], offer: Callable[..., None], tmp_path: Path
) -> None:
    """The real base answers at length, until short answers pay."""
    offer(brief="return [1 / (1 + len(said.split())) for said in completions]")
    config = TrainConfig.start(
        "grpo", continuing=False, rewards=("brief",), learning_rate=5e-4, answer_tokens=16, epochs=4, validation=0.25
    )
    run = plan_run(name="tickets", data=write_rows(*ROWS[:12]), base=embedded_base, config=config)
    metrics, steps = trained(run, tmp_path / "out")
    assert metrics.last_reward > 1.5 * metrics.first_reward
    assert metrics.validation_reward > metrics.base_validation_reward
    assert steps[-1].validation_reward == metrics.validation_reward


def test_a_reward_function_is_told_what_was_asked_said_and_right(
    planned: Callable[..., TrainingRun], offer: Callable[..., None], tmp_path: Path
) -> None:
    log = tmp_path / "told.jsonl"
    offer(
        telling=f"import json; open({str(log)!r}, 'a').write(json.dumps([prompts, completions, answers]) + '\\n'); "
        "return [0.5 if n % 2 else None for n, _ in enumerate(completions)]"
    )
    run = planned("grpo", rewards=("telling",), generations=2, answer_tokens=2, epochs=1, validation=0.0)
    metrics, steps = trained(run, tmp_path / "out")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(told) == metrics.num_steps == 6
    assert metrics.validation_loss is None  # of answers held against each other a loss says nothing
    assert [step.reward for step in steps if step.reward is not None][-1] == metrics.last_reward == 0.5
    assert metrics.num_tokens > 2 * sum(map(len, run.rows))
    assert not (tmp_path / "out" / "ref").exists()
    for prompts, completions, answers in told:
        assert len(prompts) == len(completions) == len(answers) == 8
        for prompt, said, right in zip(prompts, completions, answers, strict=True):
            assert prompt[-1] == {"role": "user", "content": prompt[-1]["content"]}
            assert prompt[-1]["content"].endswith(right)
            assert isinstance(said, str)
    assert {prompt[-1]["content"] for prompts, _, _ in told for prompt in prompts} == {
        row["messages"][0]["content"] for row in ROWS
    }


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("return [1.0]", "1 rewards for 8 answers"),
        ("return [float('nan')] * len(completions)", "no number"),
        ("return completions[99][0]", "IndexError"),
        ("return ['good'] * len(completions)", "ValueError"),
    ],
)
def test_a_reward_function_that_fails_ends_the_run_and_is_named(
    planned: Callable[..., TrainingRun], offer: Callable[..., None], tmp_path: Path, body: str, why: str
) -> None:
    offer(broken=body)
    run = planned("grpo", rewards=("broken",), generations=4, answer_tokens=2, validation=0.0)
    with pytest.raises(GraftworkError, match=why) as ended:
        trained(run, tmp_path / "out")
    assert ended.value.code == "reward_failed"
    assert "broken" in ended.value.message
    assert not any((tmp_path / "out").iterdir())


def test_rewards_are_what_somebody_installed(planned: Callable[..., TrainingRun], offer: Callable[..., None]) -> None:
    offer(gone="return 1")
    reward_plugins.check(["exact", "similar", "gone"])
    with pytest.raises(InvalidRequest, match="no reward function") as refused:
        planned("grpo", rewards=("os:system",))
    assert refused.value.code == "reward_not_installed"
    assert "exact" in refused.value.message


def test_a_reward_whose_package_is_broken_is_refused(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer(lost="return 1")
    next((tmp_path / "site").glob("*.py")).unlink()
    with pytest.raises(ConfigurationError, match="lost cannot be loaded"):
        load_reward_functions(["lost"])


def test_the_rewards_that_come_along() -> None:
    assert exact(completions=["Card  arrival", "card", ""], answers=["card arrival"] * 3) == [1.0, 0.0, 0.0]
    same, half, none = similar(completions=["a b", "a c", "x"], answers=["a b"] * 3)
    assert (same, none) == (1.0, 0.0)
    assert half == pytest.approx(0.5)


def test_what_grpo_and_distillation_need_is_theirs_alone() -> None:
    for method, knobs, field in (
        ("grpo", {}, "rewards"),
        ("distillation", {}, "teacher"),
        ("sft", {"teacher": "big"}, "teacher"),
        ("sft", {"rewards": ("exact",)}, "rewards"),
        ("grpo", {"rewards": ("exact",), "batch_size": 20}, "batch_size"),
        ("grpo", {"rewards": ("exact",), "search": 4}, "search"),
        ("grpo", {"rewards": ("exact",), "curriculum": "easy_first"}, "curriculum"),
        ("dpo", {"beta": 0.0}, "beta"),
        ("dpo", {"variant": "full"}, "variant"),
        ("sft", {"variant": "full", "quantization": "nf4"}, "variant"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            TrainConfig.start(method, continuing=False, **knobs)  # type: ignore[arg-type]
        assert refused.value.param == field
    assert TrainConfig.start("grpo", continuing=False, rewards=("exact",), beta=0.0).beta == 0


# --- a teacher, and a base that was trained as a whole ----------------------------------------------------------------


def answered(base: BaseInfo, model: Any, question: str, answer: str) -> float:
    """Log probability of the answer, up to its end."""
    prompts = Prompts(Path(base.path))
    asked = [{"role": "user", "content": question}]
    prompt = prompts.chat(asked)
    turn = prompts.chat([*asked, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    with torch.no_grad():
        said = model(torch.tensor([turn])).logits[0].log_softmax(-1)
    return float(sum(said[place - 1, turn[place]] for place in range(len(prompt), len(prompt) + 2)))


@pytest.fixture
def teacher(planned: Callable[..., TrainingRun], tmp_path: Path) -> BaseInfo:
    """The base, trained as a whole to answer the tickets."""
    run = planned("sft", variant="full", epochs=12, learning_rate=1e-2, anchor=0.0)
    execute(run, tmp_path / "taught", lambda step: None)
    return prepare(str(tmp_path / "taught"), tmp_path / "home", lambda title, fraction: None)


def test_a_base_trained_as_a_whole_is_a_base(teacher: BaseInfo, tiny_base: BaseInfo, tmp_path: Path) -> None:
    assert teacher.architecture == tiny_base.architecture
    assert teacher.dtype == tiny_base.dtype == "bfloat16"
    assert teacher.digest != tiny_base.digest
    assert teacher.eos_token_ids == tiny_base.eos_token_ids
    asked = [{"role": "user", "content": "Ticket"}]
    assert Prompts(Path(teacher.path)).chat(asked) == Prompts(Path(tiny_base.path)).chat(asked)
    said, before = (load_model(info, dtype="float32", device="cpu") for info in (teacher, tiny_base))
    gained = answered(tiny_base, said, "Ticket 4 about pause", "pause") - answered(
        tiny_base, before, "Ticket 4 about pause", "pause"
    )
    assert gained > 3
    card = (tmp_path / "taught" / "README.md").read_text()
    assert "cannot be swapped while serving" in card
    assert "library_name: transformers" in card
    assert not list((tmp_path / "taught").glob("adapter_*"))


def test_distillation_learns_the_answers_that_the_teacher_would_give(
    planned: Callable[..., TrainingRun], teacher: BaseInfo, tiny_base: BaseInfo, tmp_path: Path
) -> None:
    run = planned("distillation", teacher=teacher, answer_tokens=4, epochs=8, learning_rate=0.02)
    assert isinstance(run.rows[0], QuestionTokens)
    metrics, _ = trained(run, tmp_path / "out")
    assert metrics.validation_loss < 0.7 * metrics.base_validation_loss
    bare_base = load_model(tiny_base, dtype="float32", device="cpu")
    student = adapter.load_adapter(bare_base, tmp_path / "out", run.config)
    bare = load_model(tiny_base, dtype="float32", device="cpu")
    question, answer = "Ticket 40 about pause", "pause"  # which nobody learned from
    assert answered(tiny_base, student, question, answer) > answered(tiny_base, bare, question, answer) + 1


def test_a_teacher_with_other_tokens_is_refused(
    planned: Callable[..., TrainingRun], tiny_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    info = prepare(str(other), tmp_path / "home", lambda title, fraction: None)
    with pytest.raises(ConfigurationError, match="has other tokens") as refused:
        planned("distillation", teacher=info)
    assert refused.value.param == "teacher"


def test_teachers_stand_below_the_allowed_folders(tiny_folder: Path, tmp_path: Path) -> None:
    teachers.check(str(tiny_folder), [tiny_folder.parent])
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tiny_folder)
    for folder in ("tiny-llama", str(tmp_path / "inside" / "link"), f"{tmp_path}/inside/../../x", "/etc"):
        with pytest.raises(InvalidRequest, match="not below a folder") as refused:
            teachers.check(folder, [tmp_path / "inside"])
        assert refused.value.code == "path_not_allowed"
    with pytest.raises(InvalidRequest, match="holds no model"):
        teachers.check(str(tmp_path / "inside"), [tmp_path])


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "distillation"])
def test_a_run_that_was_ended_goes_on_to_the_same_bits(
    planned: Callable[..., TrainingRun], tiny_base: BaseInfo, tmp_path: Path, method: str
) -> None:
    knobs: dict[str, Any] = {"answer_tokens": 3, "epochs": 2, "learning_rate": 0.01, "checkpoint_steps": 2}
    if method == "grpo":
        run = planned("grpo", rewards=("similar",), generations=4, micro_batch_tokens=80, **knobs)
    else:
        run = planned("distillation", teacher=tiny_base, micro_batch_tokens=80, **knobs)
    assert estimate.micro_batch_size(run.config, max(map(len, run.rows)) + 3) < run.config.batch_size
    whole, _ = trained(run, tmp_path / "whole")

    ends = iter([False] * 2 + [True])
    keeping = checkpoints.Checkpointing(folder=tmp_path / "checkpoints", should_stop=lambda: next(ends, False))
    with pytest.raises(checkpoints.RunStopped):
        trained(run, tmp_path / "cut", keeping=keeping)
    metrics, steps = trained(run, tmp_path / "cut", keeping=keeping)
    assert steps[0].step == 3
    assert metrics.num_steps == whole.num_steps
    assert metrics.num_tokens == whole.num_tokens
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_questions_come_in_groups_once_a_part_and_none_is_left_out() -> None:
    order = RepeatSampler(LengthGroupedSampler([5] * 7, 3, seed=0), questions=3, times=2, parts=2)
    first = list(order)
    assert len(first) == len(order) == 3 * 3 * 2 * 2
    batches = [first[start : start + 12] for start in range(0, 36, 12)]
    for batch in batches:
        assert batch[:6] == batch[6:]
        assert batch[:6:2] == batch[1:6:2]
        assert len(set(batch)) == 3
    assert set(first) == set(range(7))
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first


def test_a_single_question_fills_its_batch() -> None:
    assert list(RepeatSampler(LengthGroupedSampler([5], 4, seed=0), questions=4, times=1, parts=1)) == [0, 0, 0, 0]


def test_difficulty_is_the_loss_of_each_row(tiny_base: BaseInfo) -> None:
    """Batched, against one row at a time by torch's own cross entropy."""
    model = load_model(tiny_base, dtype="float32", device="cpu")
    random = torch.Generator().manual_seed(0)
    rows: list[LabeledTokens | PairTokens] = []
    for length in (5, 12, 3, 30, 8):
        ids = torch.randint(10, 1000, (length,), generator=random).tolist()
        rows.append(LabeledTokens(input_ids=ids, labels=[*[IGNORED] * (length // 2), *ids[length // 2 :]]))
    rows.append(LabeledTokens(input_ids=[7, 8, 9], labels=[7, 8, 9]))  # a text: its first token has nothing before it
    rows.append(PairTokens(prompt_ids=[4, 5], chosen_ids=[6, 7, 8], rejected_ids=[9]))
    found = difficulties(model, rows)
    for row, loss in zip(rows, found, strict=True):
        ids, labels = (
            (row.input_ids, row.labels)
            if isinstance(row, LabeledTokens)
            else ([4, 5, 6, 7, 8], [IGNORED, IGNORED, 6, 7, 8])
        )
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=IGNORED)
        assert loss == pytest.approx(float(expected), abs=1e-4)


def test_easy_first_begins_with_what_the_model_knows(
    planned: Callable[..., TrainingRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that learned some rows is continued on all of them: those come first, in every epoch."""
    known = planned("sft", epochs=20, learning_rate=0.03, anchor=0.0, validation=0.0)
    known = dataclasses.replace(known, rows=known.rows[::2])
    trained(known, tmp_path / "v1")
    run = planned("sft", epochs=2, curriculum="easy_first", anchor=0.0, validation=0.0, learning_rate=1e-6)
    # Every second row now wants other tokens than those that were learned.
    rows = [
        dataclasses.replace(row, labels=[999 if label != IGNORED else label for label in row.labels])
        if index % 2
        else row
        for index, row in enumerate(run.rows)
        if isinstance(row, LabeledTokens)
    ]
    read: list[list[int]] = []
    original = LengthGroupedSampler.__iter__

    def watched(order: LengthGroupedSampler) -> Any:
        read.append(list(original(order)))
        return iter(read[-1])

    monkeypatch.setattr(LengthGroupedSampler, "__iter__", watched)
    monkeypatch.setattr(rehearsal, "expected_seconds", lambda trainer, num_steps: None)  # which looks at the order, too
    trained(dataclasses.replace(run, rows=tuple(rows)), tmp_path / "v2", parent=tmp_path / "v1")
    assert len(read) == 2
    for order in read:
        assert all(index % 2 == 0 for index in order[: len(order) // 2])
    assert read[0] != read[1]


def test_a_card_tells_the_method(planned: Callable[..., TrainingRun], tmp_path: Path) -> None:
    run = planned("grpo", rewards=("exact",), generations=2, answer_tokens=2, epochs=1)
    card: Card = execute(run, tmp_path / "out", lambda step: None)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "group relative policy optimization" in text
    assert card.to_json()["config"]["rewards"] == ["exact"]
    assert card.to_json()["metrics"]["base_validation_reward"] == 0
