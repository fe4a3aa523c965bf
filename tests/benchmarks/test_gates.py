"""The rates that docs/learning.md states, on fewer rounds."""

from __future__ import annotations

import pytest

from benchmarks import gates

WORSE, EQUAL, BETTER = gates.SCENARIOS


@pytest.mark.parametrize("num_rows", [12, 50, 200])
def test_worse_ones_do_not_pass_and_equal_ones_are_not_refused(num_rows: int) -> None:
    rates = [gates.simulate(scenario, num_rows, num_rounds=200) for scenario in gates.SCENARIOS]
    worse, equal, better = rates
    assert worse["pass"] <= 0.05
    assert equal["refuse"] <= 0.2
    assert better["refuse"] <= equal["refuse"] + 0.05
    assert all(sum(each.values()) == pytest.approx(1) for each in rates)


def test_more_rows_say_more() -> None:
    better = [gates.simulate(BETTER, num_rows, num_rounds=60)["pass"] for num_rows in (12, 200, 1000)]
    assert better[0] == 0 < better[1] < better[2]
    worse = [gates.simulate(WORSE, num_rows, num_rounds=60)["refuse"] for num_rows in (12, 200, 1000)]
    assert worse[0] <= worse[1] < worse[2]


def test_the_table_has_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert gates.main(["--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(gates.NUM_ROWS) * len(gates.SCENARIOS)
    assert all(line.count("|") == 6 for line in lines)
