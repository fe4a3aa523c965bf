"""The compilation of the native kernels; the kernels are tested in ``test_kernels``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from graftwork.adapters.errors import ConfigurationError
from graftwork.server.engine.backends.cpu import library
from tests.conftest import TEST_HOME
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


@pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")
def test_a_damaged_library_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = library._build(TEST_HOME / "kernels")
    monkeypatch.setattr(library, "_run", lambda command: shutil.copy(built, command[-1]))
    damaged = tmp_path / built.name
    damaged.write_bytes(b"garbage")
    library.load.__wrapped__(tmp_path)
    assert damaged.read_bytes() == built.read_bytes()


def library_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the library is called that would be built now; nothing is compiled."""
    monkeypatch.setattr(library, "_run", lambda command: Path(command[-1]).write_bytes(b""))
    return library._build(folder).name


def test_a_byte_of_any_source_makes_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(library.KERNELS, kernels)
    monkeypatch.setattr(library, "KERNELS", kernels)
    monkeypatch.setattr(library, "SOURCE", kernels / "kernels.cpp")
    names = [library_name(tmp_path / "cache", monkeypatch)]
    assert library_name(tmp_path / "cache", monkeypatch) == names[0]
    sources = sorted(kernels.iterdir())
    assert len(sources) > 5
    for path in sources:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        names.append(library_name(tmp_path / "cache", monkeypatch))
        path.write_bytes(content)
    sources[0].rename(kernels / "another.h")
    names.append(library_name(tmp_path / "cache", monkeypatch))
    assert len(set(names)) == len(sources) + 2


@pytest.mark.skipif(library.compiler() is None, reason="no C++ compiler")
def test_every_header_is_part_of_the_library() -> None:
    compiler = library.compiler()
    assert compiler is not None
    rule = subprocess.run([compiler, "-MM", library.SOURCE], capture_output=True, text=True, check=True).stdout
    reached = {Path(word).name for word in rule.replace("\\\n", " ").split()[1:]}
    assert reached == {path.name for path in library.KERNELS.iterdir()}


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
