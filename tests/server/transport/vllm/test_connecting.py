"""The key of a vLLM server."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.transport.vllm.connecting import read_key


def test_a_key_is_read_from_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    file.chmod(0o600)
    assert (read_key(file), read_key(None)) == ("secret", None)


@pytest.mark.parametrize(
    ("mode", "content", "why"),
    [
        (0o640, b"secret", "chmod 600"),
        (0o600, b" \n", "no key"),
        (0o600, b"two\nlines", "no key"),
        (0o600, b"\xff", "key"),
    ],
)
def test_another_file_is_refused_and_not_shown(tmp_path: Path, mode: int, content: bytes, why: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=why) as caught:
        read_key(file)
    assert "--engine-key-file" in caught.value.message
    assert "secret" not in caught.value.message


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--engine-key-file"):
        read_key(tmp_path / "none")
