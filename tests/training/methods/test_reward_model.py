"""Reward models: they find the better answer, PEFT reads them, and nothing takes them for adapters that answer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, InvalidAdapter
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.row import Row
from graftwork.training.data.tokens import tokenize_pairs, tokenize_questions
from graftwork.training.evaluation.pairs import decide_pair_gates, evaluate_pairs
from graftwork.training.model.reward_model import RewardModel
from graftwork.training.run import trainer
from graftwork.training.run.progress import RunMetrics, TrainingStep

CONFIG = TrainConfig(
    method="reward_model", rank=4, alpha=8, learning_rate=1e-2, epochs=3, batch_size=8, precision="float32"
)
WORDS = ("delivery", "pause", "cancel", "refund", "invoice")


def pair(number: int) -> Row:
    """The polite answer is the better one."""
    asked = {"role": "user", "content": f"Ticket {number} about {WORDS[number % 5]}"}
    answers = (f"Of course, {WORDS[number % 3]}", f"No {WORDS[number % 3]}, {WORDS[number % 5]}")
    return Row(
        messages=(asked, {"role": "assistant", "content": answers[0]}),
        learned=(1,),
        rejected=answers[1],
    )


def train(base: BaseInfo, rows: Sequence[Row], folder: Path, config: TrainConfig = CONFIG, **more: Any) -> RunMetrics:
    folder.mkdir(exist_ok=True)
    prompts = Prompts(Path(base.path))
    tokens = tokenize_pairs(rows, prompts, max_length=128, eos_token_id=2).sequences
    held_out = tokenize_pairs(map(pair, range(100, 110)), prompts, max_length=128, eos_token_id=2).sequences
    return trainer.train(base, tokens, held_out, config, folder, lambda step: None, **more)


@pytest.fixture(scope="module")
def folder(tiny_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that was trained on 40 pairs."""
    folder = tmp_path_factory.mktemp("rewards") / "polite"
    metrics = train(tiny_base, [pair(n) for n in range(40)], folder)
    assert metrics.first_loss == pytest.approx(math.log(2), abs=0.2)
    assert metrics.validation_pair_accuracy == 1
    return folder


def test_it_finds_the_better_answer(tiny_base: BaseInfo, folder: Path) -> None:
    model = RewardModel.load(folder, tiny_base, precision="float32")
    asked = [{"role": "user", "content": "Ticket 999 about pause"}]
    polite, rude = model.scores([(asked, "Of course, pause"), (asked, "No pause, delivery")])
    assert polite > 0 > rude
    # Neither the company of other answers nor a plain prompt changes what an answer is worth.
    long = (asked, "Of course, pause, and cancel whatever you like to have cancelled")
    assert model.scores([long, (asked, "Of course, pause")])[1] == pytest.approx(polite, abs=1e-4)
    assert len(model.scores(("Ticket:", f"Of course {n}") for n in range(19))) == 19


def test_the_gates_judge_by_held_out_pairs(tiny_base: BaseInfo, folder: Path, tmp_path: Path) -> None:
    held_out = [pair(n) for n in range(200, 260)]
    fresh = evaluate_pairs(held_out, folder, tiny_base)
    assert decide_pair_gates(fresh).outcome == "pass"
    again = evaluate_pairs(held_out, folder, tiny_base, parent=folder)
    assert again.num_rows == 60
    assert again.accuracy is not None
    assert again.accuracy.mean == again.parent_accuracy == 1
    decision = decide_pair_gates(again)
    assert [gate.name for gate in decision.gates] == ["rows", "better_than_chance", "not_worse_than_parent"]
    assert decision.outcome == "inconclusive", "60 pairs do not show that it is at most 2 % worse"
    json.dumps({**again.to_json(), **decision.to_json()})

    upside_down = [dataclasses.replace(row.with_rejected(), rejected=row.answer) for row in held_out]
    backwards = decide_pair_gates(evaluate_pairs(upside_down, folder, tiny_base))
    assert backwards.outcome == "refuse"
    assert backwards.refusals == ("pair_accuracy 0.000 (0.000 to 0.049), 0.5 by chance: it is worse",)
    assert decide_pair_gates(evaluate_pairs(held_out[:8], folder, tiny_base)).outcome == "inconclusive"
    assert decide_pair_gates(evaluate_pairs([], folder, tiny_base)).outcome == "inconclusive"


