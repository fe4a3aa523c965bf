"""The example data: the claims of its README, and that training on it teaches the task."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.read.source import file_source
from graftwork.training.data.row import Row
from graftwork.training.run.execution import execute
from graftwork.training.run.plan import plan_run
from tests.training.conftest import EXAMPLES


def rows(name: str) -> tuple[Row, ...]:
    found = tuple(file_source(EXAMPLES / name).rows())
    rows = tuple(row for row in found if isinstance(row, Row))
    assert len(rows) == len(found)
    return rows


def ticket(row: Row) -> str:
    return " ".join(re.findall(r"\w+", row.messages[1]["content"].lower()))


def label(row: Row) -> str:
    return str(row.messages[2]["content"])


def test_the_examples_are_as_many_as_the_readme_says() -> None:
    train, held = rows("tickets.jsonl"), rows("tickets_heldout.jsonl")
    named = set(re.findall(r"^\| `(\w+)` \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(named) == 10
    assert Counter(map(label, train)) == dict.fromkeys(named, 30)
    assert Counter(map(label, held)) == dict.fromkeys(named, 6)
    (system,) = {row.messages[0]["content"] for row in (*train, *held)}
    assert named <= set(re.findall(r"\w+", system))


def test_no_ticket_stands_in_both_files_or_twice() -> None:
    tickets = [ticket(row) for name in ("tickets.jsonl", "tickets_heldout.jsonl") for row in rows(name)]
    assert len(set(tickets)) == len(tickets) == 360


@pytest.mark.slow
def test_training_on_the_examples_teaches_the_task(embedded_base: BaseInfo, tmp_path: Path) -> None:
    """Minutes on two cores. Greedy answers of plain PEFT to tickets that were held out, before and after."""
    import peft

    held = rows("tickets_heldout.jsonl")
    run = plan_run(
        name="tickets",
        data=EXAMPLES / "tickets.jsonl",
        base=embedded_base,
        config=TrainConfig(epochs=2, validation=0),
    )
    execute(run, tmp_path / "tickets", lambda step: None)

    model = load_model(embedded_base, dtype="float32", device="cpu")
    before = exact_match(model, embedded_base, held)
    after = exact_match(peft.PeftModel.from_pretrained(model, str(tmp_path / "tickets")), embedded_base, held)
    print(f"exact match on {len(held)} held-out tickets: base {before:.0%}, adapter {after:.0%}")
    assert before < 0.4
    assert after > 0.6


def exact_match(model: object, base: BaseInfo, held: tuple[Row, ...]) -> float:
    """Share of the rows whose greedy answer is the label, to the letter and with the end of the turn after it."""
    import torch

    prompts = Prompts(Path(base.path))
    right = 0
    for row in held:
        prompt = prompts.chat(row.messages[:-1])
        with torch.no_grad():
            answer = model.generate(  # type: ignore[attr-defined]
                torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=base.eos_token_ids[0]
            )
        right += prompts.decode(answer[0, len(prompt) :].tolist()) == label(row)
    return right / len(held)
