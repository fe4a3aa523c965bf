"""The house stands as drawn: who imports whom, who stays light, and that the wheel holds every room.

::

    clients ──HTTP──▶ server ──▶ adapters ◀── training
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
ROOMS = ("adapters", "clients", "server", "training")
MAY_IMPORT = {
    "adapters": {"adapters"},
    "clients": {"clients"},
    "server": {"server", "adapters"},
    "training": {"training", "adapters", "clients"},
}
TRL = {f"training/{name}.py" for name in ("trainer", "objectives", "learners", "rollouts", "head")}
TRAINERS = TRL | {
    f"training/{name}.py"
    for name in (
        "anchor",
        "augment",
        "difficulty",
        "estimate",
        "grafts",
        "order",
        "packing",
        "predictions",
        "whole_model",
    )
}
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets"}
"""What takes seconds to import, and gigabytes of memory where it is used: never in a process that only talks HTTP."""

LIGHT_MODULES = (
    *("graftwork", "graftwork.__main__"),
    *(f"graftwork.adapters.{name}" for name in ("registry", "artifacts", "peft_format", "prompts", "keys", "base")),
    *(f"graftwork.server.{name}" for name in ("routes", "schemas", "auth", "gateway", "app", "config")),
    *("graftwork.server.engine.scheduler", "graftwork.server.engine.request"),
    *("graftwork.clients", "graftwork.clients.cli"),
)


@dataclass(frozen=True, kw_only=True)
class Import:
    file: Path
    line: int
    module: str
    in_function: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def room(self) -> str | None:
        """Which of the four rooms is imported, if one is."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "graftwork" and len(parts) > 1 and parts[1] in ROOMS else None

    def __str__(self) -> str:
        return f"{self.file.relative_to(CHECKOUT)}:{self.line} imports {self.module}"


def sources(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in sorted((CHECKOUT / folder).rglob("*.py"))]
    assert files
    return files


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file that runs, wherever it stands: those for type checkers alone do not count."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                # What is imported may be a module itself: `from graftwork import server`.
                source = "." * child.level + (child.module or "")
                names = [f"{source}.{alias.name}" for alias in child.names]
            else:
                inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside)
                continue
            for name in names:
                yield Import(file=file, line=child.lineno, module=name, in_function=in_function)

    yield from walk(ast.parse(file.read_text(encoding="utf-8"), str(file)), False)


def imports_of(*folders: str) -> list[Import]:
    return [found for file in sources(*folders) for found in imports(file)]


# --- who imports whom -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_where_the_arrows_point(room: str) -> None:
    wrong = [found for found in imports_of(room) if found.room is not None and found.room not in MAY_IMPORT[room]]
    assert not wrong, "\n".join(map(str, wrong))


def test_rooms_do_without_the_benchmarks() -> None:
    wrong = [found for found in imports_of(*ROOMS) if found.module.startswith(("benchmarks", "benchmarks"))]
    assert not wrong, "\n".join(map(str, wrong))


def test_rooms_import_by_full_names() -> None:
    wrong = [found for found in imports_of(*ROOMS) if found.module.startswith(".")]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_command_line_is_reached_from_the_composition_root_alone() -> None:
    wrong = [found for found in imports_of(*ROOMS) if found.module.startswith("graftwork.__main__")]
    assert not wrong, "\n".join(map(str, wrong))


