"""The anchor: deterministic passages of the base, and a penalty that keeps the model near it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tokenizers
import torch
from transformers import PreTrainedModel

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.training.config import TrainConfig
from graftwork.training.model import anchor
from graftwork.training.model.anchor import Anchor
from graftwork.training.run import trainer
from tests.training.methods.test_methods import row, token_ids

__all__ = ["token_ids"]


@pytest.fixture(autouse=True)
def few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor, "PASSAGES", 4)
    monkeypatch.setattr(anchor, "TOKENS", 12)
    monkeypatch.setattr(trainer, "_anchors", {})  # none of these for the next file's runs


@pytest.fixture
def bare(tiny_base: BaseInfo) -> PreTrainedModel:
    return load_model(tiny_base, dtype="float32", device="cpu")


@pytest.fixture
def tokenizer(tiny_base: BaseInfo) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(Path(tiny_base.path, "tokenizer.json")))


def test_passages_are_the_seeds_and_nothing_elses(bare: PreTrainedModel, tokenizer: tokenizers.Tokenizer) -> None:
    torch.manual_seed(11)
    first = Anchor.of(bare, tokenizer, seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), drawn)  # who draws afterwards draws what it would have drawn
    again, other = Anchor.of(bare, tokenizer, seed=3), Anchor.of(bare, tokenizer, seed=4)
    assert first._ids.shape == (4, 12)
    assert torch.equal(first._ids, again._ids)
    assert not torch.equal(first._ids, other._ids)
    assert Anchor.of(bare, tokenizer, seed=3, num_steps=2)._ids.shape == (2, 12)
    assert Anchor.of(bare, tokenizer, seed=3, num_steps=99)._ids.shape == (4, 12)


def test_the_divergence_is_that_of_the_whole_distributions(
    bare: PreTrainedModel, tokenizer: tokenizers.Tokenizer
) -> None:
    held = Anchor.of(bare, tokenizer, seed=0)
    with torch.no_grad():
        assert held.divergence(bare, 0) == pytest.approx(0, abs=1e-6)
    moved = load_model_like(bare)
    with torch.no_grad():
        ids = held._ids[1][None]
        meant, said = (model(ids).logits[0].log_softmax(-1) for model in (bare, moved))
        expected = torch.nn.functional.kl_div(said, meant, log_target=True, reduction="batchmean")
    assert expected > 0.01
    # The sixth look is at the second passage again.
    assert float(held.divergence(moved, 5).detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("num_steps", "looks"), [(3, {0: 0, 1: 1, 2: 2}), (8, {0: 0, 2: 1, 6: 3}), (99, {8: 2})])
def test_a_long_run_looks_seldom_and_each_look_counts_for_more(
    bare: PreTrainedModel, tokenizer: tokenizers.Tokenizer, num_steps: int, looks: dict[int, int]
) -> None:
    held, moved = Anchor.of(bare, tokenizer, seed=0), load_model_like(bare)
    every = {3: 1, 8: 2, 99: anchor.MAX_INTERVAL}[num_steps]
    for step, look in looks.items():
        pull = held.penalty(moved, step, num_steps)
        assert pull is not None
        assert float(pull.detach()) == pytest.approx(every * float(held.divergence(moved, look).detach()))
        assert all(held.penalty(moved, step + between, num_steps) is None for between in range(1, every))


def load_model_like(bare: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    moved: Any = type(bare)(bare.config).eval()
    moved.load_state_dict(bare.state_dict())
    with torch.no_grad():
        for weight in moved.get_decoder().layers[0].parameters():
            weight += 0.3 * torch.randn_like(weight)
    return moved  # type: ignore[no-any-return]


def test_a_run_that_is_held_stays_nearer_and_learns_all_the_same(
    tiny_base: BaseInfo,
    bare: PreTrainedModel,
    token_ids: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anchor, "PASSAGES", 12)
    rows = token_ids([row(number) for number in range(24)], "sft")
    config = TrainConfig(rank=4, alpha=8, learning_rate=2e-2, epochs=4, batch_size=8, precision="float32", dropout=0.0)
    passages = Anchor.of(bare, tokenizers.Tokenizer.from_file(str(Path(tiny_base.path, "tokenizer.json"))), seed=9)
    far, losses = {}, {}
    for firmness in (0.0, 10.0):
        folder = tmp_path / str(firmness)
        folder.mkdir()
        held = dataclasses.replace(config, anchor=firmness)
        metrics = trainer.train(tiny_base, rows, (), held, folder, lambda step: None)
        losses[firmness] = metrics.last_loss
        model: Any = peft.PeftModel.from_pretrained(load_model(tiny_base, dtype="float32", device="cpu"), str(folder))
        with torch.no_grad():
            far[firmness] = float(sum(passages.divergence(model.get_base_model(), step) for step in range(4)))
        first = metrics.first_loss
    assert far[10.0] < 0.7 * far[0.0]
    assert losses[10.0] < first


def test_in_parts_a_step_is_pulled_once(tiny_base: BaseInfo, token_ids: Callable[..., Any], tmp_path: Path) -> None:
    rows = token_ids([row(number) for number in range(8)], "sft")
    config = TrainConfig(
        rank=4, alpha=8, learning_rate=1e-2, epochs=2, batch_size=4, precision="float32", anchor=5.0, max_grad_norm=1e9
    )
    weights = []
    for tokens in (4096, 1):
        folder = tmp_path / str(tokens)
        folder.mkdir()
        trainer.train(
            tiny_base, rows, (), dataclasses.replace(config, micro_batch_tokens=tokens), folder, lambda step: None
        )
        weights.append(peft.utils.load_peft_weights(str(folder)))
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=2e-4), name
