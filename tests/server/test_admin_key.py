"""The first admin's key, from a file or the environment."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.app import _admin_key
from graftwork.server.config import ServerConfig

SECRET = "a-long-random-secret"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    file = tmp_path / "admin.key"
    file.write_text(f"{SECRET}\n")
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert _admin_key(ServerConfig(home=tmp_path, admin_key_file=file)) == SECRET
    assert ("can be read by other users" in caplog.text) == warned
    assert SECRET not in caplog.text


def test_a_key_that_is_missing_or_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    with pytest.raises(ConfigurationError, match="No such file"):
        _admin_key(ServerConfig(home=tmp_path, admin_key_file=file))
    file.write_text("short")
    with pytest.raises(ConfigurationError, match="16 characters"):
        _admin_key(ServerConfig(home=tmp_path, admin_key_file=file))
