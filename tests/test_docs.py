"""The documents are true: what they show is run, what they name exists, and what exists is named.

``bash`` and ``python`` blocks run in the order they stand in, each document in a folder of its own, on one real server.
What cannot be run here is a stand-in that writes down how it was called, and the call is looked at afterwards: the two
scripts that would set everything up, ``graftwork serve``, ``python -m benchmarks``, ``docker``. ``graftwork train``
pushes an adapter that was
there already; a slow test trains. Blocks that make keys speak to a server without an engine: the first key locks it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import uvicorn

from benchmarks.cli import bench
from graftwork.__main__ import app
from graftwork.adapters.peft_format import config
from graftwork.clients.client import Client
from graftwork.server.observability.metrics import Metrics
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.server_process import Server, eventually, free_port
from tests.server.documented import document
from tests.server.fakes import make_world

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"),
    *sorted(path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").glob("*.md")),
)
PACKAGES = ("adapters", "server", "training", "clients")
LANGUAGES = {"bash": "bash", "sh": "bash", "python": "python", "json": "json", "text": "text"}
FLAGS_OF_OTHERS = {
    *("--full", "--soak", "--gpu", "--bench"),  # scripts/test
    "--hypothesis-profile",  # pytest
    *("--build-arg", "--gpus"),  # docker
    *("--strict", "--wheel", "--no-isolation"),  # mypy, build
    *("--enable-lora", "--lora-modules", "--max-lora-rank", "--max-loras", "--max-cpu-loras"),  # vLLM
    *("--max-num-seqs", "--quantization", "--shutdown-timeout", "--enable-scale-out"),  # vLLM
    *("--enable-prompt-tokens-details", "--structured-outputs-config"),  # vLLM
    "--model-id",  # LoRAX
    *("--only", "--check", "--package-lock-only"),  # tests.conformance, npm
}
SERVER_URL, SERVER_FOLDER = "http://127.0.0.1:8000", "/srv/adapters"
FREE_FORM = {"aliases", "weights", "metadata", "peft_config", "sampling", "top_logprobs"}
"""Objects whose fields are the user's own, in the answers of the server."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. ``then`` is the block that follows it, if that stands right below."""

    place: str
    language: str
    text: str
    then: Block | None = None


def read(document: str) -> str:
    return (CHECKOUT / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[Block]:
    """All blocks, in order. Raises for a fence that is open at the end, or of an unknown language."""
    found: list[Block] = []
    language, lines, began, last_ended = None, [], 0, -9
    following: list[int] = []
    for number, line in enumerate(read(document).splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, lines, began = line[3:], [], number
        else:
            place = f"{document}:{began}"
            assert line == "```", f"{place}: the block is not closed before line {number}"
            assert language in LANGUAGES, f"{place}: {language!r} is none of {', '.join(LANGUAGES)}"
            found.append(Block(place=place, language=LANGUAGES[language], text="\n".join(lines)))
            if began - last_ended == 2:
                following.append(len(found) - 1)
            language, last_ended = None, number
    assert language is None, f"{document}:{began}: the block is not closed"
    for index in following:
        found[index - 1] = Block(**{**vars(found[index - 1]), "then": found[index]})
    return found


def prose(document: str) -> str:
    """All of a document but its blocks of text and JSON."""
    text = read(document)
    for block in blocks(document):
        if block.language in ("text", "json"):
            text = text.replace(block.text, "")
    return text


# --- what is run ------------------------------------------------------------------------------------------------------

RECORD = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n'; } >>"$DOCS_CALLS"
"""
GRAFTWORK = f"""{RECORD}
case "$1" in
  serve | bench) ;;
  train) exec {shlex.quote(sys.executable)} -m graftwork adapters push "$2" my-adapter ;;
  *) exec {shlex.quote(sys.executable)} -m graftwork "$@" ;;
