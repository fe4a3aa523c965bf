"""Packed rows: the common prefix is computed once, and the result equals that of padded rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import IGNORED
from graftwork.training.methods import sft
from graftwork.training.model import adapter, packing
from graftwork.training.run import trainer
from graftwork.training.run.plan import plan_run
from tests.training.conftest import chat

X = IGNORED
A, B, C = [1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 2, 3, 7, 8, 9]
LABELS = [[X, X, X, X, 5], [X, X, X, 6], [X, X, X, X, 8, 9]]


def test_what_all_rows_begin_with_stands_once() -> None:
    packed = packing.pack([A, C], [LABELS[0], LABELS[2]])
    assert packed is not None
    assert packed["input_ids"].tolist() == [[1, 2, 3, 4, 5, 7, 8, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert packed["labels"].tolist() == [[X, X, X, X, 5, X, 8, 9]]
    layout = packed["packing"]
    assert (layout.shared, layout.num_saved_tokens) == (3, 3)
    assert layout.places.tolist() == [[3, 4, 0], [5, 6, 7]]
    assert layout.own.tolist() == [[True, True, False], [True, True, True]]
    assert layout.each(torch.tensor([2.0, 5.0])).tolist() == [[0, 0, 0, 2, 2, 5, 5, 5]]


@pytest.mark.parametrize(
    ("rows", "labels", "shared"),
    [
        ([A, B], [LABELS[0], LABELS[1]], 2),  # the first learned token of one is the first own: it needs one before it
        ([A, A], [LABELS[0]] * 2, 3),
        ([A], [LABELS[0]], 3),
        ([A, [9, 2, 3]], [LABELS[0], [X, X, 3]], 0),
        ([A, C], [A, C], 0),  # texts, learned from their first token
        ([[1, 2], [1, 2, 3]], [[X, X], [X, X, 3]], 1),
    ],
)
def test_every_row_keeps_a_token_before_the_first_that_is_learned(
    rows: list[list[int]], labels: list[list[int]], shared: int
) -> None:
    packed = packing.pack(rows, labels)
    assert packed is not None
    assert packed["packing"].shared == shared
    learned = sum(label != IGNORED for row in labels for label in row[1:])
    assert int((packed["labels"] != IGNORED).sum()) == learned


def test_long_rows_are_not_packed() -> None:
    row = list(range(packing.MAX_ROW_TOKENS + 1))
    assert packing.pack([row, A], [row, LABELS[0]]) is None


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_loss_and_gradients_are_those_of_padded_rows(tiny_base: BaseInfo, precision: str, near: float) -> None:
    torch.manual_seed(1)
    config = TrainConfig(rank=4, alpha=8)
    model = trainer.prepare_model(load_model(tiny_base, dtype=precision, device="cpu"), tiny_base, config)
    for weight in adapter.trainable_parameters(model):
        weight.data = torch.randn_like(weight) * 0.1
    assert packing.enable_packing(model.get_base_model())
    drawn = torch.Generator().manual_seed(0)
    beginning = torch.randint(10, 1000, (7,), generator=drawn).tolist()
    rows = [[*beginning, *torch.randint(10, 1000, (length,), generator=drawn).tolist()] for length in (5, 9, 2, 12)]
    examples = [{"input_ids": row, "labels": [IGNORED] * (len(row) - 1) + row[-1:]} for row in rows]

    def outcome(packs: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        collate = sft.PackingCollator(pad_token_id=0)
        collate.packs = packs
        batch = collate(examples)
        assert ("packing" in batch) == packs
        assert batch["input_ids"].numel() == (7 + 5 + 9 + 2 + 12 if packs else 4 * 19)
        model.zero_grad()
        labels = batch.pop("labels")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [
            weight.grad.clone() for weight in adapter.trainable_parameters(model) if weight.grad is not None
        ]

    padded_loss, padded = outcome(packs=False)
    packed_loss, packed = outcome(packs=True)
    torch.testing.assert_close(packed_loss, padded_loss, rtol=near, atol=near)
    assert len(padded) == len(packed) == 28
    for one, other in zip(packed, padded, strict=True):
        assert float((one - other).norm()) <= near * float(other.norm())


def test_a_model_that_it_was_not_made_for_stays_as_it_is(tiny_base: BaseInfo) -> None:
    model = load_model(tiny_base, dtype="float32", device="cpu")
    model.config.model_type = "gpt_neox"
    assert not packing.enable_packing(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("method", ["sft", "weighted_sft"])
def test_a_run_ends_where_it_ends_with_padded_rows(
    tiny_base: BaseInfo, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rows = [chat(f"Ticket {number} {'again ' * (number % 5)}", ("pause", "cancel")[number % 2]) for number in range(24)]
    config = TrainConfig(
        rank=4, alpha=8, learning_rate=1e-2, epochs=2, batch_size=8, validation=0.2, precision="float32"
    )
    run = plan_run(name="tickets", data=write_rows(*rows), base=tiny_base, config=config)
    config = dataclasses.replace(run.config, method=method)
    learned = [dataclasses.replace(row, weight=1 + index % 3) for index, row in enumerate(run.rows)]
    if method == "sft":
        learned = list(run.rows)
    found = []
    for name in ("packed", "padded"):
        (tmp_path / name).mkdir()
        found.append(trainer.train(tiny_base, learned, run.validation, config, tmp_path / name, lambda step: None))
        monkeypatch.setattr(packing, "enable_packing", lambda model: False)
    packed, padded = found
    assert packed.num_tokens == padded.num_tokens == 2 * sum(map(len, learned))
    assert packed.last_loss == pytest.approx(padded.last_loss, rel=1e-3)
    assert packed.validation_loss == pytest.approx(padded.validation_loss, rel=1e-3)
