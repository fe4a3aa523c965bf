"""How the kernels' compiler is run; what it makes is tested in ``test_native``."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine.backends.cpu import library
from tests.e2e.server_process import eventually


def test_a_compiler_that_takes_too_long_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, pid = tmp_path / "c++", tmp_path / "pid"
    # As drivers do, it has another process do the work.
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\nsleep 600 &\necho $! > {pid}.new && mv {pid}.new {pid}\nwait\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    for seconds in (0.3, 3.0, 60.0):  # until it is long enough for the process to have begun
        monkeypatch.setattr(library, "BUILD_SECONDS", seconds)
        with pytest.raises(ConfigurationError, match=r"c\+\+ cannot build the CPU kernels.*timed out"):
            library.load.__wrapped__(tmp_path / "cache")
        if pid.exists():
            break
    eventually(lambda: not is_running(int(pid.read_text())), 10, "the compiler's own process has ended as well")
    assert list((tmp_path / "cache").iterdir()) == []


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