esac
"""


PYTHON = f"""#!/bin/sh
case "$*" in "-m benchmarks "*) shift 2; exec benchmarks "$@" ;; esac
exec {shlex.quote(sys.executable)} "$@"
"""


@dataclass
class DocumentFolder:
    """Where one document's blocks run: a folder, a server, and whatever Python's blocks have defined so far."""

    folder: Path
    server: Server
    pushable: Path
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, block: Block) -> None:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "text":
            return
        elif "graftwork keys" in block.text or "/v1/keys" in block.text:
            with server_without_engine(self.folder) as url:
                self._run(block, url)
        else:
            self._run(block, self.server.url)

    def _run(self, block: Block, url: str) -> None:
        text = block.text.replace(SERVER_URL, url).replace(SERVER_FOLDER, str(self.pushable))
        if block.language == "python":
            exec(compile(text, block.place, "exec", dont_inherit=True), self.names)  # noqa: S102
        elif text.startswith("curl "):
            answer = curl(text, self.folder)
            if block.then is not None and block.then.language == "json":
                assert_same_shape(json.loads(block.then.text), answer.json(), block.then.place)
        else:
            self._run_bash(block, text, url)

    def _run_bash(self, block: Block, text: str, url: str) -> None:
        calls = self.folder / "calls"
        calls.write_bytes(b"")
        environment = os.environ | {"DOCS_CALLS": str(calls), "GRAFTWORK_URL": url}
        environment["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{block.place} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        for call in calls.read_bytes().decode().split("\0\n")[:-1]:
            program, *arguments = call.split("\0")
            CHECKS[program](arguments)


@pytest.fixture
def workspace(
    server: Server,
    small: SmallAdapters,
    pushable: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> DocumentFolder:
    for seed, name in enumerate(("my-adapter", "my-better-adapter"), 101):
        small.write(tmp_path / name, seed)
        shutil.copytree(tmp_path / name, pushable / name, dirs_exist_ok=True)
    for name in ("examples", "benchmarks", "LICENSE"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    stand_ins = {"bin/graftwork": GRAFTWORK, ".venv/bin/activate": "", "admin.key": "a-long-random-secret"}
    stand_ins["bin/python"] = PYTHON
    stand_ins |= dict.fromkeys(("bin/docker", "bin/benchmarks", "scripts/serve", "scripts/test", ".ci/run"), RECORD)
    for name, content in stand_ins.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GRAFTWORK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRAFTWORK_URL", server.url)
    monkeypatch.setenv("GRAFTWORK_HOME", str(server.home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return DocumentFolder(tmp_path, server, pushable)


@contextmanager
def server_without_engine(folder: Path) -> Iterator[str]:
    """The true routes and keys, without any key yet."""
    home = folder / f"keys-{free_port()}"
    home.mkdir()
    port = free_port()
    listening = uvicorn.Server(uvicorn.Config(make_world(home).app, port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: listening.started, 10, "the server without an engine listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        listening.should_exit = True
        thread.join(10)


def curl(command: str, folder: Path) -> httpx.Response:
    """Send what ``curl`` would. Anything but success, and any flag not known here, fails."""
    parser = argparse.ArgumentParser(prog="curl")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-X", dest="method")
    parser.add_argument("-d", dest="data")
    parser.add_argument("-F", dest="form", action="append", default=[])
    parser.add_argument("url")
    given = parser.parse_args(shlex.split(command.replace("\\\n", " "))[1:])
    parts: list[tuple[str, Any]] = []
    for field_, _, value in (part.partition("=") for part in given.form):
        path = folder / value[1:]
        parts.append((field_, (path.name, path.read_bytes()) if value.startswith("@") else (None, value)))
    method = given.method or ("POST" if given.data or parts else "GET")
    headers = {"content-type": "application/x-www-form-urlencoded"} if given.data else {}
    with httpx.Client(trust_env=False, timeout=300) as client:
        answer = client.request(method, given.url, content=given.data, files=parts or None, headers=headers)
    assert answer.is_success, f"{command}\n{answer.status_code} {answer.text}"
    return answer


def assert_same_shape(shown: Any, real: Any, place: str) -> None:
    """The same fields and kinds of values, down to the first item of each list. Null stands for any value."""
    if shown is None or real is None:
        return
    kinds = [int if type(value) is float else type(value) for value in (shown, real)]
    assert kinds[0] is kinds[1], f"{place}: shown is {shown!r}, the server says {real!r}"
    if isinstance(shown, dict):
        assert sorted(shown) == sorted(real), f"{place}: shown are {sorted(shown)}, the server has {sorted(real)}"
        for name in shown.keys() - FREE_FORM:
            assert_same_shape(shown[name], real[name], f"{place}: {name}")
    elif isinstance(shown, list) and shown and real:
        assert_same_shape(shown[0], real[0], f"{place}[0]")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs(workspace: DocumentFolder, document: str) -> None:
    for block in blocks(document):
        workspace.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "examples/README.md"])
def test_training_as_shown(workspace: DocumentFolder, document: str) -> None:
    """The commands as they stand, but for how long they run and where the result lies."""
    trains = re.compile(r"graftwork train \S+ .*--data ")
    shown = [line for line in read(document).splitlines() if trains.match(line)]
    assert shown
    for number, line in enumerate(shown):
        _, train, name, *others = shlex.split(line, comments=True)
        short = ["--epochs", "0.05", "--max-length", "128", "--out", f"trained-{number}"]
        command = [sys.executable, "-m", "graftwork", train, f"{name}-{number}-{len(document)}", *others, *short]
        subprocess.run(command, check=True, timeout=1200)
    with Client(workspace.server.url) as client:
        version = client.adapters.get(f"{name}-{number}-{len(document)}").versions[0]
        assert version.verified
        assert version.metadata["rows"]["train"] > 200


# --- how what is not run was called -----------------------------------------------------------------------------------


def check_graftwork(arguments: list[str]) -> None:
    """Parsed as the command line would, every option and value checked, nothing run."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    given = command.make_context("graftwork", rest).params
    if command.name == "train":
        assert (CHECKOUT / given["data"]).is_file() or "@" in str(given["data"])


