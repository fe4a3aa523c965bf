"""Fixtures for tests of training: tokenizers of the embedded base, and files of rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.prompts import Prompts
from tests.conftest import TOKENIZER_FILES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAFTWORK_URL", "GRAFTWORK_API_KEY", "GRAFTWORK_BASE", "GRAFTWORK_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def prompts(embedded_base: BaseInfo) -> Prompts:
    return Prompts(Path(embedded_base.path))


@pytest.fixture(scope="session")
def templated(embedded_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prompts]:
    """The real tokenizer with another chat template."""

    def make(template: str) -> Prompts:
        folder = tmp_path_factory.mktemp("templated")
        for name in TOKENIZER_FILES:
            shutil.copy(Path(embedded_base.path, name), folder)
        (folder / "config.json").write_text(json.dumps({"eos_token_id": 2}))
        (folder / "chat_template.jinja").write_text(template)
        return Prompts(folder)

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes JSON lines; a string is written as it is."""

    def write(*rows: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


def chat(*turns: str) -> dict[str, Any]:
    """A row of alternating turns that ends with the assistant's."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]}
