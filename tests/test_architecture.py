"""The architecture as drawn: who imports whom, who stays light, and that the wheel holds every package.

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
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("adapters", "clients", "server", "training")
MAY_IMPORT = {
    "adapters": {"adapters"},
    "clients": {"clients"},
    "server": {"server", "adapters"},
    "training": {"training", "adapters", "clients"},
}
"""Between the four packages at the top."""

ORDER = {
    "adapters": (
        "errors, collector, parent_death < names < storage, prompts < base, access < webhooks, peft_format"
        " < registry < feedback < experiments < learning < batches < backup, upload"
    ),
    "server": (
        "config, processes, bodies, observability, engine < openai, transport < anthropic < generation, background"
        " < http < litserver < app"
    ),
    "server/engine": (
        "request, config, kv, lora < logits_processors < grammars < sequence < fair_queue < batch, scheduler, proposer"
        ", pooler < sampler, model < backends, runner < backend_selector, engine < loading"
    ),
    "training": "data < config < model < methods < evaluation, run < worker, cli",
    "training/data": (
        "row < read, clean, splits, tokens < report < policy < mix, bad_rows, kept, spool < pipeline < store"
    ),
    "clients": "errors, types < http < endpoints < client, async_client < cli < demo",
    "benchmarks": (
        "harness < load < systems < serving, engine, learning, experiments, gates, fleet < year, cli < __main__"
    ),
}
"""Inside a package: each of its members may import those that stand before it, and neither its neighbours between two
commas nor what comes after. Imports for type checkers alone count as well."""

MAX_FILES = 15
"""Python files that lie flat in one folder, so that a newcomer finds the one by reading the list."""

TORCH = {
    "adapters/base": "in functions",
    "server/engine": "anywhere",
    "training/model": "anywhere",
    "training/methods": "anywhere",
    "training/run": "anywhere",
}
"""Which folders may import the heavy libraries. What must stay light all the same is in LIGHT_MODULES."""

HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets"}
"""What takes seconds to import, and gigabytes of memory where it is used: never in a process that only talks HTTP."""

LIGHT_MODULES = (
    *("graftwork", "graftwork.__main__"),
    *(
        f"graftwork.adapters.{name}"
        for name in (
            "registry",
            "registry.artifacts",
            "peft_format.folder",
            "prompts.prompts",
            "access.keys",
            "base",
            "learning.jobs",
            "experiments.store",
        )
    ),
    *(
        f"graftwork.server.{name}"
        for name in ("http.routes", "openai.requests.chat", "http.auth", "generation.service", "app", "config")
    ),
    *(
        f"graftwork.server.engine.{name}"
        for name in ("scheduler", "request", "kv.prefix_cache", "lora.adapter_cache", "grammars.trial")
    ),
    *("graftwork.training.methods.rows", "graftwork.training.data.pipeline", "graftwork.training.worker.worker"),
    *("graftwork.clients", "graftwork.clients.cli"),
)


@dataclass(frozen=True, kw_only=True)
class Import:
    file: Path
    line: int
    module: str
    in_function: bool
    for_types: bool
    """Stands below ``if TYPE_CHECKING``."""

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def package(self) -> str | None:
        """Which of the four packages is imported, if one is."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "graftwork" and len(parts) > 1 and parts[1] in PACKAGES else None

    def __str__(self) -> str:
        return f"{self.file.relative_to(CHECKOUT)}:{self.line} imports {self.module}"


def sources(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in sorted((CHECKOUT / folder).rglob("*.py"))]
    assert files
    return files


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, wherever it stands."""

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                # What is imported may be a module itself: `from graftwork import server`.
                source = "." * child.level + (child.module or "")
                names = [f"{source}.{alias.name}" for alias in child.names]
            else:
                inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                is_guard = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, inside, for_types or is_guard)
                continue
            for name in names:
                yield Import(file=file, line=child.lineno, module=name, in_function=in_function, for_types=for_types)

    yield from walk(ast.parse(file.read_text(encoding="utf-8"), str(file)), False, False)


def imports_of(*folders: str, for_types: bool = False) -> list[Import]:
    """Those that run; with ``for_types`` also those for type checkers alone."""
    return [found for file in sources(*folders) for found in imports(file) if for_types or not found.for_types]


def dotted(path: Path) -> str:
    """The module's name of a file: ``graftwork.adapters.names``, ``benchmarks.cli``."""
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name if parts[0] == "benchmarks" else f"graftwork.{name}"