def check_script(name: str) -> Callable[[list[str]], None]:
    def check(arguments: list[str]) -> None:
        path = CHECKOUT / name
        assert os.access(path, os.X_OK)
        subprocess.run(["bash", "-n", path], check=True)
        if name == "scripts/serve":
            check_graftwork(["serve", *arguments])
            return
        for argument in arguments:
            is_known = f"  scripts/test {argument} " in path.read_text() or argument in ("-s", "-k")
            assert is_known or (CHECKOUT / argument).exists(), f"{name} {argument}"

    return check


def check_docker(arguments: list[str]) -> None:
    dockerfile, (action, *rest) = read("Dockerfile"), arguments
    parser = argparse.ArgumentParser(prog=f"docker {action}")
    if action == "build":
        parser.add_argument("-t")
        parser.add_argument("--build-arg", action="append", default=[])
        parser.add_argument("folder", choices=["."])
        for argument in parser.parse_args(rest).build_arg:
            assert f"\nARG {argument.partition('=')[0]}=" in dockerfile
        return
    assert action == "run"
    for flag in ("-p", "-v", "-e", "--gpus"):
        parser.add_argument(flag, default="")
    parser.add_argument("image")
    given = parser.parse_args(rest)
    assert f"\nEXPOSE {given.p.partition(':')[2]}\n" in dockerfile
    assert f"\nVOLUME {given.v.partition(':')[2]}\n" in dockerfile
    name, _, value = given.e.partition("=")
    assert name in environment_variables()
    assert len(value) >= 16


CHECKS = {
    "graftwork": check_graftwork,
    "docker": check_docker,
    "benchmarks": lambda arguments: benchmarks_command().make_context("benchmarks", arguments),
    "serve": check_script("scripts/serve"),
    "test": check_script("scripts/test"),
    "run": check_script(".ci/run"),
}

