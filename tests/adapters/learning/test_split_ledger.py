"""The ledger of splits: written once, and for good."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from graftwork.adapters.learning.split_ledger import SplitLedger
from graftwork.adapters.storage.database import Database, migrate


@pytest.fixture
def ledger(tmp_path: Path) -> SplitLedger:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    return SplitLedger(database)


def test_what_is_written_stays(ledger: SplitLedger) -> None:
    assert ledger.sides("tickets") == {}
    ledger.record("tickets", {"a" * 16: "train", "b" * 16: "validation"})
    ledger.record("tickets", {"a" * 16: "test", "c" * 16: "test"})
    assert ledger.sides("tickets") == {"a" * 16: "train", "b" * 16: "validation", "c" * 16: "test"}
    ledger.record("tickets", {})


def test_each_adapter_has_its_own_and_a_child_of_another_has_both(ledger: SplitLedger) -> None:
    ledger.record("tickets", {"a" * 16: "train", "b" * 16: "train"})
    ledger.record("other", {"b" * 16: "validation"})
    assert ledger.sides("other") == {"b" * 16: "validation"}
    assert ledger.sides("other", "tickets") == {"b" * 16: "validation", "a" * 16: "train"}


def test_many_questions_at_once(ledger: SplitLedger) -> None:
    sides = {f"{number:016x}": "train" for number in range(2500)}
    ledger.record("tickets", sides)
    assert ledger.sides("tickets") == sides


def test_no_other_side_can_be_written(ledger: SplitLedger) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        ledger.record("tickets", {"a" * 16: "candidate"})
