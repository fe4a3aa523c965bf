"""The lock of a home, which one server has at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.processes import home_lock


def test_a_home_that_cannot_be_written_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for home in (tmp_path / "file", tmp_path / "file" / "home", Path("/proc/home")):
        with pytest.raises(ConfigurationError, match=r"cannot be written: .*--home"), home_lock(home):
            pass