# --- what is named exists ---------------------------------------------------------------------------------------------


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the command line: (its words, it)."""
    command = command or typer.main.get_command(app)
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def benchmarks_command() -> Any:
    """``python -m benchmarks``, which comes with a checkout."""
    app = typer.Typer()
    app.command()(bench)
    return typer.main.get_command(app)


def environment_variables() -> set[str]:
    named = {name for _, command in commands() for p in command.params for name in [p.envvar] if isinstance(name, str)}
    sources = [path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")] + [
        CHECKOUT / "scripts" / "setup"
    ]
    return named | {name for path in sources for name in re.findall(r"GRAFTWORK_[A-Z_]+\b", path.read_text())}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_exists(document: str) -> None:
    there = [command for _, command in commands()] + [command for _, command in commands(benchmarks_command())]
    known = {option for command in there for p in command.params for option in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose(document)))
    assert named <= known | {"--help"} | FLAGS_OF_OTHERS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_environment_variable_exists(document: str) -> None:
    assert set(re.findall(r"\bGRAFTWORK_[A-Z_]+\b", read(document))) <= environment_variables()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_exists(document: str) -> None:
    known = {words for words, _ in commands()}
    for text in re.findall(r"`graftwork ([^`\n]+)`", prose(document)):
        words = tuple(word for word in text.split() if re.fullmatch(r"[a-z]+", word))
        assert any(words[: len(command)] == command for command in known - {()}), text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for target in re.findall(r"(?:\]\(|^\[[^]\n]+\]: )([^)\s]+)", prose(document), re.MULTILINE):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (CHECKOUT / document).parent / path if path else CHECKOUT / document
        assert found.exists(), f"{document}: {target}"
        assert not anchor or anchor in anchors(found), f"{document}: {target}"


def anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, letters, digits and hyphens, spaces become hyphens."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_no_machine(document: str) -> None:
    assert not re.findall(r"(?<![\w.~])/(?:work|tmp|root|home|Users)/", read(document))


@pytest.mark.parametrize("picture", sorted((CHECKOUT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_stand_alone(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    assert root.get("viewBox")
    for label in (f"{svg}title", f"{svg}desc"):
        assert (root.findtext(label) or "").strip()
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r'(?:href|src)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg")', text) == []
    assert any(f"{picture.name})" in read(document) for document in DOCUMENTS)


# --- what exists is named ---------------------------------------------------------------------------------------------


def table(document: str, heading: str) -> dict[str, list[str]]:
    """The rows of all tables below a heading, by their first cell."""
    section = re.split(r"^#+ ", read(document).split(f"{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {first: others for first, *others in rows}


def test_every_flag_of_serve_is_documented_with_its_default() -> None:
    documented = table("docs/operations.md", "## Flags")
    serve = next(command for words, command in commands() if words == ("serve",))
    for parameter in serve.params:
        flag = parameter.opts[0]
        if flag == "--help":
            continue
        default = documented[f"`{flag}`"][0]
        if default.startswith("`"):
            assert str(parameter.default) == default.strip("`"), flag
        else:
            assert not parameter.default, flag


def test_every_route_is_documented() -> None:
    paths = document()["paths"]
    routes = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert len(routes) >= 48
    shown = re.findall(r"^## ((?:GET|POST|PUT|PATCH|DELETE) .+)$", read("docs/api.md"), re.MULTILINE)
    assert sorted(shown) == sorted(route.replace("{model}", "{id}") for route in routes)
    listed = re.findall(r"^\| \[`([^`]+)`\]", read("docs/api.md"), re.MULTILINE)
    assert sorted(listed) == sorted(shown)


def test_every_error_code_is_documented() -> None:
    said: set[str] = set()
    for path in (*(CHECKOUT / "adapters").rglob("*.py"), *(CHECKOUT / "server").rglob("*.py")):
        said |= set(re.findall(r'(?:code="|default_code = "|_refuse\("|_at\("[a-z_]+", ")([a-z_]+)"', path.read_text()))
    inside = {"busy", "configuration_error"}  # these reach no client
    documented = re.findall(r"^\| (?:[0-9 or]+|–) \| ([^|]+)", read("docs/api.md"), re.MULTILINE)
    assert said - inside <= {code for codes in documented for code in re.findall(r"`([a-z_]+)`", codes)}


def test_every_metric_is_documented() -> None:
    suffixes = {"counter": "_total", "info": "_info"}
    there = {family.name + suffixes.get(family.type, "") for family in Metrics().registry.collect()}
    documented = set(re.findall(r"`(graftwork_\w+)`", " ".join(table("docs/operations.md", "## Metrics"))))
    assert documented == there


def test_every_field_of_peft_is_documented() -> None:
    text = read("docs/adapters.md")
    fields = config.USED | config.DESCRIPTIVE | config.UNSUPPORTED.keys()
    assert not [field for field in sorted(fields) if f"`{field}`" not in text]


@pytest.mark.parametrize("package", ["adapters", "server", "server/engine", "training", "clients"])
def test_every_file_is_on_the_map(package: str) -> None:
    below = [
        path
        for path in (CHECKOUT / package).rglob("*")
        if path.suffix in (".py", ".html", ".js", ".css", ".cpp", ".h") and path.name != "__init__.py"
    ]
    there = {path.relative_to(CHECKOUT / package).as_posix() for path in below if "__pycache__" not in path.parts}
    if package == "server":
        there = {name for name in there if not name.startswith("engine/")}
    heading = re.search(rf"^### {package}: .+$", read("CONTRIBUTING.md"), re.MULTILINE)
    assert heading
    rows = table("CONTRIBUTING.md", heading[0])
    assert {name.strip("`") for name in rows} - {"file", "---"} == there
    assert all(len(others) == 1 and others[0] for name, others in rows.items() if name.startswith("`"))


def test_the_changelog_knows_this_version() -> None:
    project = ast.parse((CHECKOUT / "src" / "graftwork" / "version.py").read_text())
    (version,) = [
        node.value.value
        for node in project.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert f"\n## [{version}] – " in read("CHANGELOG.md")
