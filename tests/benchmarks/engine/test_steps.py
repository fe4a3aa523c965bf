"""The benchmark of decoding steps counts every kernel once, under its own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine import steps
from graftwork.adapters.base import BaseInfo
from graftwork.server.engine.backends.cpu import library
from tests.conftest import TEST_HOME

pytestmark = pytest.mark.skipif(bool(library.unavailable_reason()), reason=library.unavailable_reason() or "")


@pytest.mark.slow
def test_a_step_kernel_by_kernel(
    embedded_base: BaseInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[int] = []
    run = steps.KernelContext.run
    monkeypatch.setattr(
        steps.KernelContext, "run", lambda self, ops, step: (runs.append(len(ops)), run(self, ops, step))[1]
    )
    asked_for = ["--base", embedded_base.path, "--home", str(TEST_HOME), "--out", str(tmp_path), "--loads", "2x0,3x2"]
    steps.main([*asked_for, "--steps", "3", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [(load["rows"], load["adapters"]) for load in said["loads"]] == [(2, 0), (3, 2)]
    kinds = ["576 → 960", "attention", "576 → 576", "576 → 3072", "1536 → 576", "576 → 49152"]
    for load in said["loads"]:
        assert list(load["kernels_ms"]) == kinds
        assert all(took > 0 for took in load["kernels_ms"].values())
    assert said["reading_ms"] > 0
    # A step is one call for all layers and one for the head; a watched one makes a call for each of their kernels.
    assert set(runs) == {1, 5 * 30}
    assert runs.count(1) >= 2 * 3 * (5 * 30 + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a0", "a1"]