# --- who imports whom -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_where_the_arrows_point(package: str) -> None:
    allowed = MAY_IMPORT[package]
    wrong = [found for found in imports_of(package) if found.package is not None and found.package not in allowed]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("package", ORDER)
def test_inside_a_package_nothing_imports_what_stands_after_it(package: str) -> None:
    level = {
        member.strip(): number
        for number, members in enumerate(ORDER[package].split("<"))
        for member in members.split(",")
    }
    present = {path.stem for path in (CHECKOUT / package).iterdir() if path.suffix == ".py" or is_package(path)}
    assert present - {"__init__"} <= set(level), "every member has its place in the order"
    assert set(level) <= present
    prefix = package.replace("/", ".") + "."
    prefix = prefix if package == "benchmarks" else f"graftwork.{prefix}"
    wrong = []
    for found in imports_of(package, for_types=True):
        member = found.file.relative_to(CHECKOUT / package).parts[0].removesuffix(".py")
        if member == "__init__" or not found.module.startswith(prefix):
            continue
        target = found.module.removeprefix(prefix).partition(".")[0]
        if target in level and target != member and level[target] >= level[member]:
            wrong.append(found)
    assert not wrong, "\n".join(map(str, wrong))


def is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def test_no_modules_import_one_another_in_a_circle() -> None:
    files = {dotted(path): path for path in sources(*PACKAGES, "benchmarks")}
    arrows: dict[str, set[str]] = {}
    for module, path in files.items():
        targets = set()
        for found in imports(path):
            for target in (found.module, found.module.rpartition(".")[0]):
                if target in files:
                    targets.add(target)
                    break
        arrows[module] = targets - {module}
    sorter = TopologicalSorter(arrows)
    sorter.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_no_folder_is_a_heap(package: str) -> None:
    folders = [CHECKOUT / package, *(path for path in (CHECKOUT / package).rglob("*") if path.is_dir())]
    flat = {folder.relative_to(CHECKOUT).as_posix(): len(list(folder.glob("*.py"))) for folder in folders}
    heaps = {folder: count for folder, count in flat.items() if count > MAX_FILES}
    assert not heaps


