"""What a stranger runs first: the set-up picks the right build of torch, is done once, and survives interruption.

A stand-in for python records what the scripts ask of pip, so nothing is installed here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parent.parent

FAKE_PYTHON = r"""#!/bin/sh
case "$1 $2 $3" in
  "-c "*) exit "${FAKE_TOO_OLD:-0}" ;;
  "--version "*) echo "Python 3.9.1" ;;
  "-m venv --clear")
    mkdir -p "$4/bin"
    for name in python graftwork; do cp "$0" "$4/bin/$name"; done ;;
  "-m pip --version") ;;
  "-m pip install")
    echo "$*" >> "$FAKE_LOG"
    sleep "${FAKE_SLEEP:-0}"
    case "$* $FAKE_PIP_FAILS" in
      *"+cpu"*" no-cpu-build" ) case "$*" in *"!="*) ;; *)
        echo "ERROR: No matching distribution found for torch==2.13.0+cpu" >&2; exit 1 ;; esac ;;
      *"+cpu"*" offline" ) echo "ERROR: the network is away" >&2; exit 1 ;;
      *--editable*" editable" ) echo "ERROR: disk full" >&2; exit 1 ;;
    esac ;;
  *) echo "ran: $(basename "$0") $*" ;;
esac
"""


class Checkout:
    """A copy of what the scripts read, and a python that only writes down what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "pip.log"
        shutil.copytree(CHECKOUT / "scripts", folder / "scripts")
        shutil.copytree(CHECKOUT / "requirements", folder / "requirements")
        shutil.copy(CHECKOUT / "pyproject.toml", folder)
        fake = folder / "fake-python"
        fake.write_text(FAKE_PYTHON)
        fake.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRAFTWORK_", "FAKE_"))}
        self.environment = kept | {"GRAFTWORK_PYTHON": str(fake), "FAKE_LOG": str(self.log)}

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / "scripts" / script, *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def installed(self) -> list[str]:
        """What pip was asked for, a call each, without the options that every call has."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        common = "-m pip install --disable-pip-version-check --constraint requirements/constraints.txt "
        assert all(line.startswith(common) for line in lines)
        return [line.removeprefix(common) for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("level", "environment", "asked"),
    [
        ("serve", {"GRAFTWORK_TORCH": "cpu"}, ["torch==2.13.0+cpu", "--editable .[postgresql,s3]"]),
        ("test", {"GRAFTWORK_TORCH": "cpu"}, ["torch==2.13.0+cpu", "--editable .[postgresql,s3,test]"]),
        ("serve", {"GRAFTWORK_TORCH": "cuda"}, ["torch==2.13.0,!=2.13.0+cpu", "--editable .[postgresql,s3,cuda]"]),
        ("test", {"GRAFTWORK_TORCH": "cuda"}, ["torch==2.13.0,!=2.13.0+cpu", "--editable .[postgresql,s3,test,cuda]"]),
        (
            "serve",
            {"GRAFTWORK_TORCH": "cpu", "GRAFTWORK_TORCH_INDEX": "file:///wheels"},
            ["--extra-index-url file:///wheels torch==2.13.0+cpu", "--editable .[postgresql,s3]"],
        ),
    ],
)
def test_the_build_of_torch_fits_the_machine(
    checkout: Checkout, level: str, environment: dict[str, str], asked: list[str]
) -> None:
    assert checkout.run("setup", level, **environment).returncode == 0
    assert checkout.installed() == asked


def test_without_a_cpu_build_the_default_one_comes_with_a_warning(checkout: Checkout) -> None:
    done = checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu", FAKE_PIP_FAILS="no-cpu-build")
    assert done.returncode == 0
    assert checkout.installed() == ["torch==2.13.0+cpu", "torch==2.13.0", "--editable .[postgresql,s3]"]
    assert "CUDA" in done.stderr
    assert "GRAFTWORK_TORCH_INDEX" in done.stderr


def test_another_failure_does_not_fetch_the_cuda_build(checkout: Checkout) -> None:
    done = checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu", FAKE_PIP_FAILS="offline")
    assert done.returncode == 1
    assert checkout.installed() == ["torch==2.13.0+cpu"]
    assert "the network is away" in done.stderr
    assert "Run this again" in done.stderr


def test_a_second_set_up_does_nothing(checkout: Checkout) -> None:
    checkout.run("setup", "test", GRAFTWORK_TORCH="cpu")
    for level in ("test", "serve"):
        done = checkout.run("setup", level, GRAFTWORK_TORCH="cpu")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(checkout.installed()) == 2


def test_what_serves_is_extended_for_tests(checkout: Checkout) -> None:
    checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu")
    checkout.run("setup", "test", GRAFTWORK_TORCH="cpu")
    assert checkout.installed()[-1] == "--editable .[postgresql,s3,test]"


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/constraints.txt"])
def test_new_requirements_are_installed(checkout: Checkout, changed: str) -> None:
    checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu")
    with (checkout.folder / changed).open("a") as file:
        file.write("# changed\n")
    checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu")
    assert len(checkout.installed()) == 4


def test_a_set_up_that_failed_goes_on(checkout: Checkout) -> None:
    assert checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu", FAKE_PIP_FAILS="editable").returncode == 1
    assert checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu").returncode == 0
    assert checkout.installed()[-1] == "--editable .[postgresql,s3]"


def test_a_set_up_that_was_killed_goes_on(checkout: Checkout) -> None:
    killed = checkout.start("setup", "serve", GRAFTWORK_TORCH="cpu", FAKE_SLEEP="1")
    deadline = time.monotonic() + 30
    while not checkout.installed() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=60)
    assert checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu").returncode == 0
    assert checkout.installed()[-2:] == ["torch==2.13.0+cpu", "--editable .[postgresql,s3]"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="util-linux's flock is not here")
def test_two_set_ups_at_once_are_one(checkout: Checkout) -> None:
    both = [checkout.start("setup", "serve", GRAFTWORK_TORCH="cpu", FAKE_SLEEP="2") for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(checkout.installed()) == 2
    assert any("Waiting for another set-up" in text for text in said)


def test_an_old_python_is_told_what_is_needed(checkout: Checkout) -> None:
    done = checkout.run("setup", "serve", GRAFTWORK_TORCH="cpu", FAKE_TOO_OLD="1")
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr
    assert not checkout.installed()


def test_wrong_words_are_refused(checkout: Checkout) -> None:
    assert "usage" in checkout.run("setup", "everything").stderr
    assert "must be cpu or cuda" in checkout.run("setup", "serve", GRAFTWORK_TORCH="tpu").stderr


def test_serve_passes_its_arguments_on(checkout: Checkout) -> None:
    done = checkout.run("serve", "--port", "9", "--home", "a b", GRAFTWORK_TORCH="cpu")
    assert done.stdout.splitlines()[-1] == "ran: graftwork serve --port 9 --home a b"


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        ([], "-m not slow and not soak and not bench --numprocesses 2 --dist loadfile --no-loadscope-reorder"),
        (["--full"], "-m not soak and not bench --numprocesses 2 --dist loadfile --no-loadscope-reorder"),
        (
            ["--rerun-failed"],
            "-m not slow and not soak and not bench -p tests.reruns --numprocesses 2 --dist loadfile"
            " --no-loadscope-reorder",
        ),
        (["--full", "-x"], "-m not soak and not bench -x"),
        (["--soak"], "-m soak"),
        (["--gpu", "tests/server"], "-m gpu tests/server"),
        (["--bench"], "-m bench"),
        (["tests/adapters", "-k", "a or b"], "-m not slow and not soak and not bench tests/adapters -k a or b"),
    ],
)
def test_test_selects(checkout: Checkout, arguments: list[str], ran: str) -> None:
    done = checkout.run("test", *arguments, GRAFTWORK_TORCH="cpu")
    assert done.stdout.splitlines()[-1] == f"ran: python -m pytest -q {ran}"


def test_the_pinned_torch_is_one_that_pyproject_allows() -> None:
    script = (CHECKOUT / "scripts" / "setup").read_text()
    pinned = re.search(r"^torch=(\S+)$", script, re.MULTILINE)
    assert pinned
    dependencies = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    torch = next(requirement for requirement in map(Requirement, dependencies) if requirement.name == "torch")
    assert torch.specifier.contains(pinned[1])


def test_every_constraint_is_one_that_pyproject_allows() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = (CHECKOUT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {pin.name.lower().replace("_", "-"): str(pin.specifier).removeprefix("==") for pin in pins}
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name not in ("torch", "setuptools"):
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/serve", "scripts/test", ".ci/run"])
def test_scripts_can_be_run_and_stop_at_the_first_error(script: str) -> None:
    path = CHECKOUT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


# --- a test that fails once -------------------------------------------------------------------------------------------

FAKE_SUITE = """
from pathlib import Path