def test_peft_and_transformers_read_it(tiny_base: BaseInfo, folder: Path) -> None:
    """As a user does with what is exported."""
    bare = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_base.path, num_labels=1, dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(bare, str(folder)).eval()
    theirs.config.pad_token_id = 0
    row = pair(77)
    prompts = Prompts(Path(tiny_base.path))
    [tokens] = tokenize_pairs([row], prompts, max_length=128, eos_token_id=2).sequences
    with torch.no_grad():
        expected = float(theirs(torch.tensor([tokens.prompt_ids + tokens.chosen_ids])).logits[0, 0])
    [found] = RewardModel.load(folder, tiny_base, precision="float32").row_scores([row])
    assert found == pytest.approx(expected, abs=1e-4)


def test_it_can_be_continued_by_its_own_method_alone(tiny_base: BaseInfo, folder: Path, tmp_path: Path) -> None:
    rows = [pair(n) for n in range(8)]
    once = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-4)
    continued = train(tiny_base, rows, tmp_path / "more", once, parent=folder)
    assert continued.first_loss < 0.3
    with pytest.raises(ConfigurationError, match="A reward model is continued by reward_model, and by it alone"):
        train(tiny_base, rows, tmp_path / "dpo", dataclasses.replace(once, method="dpo"), parent=folder)
    train(tiny_base, rows, tmp_path / "answers", dataclasses.replace(once, method="dpo"))
    with pytest.raises(ConfigurationError, match="this is reward_model"):
        train(tiny_base, rows, tmp_path / "none", once, parent=tmp_path / "answers")


def test_grpo_learns_from_its_scores(tiny_base: BaseInfo, folder: Path, tmp_path: Path) -> None:
    asked = [pair(n) for n in range(8)]
    prompts = Prompts(Path(tiny_base.path))
    tokens = tokenize_questions(asked, prompts, max_length=128, eos_token_id=2).sequences
    config = TrainConfig.start(
        "grpo", continuing=False, rank=4, rewards=("polite@1",), generations=4, answer_tokens=3, batch_size=16, epochs=1
    )
    (tmp_path / "out").mkdir()
    steps: list[TrainingStep] = []
    trainer.train(tiny_base, tokens, (), config, tmp_path / "out", steps.append, reward_models={"polite@1": folder})
    rewards = [step.reward for step in steps if step.reward is not None]
    assert len(rewards) == 2
    assert len(set(rewards)) == 2


def test_its_folder_is_read_strictly(tiny_base: BaseInfo, folder: Path, tmp_path: Path) -> None:
    spec = read_spec(folder, tiny_base, AdapterLimits())
    assert spec.head == "base_model.model.score.weight"
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    assert tensors[spec.head].shape == (1, tiny_base.hidden_size)
    assert spec.num_parameters == sum(tensor.size for tensor in tensors.values())
    config = json.loads((folder / "adapter_config.json").read_text())

    def refused(why: str, *, head: Any = tensors[spec.head], **changes: Any) -> None:
        changed = {**tensors, spec.head: head}
        if head is None:
            del changed[spec.head]
        safetensors.numpy.save_file(changed, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(InvalidAdapter, match=why):
            read_spec(tmp_path, tiny_base, AdapterLimits())

    refused("has no base_model.model.score.weight, the head of a reward model", head=None)
    refused("has no base_model.model.score.weight", modules_to_save=None)
    refused(r"has shape \[3, 32\] where a reward model", head=np.zeros((3, 32), dtype=np.float32))
    refused("not finite|no number|NaN|nan", head=np.full((1, 32), np.nan, dtype=np.float32))
    refused("score.weight' belongs to no module", task_type="CAUSAL_LM")
    refused("task_type is 'TOKEN_CLS': CAUSAL_LM adapters are served", task_type="TOKEN_CLS")