def test_packages_do_without_the_benchmarks() -> None:
    wrong = [
        found for found in imports_of(*PACKAGES) if found.module.startswith(("benchmarks", "graftwork.benchmarks"))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_packages_import_by_full_names() -> None:
    wrong = [found for found in imports_of(*PACKAGES, "benchmarks") if found.module.startswith(".")]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_command_line_is_reached_from_the_composition_root_alone() -> None:
    wrong = [found for found in imports_of(*PACKAGES) if found.module.startswith("graftwork.__main__")]
    assert not wrong, "\n".join(map(str, wrong))


def test_bare_names_of_packages_belong_to_others() -> None:
    folders = [
        *PACKAGES,
        *("tests", "benchmarks"),
        *(folder for folder in ("examples",) if any((CHECKOUT / folder).rglob("*.py"))),
    ]
    wrong = [found for found in imports_of(*folders) if found.top in PACKAGES]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_engine_imports_no_web_library_and_nothing_else_of_the_server() -> None:
    web = {"litserve", "fastapi", "starlette", "uvicorn", "httpx"}
    wrong = [
        found
        for found in imports_of("server/engine", for_types=True)
        if found.top in web or (found.package == "server" and not found.module.startswith("graftwork.server.engine"))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_what_asks_the_engine_imports_its_requests_alone() -> None:
    wrong = [
        found
        for found in imports_of("server/openai", "server/generation", "server/http", for_types=True)
        if found.module.startswith("graftwork.server.engine")
        and not found.module.startswith("graftwork.server.engine.request.")
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_litserve_is_known_in_three_places() -> None:
    places = {found.file.relative_to(CHECKOUT).as_posix() for found in imports_of("server") if found.top == "litserve"}
    assert places <= {"server/litserver.py", "server/transport/seam.py", "server/transport/worker.py"}


def test_heavy_libraries_are_imported_in_few_places() -> None:
    def allowed(found: Import) -> bool:
        place = found.file.relative_to(CHECKOUT).as_posix()
        where = next((where for folder, where in TORCH.items() if place.startswith(f"{folder}/")), "nowhere")
        return where == "anywhere" or (where == "in functions" and found.in_function)

    wrong = [found for found in imports_of(*PACKAGES) if found.top in HEAVY and not allowed(found)]
    assert not wrong, "\n".join(map(str, wrong))
    trl = {found.file.parent.name for found in imports_of("training") if found.top == "trl"}
    assert trl <= {"methods", "run", "model"}


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


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_linked_into_graftwork(package: str) -> None:
    link = CHECKOUT / "src" / "graftwork" / package
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{package}"


def test_every_module_says_what_it_does() -> None:
    silent = [
        path.relative_to(CHECKOUT).as_posix()
        for path in [*sources(*PACKAGES), *(CHECKOUT / "src" / "graftwork").glob("*.py")]
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, silent


def test_ruff_sees_every_file_once() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files", str(CHECKOUT)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    seen = [Path(line).resolve() for line in shown if line.endswith(".py")]
    assert len(seen) == len(set(seen))
    assert set(sources(*PACKAGES, "tests")) <= set(seen)


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout to build wheels in, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("checkout") / "copy"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "examples")
    shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=skip)
    return copy


def built(project: Path, out: Path) -> Path:
    """The wheel of a project."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(copy, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unzipped(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unzipped")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_file_of_every_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    package = CHECKOUT / "src" / "graftwork"
    expected = {f"graftwork/{path.name}" for path in package.iterdir() if path.is_file()}
    for folder in PACKAGES:
        files = [path for path in (CHECKOUT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        files = [path for path in files if path.name != "pyproject.toml"]  # of the client's own wheel
        expected |= {f"graftwork/{path.relative_to(CHECKOUT).as_posix()}" for path in files}
    assert packed == expected
    assert "graftwork/py.typed" in packed
    assert any(re.fullmatch(r"graftwork/adapters/storage/migrations/versions/0001\w+\.py", name) for name in packed)


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


def test_the_client_is_a_wheel_of_its_own_that_needs_no_server(copy: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built(copy / "clients", tmp_path / "wheel")) as archive:
        archive.extractall(tmp_path / "installed")
    (metadata,) = (tmp_path / "installed").glob("graftwork_client-*.dist-info/METADATA")
    required = {
        line.split(": ")[1].split("<")[0] for line in metadata.read_text().splitlines() if "Requires-Dist" in line
    }
    assert required == {"httpx", "rich", "typer"}
    assert (tmp_path / "installed/graftwork/py.typed").is_file()
    script = (
        "import sys, graftwork.__main__ as command\n"
        "from graftwork import AsyncClient, Client\n"
        f"assert not sys.modules.keys() & {HEAVY | {'fastapi', 'sqlalchemy', 'numpy'}}\n"
        "command.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert run("--version").stdout.startswith("graftwork ")
    assert "adapters" in run("--help").stdout
    for needs_more in (["serve", "--port", "1"], ["train"], ["demo", "--help"], ["data", "check"]):
        done = run(*needs_more)
        assert (done.returncode, "pip install graftwork" in done.stderr) == (2, True), done


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
    assert set(PACKAGES) | {"src", "pyproject.toml", "README.md"} <= sources_copied


def test_the_image_has_a_compiler_for_the_kernels() -> None:
    (install,) = [words for words in dockerfile() if words[:2] == ["RUN", "apt-get"]]
    assert "g++" in install
    assert '"g++"' in (CHECKOUT / "server/engine/backends/cpu/library.py").read_text(), "which is looked for"


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
