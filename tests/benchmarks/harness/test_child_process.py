"""Child processes of a benchmark end with it, also if it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from benchmarks.harness.child_process import ChildProcess
from benchmarks.harness.errors import BenchmarkError
from benchmarks.systems.peer_cache import PeerCache
from tests.benchmarks.fakes import alive, fake_server, gone, quiet
from tests.conftest import CHECKOUT
from tests.e2e.server_process import eventually


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


def python(code: str, *arguments: str) -> list[str | Path]:
    return [sys.executable, "-c", textwrap.dedent(code), *arguments]


def test_leaving_the_with_ends_the_whole_family(tmp_path: Path, token: str) -> None:
    """The server's own child has a session of its own and ignores nothing: it would stay."""
    with fake_server(tmp_path, token).running():
        assert len(alive(token)) == 3, "the guard, the server, and the server's child"
    assert alive(token) == []


def test_so_does_an_exception(tmp_path: Path, token: str) -> None:
    with pytest.raises(ZeroDivisionError), fake_server(tmp_path, token).running():
        raise ZeroDivisionError
    assert alive(token) == []


def test_who_does_not_listen_is_ended_all_the_same(tmp_path: Path, token: str) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    with ChildProcess(python(deaf, token), log=tmp_path / "log", patience=0.3) as child:
        eventually(lambda: "deaf" in child.log_tail(), 30, "it has begun")
        began = time.monotonic()
    assert 0.3 <= time.monotonic() - began < 10
    assert alive(token) == []


def test_the_guard_is_asked_to_end(tmp_path: Path, token: str) -> None:
    """Whoever ends it by hand ends what it guards."""
    with fake_server(tmp_path, token).running() as running:
        guard = min(alive(token), key=lambda process: process.create_time())
        guard.terminate()
        assert gone(token)
        eventually(lambda: running.child.poll() == 143, 10, "it says so")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_owners_death_ends_the_whole_family(tmp_path: Path, token: str, number: signal.Signals) -> None:
    owner = f"""
        import sys, time
        from pathlib import Path
        from tests.benchmarks.fakes import fake_server
        with fake_server(Path({str(tmp_path)!r}), "{token}").running():
            print("up", flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen(
        python(owner), cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"up\n"
    assert len(alive(token)) == 3
    process.send_signal(number)
    process.wait(30)
    assert gone(token)


def test_exit_codes_and_last_words(tmp_path: Path) -> None:
    script = "import sys; print('a\\nb'); print('c', file=sys.stderr); sys.exit(7)"
    with ChildProcess(python(script), log=tmp_path / "log") as child:
        assert child.wait() == 7
    assert sorted(child.log_tail().split()) == ["a", "b", "c"]
    with ChildProcess(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), log=tmp_path / "log") as child:
        assert child.wait() == 137


def test_talking(tmp_path: Path) -> None:
    script = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    with ChildProcess(python(script), log=tmp_path / "log", talks=True) as child:
        child.input.write(b"hello\n")
        child.input.flush()
        assert child.output.readline() == b"HELLO\n"


def test_the_memory_of_the_whole_family_is_watched(tmp_path: Path) -> None:
    family = """
        import subprocess, sys, time
        hold = "import time; kept = b'x' * 60_000_000; print('held', flush=True); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", hold])
        kept = b"x" * 40_000_000
        time.sleep(600)
    """
    with ChildProcess(python(family), log=tmp_path / "log") as child:
        eventually(lambda: child.peak_bytes > 100e6, 30, "both are counted")
        assert child.peak_bytes < 250e6
        peak = child.peak_bytes
        child.reset_peak()
        assert 100e6 < child.peak_bytes <= peak + 20e6


def test_settings_of_servers_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAFTWORK_ADMIN_KEY", "VIRTUAL_ENV", "PYTHONPATH", "KEPT"):
        monkeypatch.setenv(name, "x")
    script = "import os; print(*sorted(name for name, value in os.environ.items() if value in ('x', 'y')))"
    with ChildProcess(python(script), log=tmp_path / "log", environment={"GIVEN": "y"}) as child:
        child.wait()
    assert child.log_tail() == "GIVEN KEPT"


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workshop(tmp_path: Path) -> PeerCache:
    return PeerCache(tmp_path / "cache", quiet(), jobs=1)


def test_things_are_made_once(workshop: PeerCache) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "part").write_text("x")
        if len(made) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workshop.once("thing", ["recipe 1"], make)
    first = workshop.once("thing", ["recipe 1"], make)
    assert workshop.once("thing", ["recipe 1"], make) == first
    assert made == [first, first], "interrupted: it goes on in the same folder; made: it is not made again"
    assert workshop.once("thing", ["recipe 2"], make) != first


def test_a_step_that_fails_says_where_to_look(workshop: PeerCache, tmp_path: Path) -> None:
    log = tmp_path / "step.log"
    with pytest.raises(BenchmarkError) as failed:
        workshop.run("Cooking", python("print('no salt'); raise SystemExit(2)"), log=log)
    assert failed.value.message.startswith(f"Cooking: {Path(sys.executable).name} ended with 2. Its log is {log}:")
    assert failed.value.message.endswith("no salt")
    with pytest.raises(BenchmarkError, match="no-such-compiler is needed"):
        workshop.program("no-such-compiler", "a compiler")


def test_one_benchmark_at_a_time(workshop: PeerCache) -> None:
    other = PeerCache(workshop.folder, quiet(), jobs=1)
    with (
        workshop.locked(),
        pytest.raises(BenchmarkError, match="Another benchmark is using"),
        other.locked(),
    ):
        pytest.fail("two at once")
    with other.locked():
        pass


@pytest.mark.slow
def test_an_environment_has_what_is_wanted_and_not_what_is_unwanted(workshop: PeerCache, tmp_path: Path) -> None:
    """From wheels made here: no package index is asked."""
    import zipfile

    for name, needs in (("wanted", "Requires-Dist: unwanted\n"), ("unwanted", "")):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
    packages = [str(tmp_path / f"{name}-1.0-py3-none-any.whl") for name in ("wanted", "unwanted")]
    interpreter = workshop.environment("env", packages, unwanted=["unwanted"])
    tried = [
        subprocess.run([interpreter, "-c", f"import {name}"], check=False).returncode for name in ("wanted", "unwanted")
    ]
    assert tried == [0, 1]
    began = time.monotonic()
    assert workshop.environment("env", packages, unwanted=["unwanted"]) == interpreter
    assert time.monotonic() - began < 1