import pytest

COUNT = Path(__file__).with_suffix(".count")

def test_that_passes():
    pass

@pytest.mark.slow
def test_that_is_not_selected():
    raise AssertionError

@pytest.mark.parametrize("number", range({num_flaky}))
def test_once(number):
    count = COUNT.with_suffix(f".{{number}}")
    if not count.exists():
        count.touch()
        raise ValueError("not the first time")

@pytest.fixture
def broken_teardown():
    yield
    if not COUNT.exists():
        COUNT.touch()
        raise ValueError("left a mess")

def test_teardown({fixture}):
    pass

def test_broken():
    assert {works}
"""
PYPROJECT = """
[tool.pytest.ini_options]
testpaths = ["tests"]
markers = ["slow: not these", "soak: not these", "bench: not these"]
"""


@pytest.mark.parametrize(
    ("suite", "listed", "code", "summary", "says"),
    [
        ({}, [], 0, "3 passed", []),
        (
            {"num_flaky": 1, "fixture": "broken_teardown"},
            ["`tests/test_fake.py::test_once[7]`"],
            0,
            "2 passed, 2 flaky",
            [
                "- `tests/test_fake.py::test_once[0]`, TODAY: ValueError: not the first time",
                "- `tests/test_fake.py::test_teardown`, TODAY: ValueError: left a mess",
            ],
        ),
        (
            {"num_flaky": 1},
            ["`tests/test_fake.py::test_once[0]`"],
            1,
            "1 failed, 3 passed",
            ["tests/test_fake.py::test_once[0] stands in tests/flaky.md already: it has to be mended."],
        ),
        ({"num_flaky": 3}, [], 1, "3 failed, 3 passed", ["3 tests failed, more than 2: none runs again."]),
        (
            {"num_flaky": 1, "works": False},
            [],
            1,
            "2 failed, 2 passed",
            ["tests/test_fake.py::test_broken failed twice."],
        ),
    ],
    ids=["none fails", "flaky", "listed", "too many", "broken"],
)
def test_what_fails_runs_once_more(
    tmp_path: Path, suite: dict[str, Any], listed: list[str], code: int, summary: str, says: list[str]
) -> None:
    """`.ci/run` with a suite of its own: its exit code, and pytest's line at the end."""
    for script in ("scripts/test", ".ci/run", "tests/__init__.py", "tests/reruns.py"):
        (tmp_path / script).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / script, tmp_path / script)
    commands = dict.fromkeys(("scripts/setup", ".venv/bin/ruff", ".venv/bin/mypy"), "#!/bin/sh\n")
    commands[".venv/bin/python"] = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "tests" / "flaky.md").write_text("".join(f"- {test}, a year ago\n" for test in listed))
    (tmp_path / "tests" / "test_fake.py").write_text(
        FAKE_SUITE.format(**{"num_flaky": 0, "fixture": "", "works": True, **suite})
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert re.fullmatch(rf"{summary}(, \d+ skipped)? in [\d.]+s", done.stdout.splitlines()[-1]), done.stdout
    lines = re.sub(r"\b\d{4}-\d\d-\d\d\b", "TODAY", done.stdout).splitlines()
    assert [line for line in lines if line.startswith("- ") or line in says] == says
    assert ("flaky" in done.stdout) == bool(says)