def test_bare_names_of_rooms_are_other_packages() -> None:
    folders = [
        *ROOMS,
        "tests",
        *(folder for folder in ("examples", "benchmarks") if any((CHECKOUT / folder).rglob("*.py"))),
    ]
    wrong = [found for found in imports_of(*folders) if found.top in ROOMS]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_engine_knows_nothing_of_http_or_of_the_gateway() -> None:
    web = {"litserve", "fastapi", "starlette", "uvicorn", "httpx"}
    wrong = [
        found
        for found in imports_of("server/engine")
        if found.top in web or (found.room == "server" and not found.module.startswith("graftwork.server.engine"))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_heavy_libraries_are_imported_in_few_places() -> None:
    def allowed(found: Import) -> bool:
        place = found.file.relative_to(CHECKOUT).as_posix()
        if found.top == "trl":
            return place in TRL
        if place.startswith("adapters/base/"):
            return found.in_function
        return place in TRAINERS or place.startswith("server/engine/")

    wrong = [found for found in imports_of(*ROOMS) if found.top in HEAVY and not allowed(found)]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_scheduler_is_plain_python() -> None:
    for name in ("scheduler", "request"):
        found = [found.top for found in imports(CHECKOUT / "server" / "engine" / f"{name}.py")]
        assert not {*HEAVY, "numpy"} & set(found)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_what_only_talks_http_stays_light(module: str) -> None:
    """In a fresh process: whatever the module imports in turn counts too."""
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"{module} brings in {done.stdout}"


# --- four folders, one package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [*ROOMS, "benchmarks"])
def test_rooms_are_linked_into_the_package(room: str) -> None:
    link = CHECKOUT / "src" / "graftwork" / room
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{room}"


def test_every_module_says_what_it_does() -> None:
    silent = [
        path.relative_to(CHECKOUT).as_posix()
        for path in [*sources(*ROOMS), *(CHECKOUT / "src" / "graftwork").glob("*.py")]
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, silent


def test_ruff_sees_every_file_once() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files", str(CHECKOUT)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    seen = [Path(line).resolve() for line in shown if line.endswith(".py")]
    assert len(seen) == len(set(seen))
    assert set(sources(*ROOMS, "tests")) <= set(seen)


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy so that the checkout stays clean."""
    copy, out = tmp_path_factory.mktemp("checkout") / "copy", tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "examples")
    shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unzipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unzipped")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_every_room(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    package = CHECKOUT / "src" / "graftwork"
    expected = {f"graftwork/{path.name}" for path in package.iterdir() if path.is_file()}
    for room in (*ROOMS, "benchmarks"):
        files = [path for path in (CHECKOUT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {f"graftwork/{path.relative_to(CHECKOUT).as_posix()}" for path in files}
    assert packed == expected
    assert "graftwork/py.typed" in packed
    assert any(re.fullmatch(r"graftwork/adapters/migrations/versions/0001\w+\.py", name) for name in packed)


def test_the_wheel_works_without_the_checkout(unzipped: Path, tmp_path: Path) -> None:
    script = (
        f"import {', '.join(LIGHT_MODULES)}\n"
        "from pathlib import Path\n"
        "from graftwork.adapters.storage.database import Database\n"
        "print(graftwork.__file__, graftwork.__version__)"
    )
    environment = os.environ | {"PYTHONPATH": str(unzipped)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, version = done.stdout.split()
    assert Path(file) == unzipped / "graftwork" / "__init__.py"
    assert (unzipped / f"graftwork-{version}.dist-info").is_dir()


def test_the_wheel_brings_the_command(unzipped: Path) -> None:
    (entry_points,) = unzipped.glob("*.dist-info/entry_points.txt")
    assert "graftwork = graftwork.__main__:main" in entry_points.read_text()
    (metadata,) = unzipped.glob("*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in metadata.read_text()


def test_the_version_is_said_once() -> None:
    import graftwork

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project.get("version", graftwork.__version__) == graftwork.__version__


# --- the image --------------------------------------------------------------------------------------------------------


def dockerfile() -> list[list[str]]:
    """The instructions, each split into words, with continued lines joined."""
    text = (CHECKOUT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_copies_what_exists_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources_copied = {source for word, *words in dockerfile() if word == "COPY" for source in words[:-1]}
    assert sources_copied == sent
    missing = [source for source in sorted(sources_copied) if not (CHECKOUT / source).exists()]
    assert not missing
    assert set(ROOMS) | {"src", "pyproject.toml", "README.md"} <= sources_copied


def test_the_image_has_a_compiler_for_the_kernels() -> None:
    (install,) = [words for words in dockerfile() if words[:2] == ["RUN", "apt-get"]]
    assert "g++" in install
    assert '"g++"' in (CHECKOUT / "server/engine/native/library.py").read_text(), "which is looked for"


def test_the_image_starts_the_command_as_a_user_of_its_own() -> None:
    instructions = {words[0]: " ".join(words[1:]) for words in dockerfile()}
    assert instructions["ENTRYPOINT"] == '["graftwork"]'
    assert instructions["CMD"] == '["serve", "--host", "0.0.0.0", "--home", "/data"]'
    assert instructions["USER"] == "graftwork"
    assert instructions["VOLUME"] == "/data"
    assert instructions["EXPOSE"] == "8000"
    assert instructions["STOPSIGNAL"] == "SIGTERM"
    assert "/health" in instructions["HEALTHCHECK"]
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["graftwork"].split(":")
    main = CHECKOUT / "src" / Path(*module.split(".")).with_suffix(".py")
    assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.parse(main.read_text()).body)
