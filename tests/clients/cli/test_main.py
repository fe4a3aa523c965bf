"""The top level of the command line: help, lazy imports, and the options of ``serve``."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import graftwork
from graftwork.__main__ import app
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.server.background.trainer import TrainerProcess
from graftwork.server.config import ServerConfig

REMOTE = ("--url", "--api-key", "--json")
#: Options that may be repeated: the field's name is their plural.
REPEATED = {"allowed_roots": "--allowed-root", "cors_origins": "--cors-origin"}
SERVE_FLAGS = tuple(
    REPEATED.get(field.name) or "--" + field.name.replace("_", "-") for field in dataclasses.fields(ServerConfig)
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "": (*REMOTE, "--version"),
    "serve": SERVE_FLAGS,
    "move": ("--artifacts", "--database", "--home"),
    "train": (*REMOTE, "--data", "--local"),
    "backup": ("--home", "--json"),
    "restore": ("--home", "--json"),
    "demo": (*REMOTE, "--data", "--classes", "--home", "--short"),
    "adapters push": (*REMOTE, "--alias", "--metadata", "--parent", "--server-path"),
    "adapters list": REMOTE,
    "adapters show": REMOTE,
    "adapters promote": (*REMOTE, "--alias", "--reason"),
    "adapters rollback": (*REMOTE, "--alias", "--reason"),
    "adapters retire": REMOTE,
    "adapters limits": (*REMOTE, "--limit", "--none"),
    "adapters history": (*REMOTE, "--limit"),
    "chat": (*REMOTE, "--message", "--system", "--temperature", "--max-tokens"),
    "audit": (*REMOTE, "--actor", "--action", "--target", "--since", "--limit", "--export", "--out"),
    "keys create": (*REMOTE, "--role", "--days", "--adapter", "--limit"),
    "keys list": REMOTE,
    "keys usage": REMOTE,
    "keys change": (*REMOTE, "--name", "--days", "--adapter", "--limit", "--no"),
    "keys rotate": (*REMOTE, "--overlap"),
    "keys revoke": REMOTE,
}


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(command: str) -> None:
    shown = help_of(*command.split())
    assert set(COMMANDS[command]) <= set(re.findall(r"--[a-z-]+", shown))


def test_the_top_lists_the_commands_the_variables_and_the_exit_codes() -> None:
    shown = help_of()
    assert {name.split()[0] for name in COMMANDS if name} <= set(re.findall(r"\w+", shown))
    assert {"GRAFTWORK_URL", "GRAFTWORK_API_KEY"} <= set(re.findall(r"\w+", shown))
    for code in ExitCode:
        assert f"{code.value} {code.meaning}" in shown
    for group in ("adapters", "keys"):
        listed = set(re.findall(r"\w+", help_of(group)))
        assert {name.split()[1] for name in COMMANDS if name.startswith(group)} <= listed


def test_help_is_light() -> None:
    heavy = {"torch", "transformers", "peft", "trl", "numpy", "httpx", "fastapi", "sqlalchemy", "litserve"}
    code = f"""
import sys
from graftwork.__main__ import main
sys.argv = ["graftwork", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code
loaded = {heavy} & set(sys.modules)
assert not loaded, loaded
"""
    for command in ("--help", "serve --help", "train --help", "adapters push --help", "--version"):
        subprocess.run([sys.executable, "-c", code, *command.split()], check=True, stdout=subprocess.DEVNULL)


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"graftwork {graftwork.__version__}\n")
    command = [sys.executable, "-m", "graftwork", "--version"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == result.stdout


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """The configurations that ``serve`` was called with; nothing is served, and the exit code is 7."""
    configs: list[ServerConfig] = []

    def serve(config: ServerConfig) -> int:
        configs.append(config)
        return 7

    stand_in: Any = ModuleType("graftwork.server.app")
    stand_in.serve = serve
    monkeypatch.setitem(sys.modules, "graftwork.server.app", stand_in)
    monkeypatch.setattr("graftwork.server.app", stand_in, raising=False)
    return configs


def test_serve_has_the_configs_defaults_and_ends_as_the_server_did(served: list[ServerConfig]) -> None:
    assert CliRunner().invoke(app, ["serve"]).exit_code == 7
    assert served == [ServerConfig()]


GIVEN = {
    "base": "org/model",
    "quantize": "int8",
    "dtype": "float32",
    "device": "cpu",
    "devices": "cpu,cuda:1",
    "kernels": "torch",
    "engine": "vllm=http://127.0.0.1:8001",
    "trainer_share": "0.25",
    "batch_share": "0.5",
    "home": "/tmp/home",
    "database": "postgresql://graftwork@db.example/graftwork",
    "host": "0.0.0.0",
    "port": "9000",
    "log_level": "debug",
    "admin_key_file": "/run/key",
}


def test_every_option_of_serve_has_a_flag_and_a_variable(served: list[ServerConfig]) -> None:
    values = {field.name: GIVEN.get(field.name, "3") for field in dataclasses.fields(ServerConfig)}
    for name in REPEATED:
        del values[name]
    switches = {field.name for field in dataclasses.fields(ServerConfig) if field.default is False}
    values |= dict.fromkeys(switches, "1")
    flags = [
        word
        for name, value in values.items()
        for word in ("--" + name.replace("_", "-"), *([] if name in switches else [value]))
    ]
    roots = ["--allowed-root", "/a", "--allowed-root", "/b"]
    origins = ["--cors-origin", "https://a.example", "--cors-origin", "*"]
    assert CliRunner().invoke(app, ["serve", *flags, *roots, *origins]).exit_code == 7
    variables = {f"GRAFTWORK_{name.upper()}": value for name, value in values.items()}
    repeated = {"GRAFTWORK_ALLOWED_ROOT": "/a:/b", "GRAFTWORK_CORS_ORIGIN": "https://a.example *"}
    assert CliRunner().invoke(app, ["serve"], env={**variables, **repeated}).exit_code == 7
    by_flag, by_variable = served
    assert by_flag == by_variable
    for field in dataclasses.fields(ServerConfig):
        assert getattr(by_flag, field.name) != getattr(ServerConfig(), field.name), field.name
    assert by_flag.cors_origins == ("https://a.example", "*")
    assert (by_flag.allowed_roots, by_flag.home, by_flag.port) == ((Path("/a"), Path("/b")), Path("/tmp/home"), 9000)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--trainer-device", "gpu"),
        ("--trainer-memory-gb", "-1"),
        ("--cors-origin", "app.example"),
        ("--cors-origin", "https://app.example/"),
        ("--cors-origin", "https://*"),
        ("--engine", "ray"),
        ("--engine", "vllm="),
        ("--engine", "vllm=gpu.internal:8000"),
        ("--engine", "vllm=http://gpu.internal"),
        ("--engine", "vllm=http://gpu.internal:8000/v1"),
        ("--engine", "vllm=http://user:secret@gpu.internal:8000"),
        ("--engine", "vllm=http://gpu.internal:port"),
    ],
)
def test_serve_refuses_what_cannot_be(served: list[ServerConfig], flag: str, value: str) -> None:
    result = CliRunner().invoke(app, ["serve", flag, value])
    assert result.exit_code == 2
    assert flag in result.stderr


@pytest.mark.parametrize("variable", ["GRAFTWORK_DATABASE", "GRAFTWORK_DATABASE_URL"])
def test_the_url_of_the_database(served: list[ServerConfig], variable: str) -> None:
    url = "postgresql+psycopg://ann:se-cret@db.example/graftwork"
    assert CliRunner().invoke(app, ["serve"], env={variable: url}).exit_code == 7
    assert served[0].database_location == url
    assert "se-cret" not in repr(served[0]), "what is printed shows no password"
    for shown in (url, "postgresql://db.example/graftwork?user=ann&password=se-cret"):
        result = CliRunner().invoke(app, ["serve", "--database", shown])
        assert (result.exit_code, "se-cret" in result.output) == (2, False)
        assert "GRAFTWORK_DATABASE" in result.stderr
    result = CliRunner().invoke(app, ["serve"], env={variable: "mysql://ann:se-cret@db.example/graftwork"})
    assert (result.exit_code, "se-cret" in result.output) == (2, False)
    assert "no support for mysql" in result.stderr
    assert len(served) == 1


@pytest.mark.parametrize(
    ("device", "shown"), [(None, {}), ("1", {"CUDA_VISIBLE_DEVICES": "1"}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})]
)
def test_a_run_sees_the_card_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str | None, shown: dict[str, str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: started.append(env))
    config = ServerConfig(home=tmp_path, trainer_device=device)
    trainer = TrainerProcess(config, SimpleNamespace(to_json=lambda: "{}"), None)  # type: ignore[arg-type]
    trainer._spawn()
    assert {name: value for name, value in started[0].items() if name.startswith("CUDA")} == shown


def test_serve_refuses_what_cannot_work(served: list[ServerConfig]) -> None:
    result = CliRunner().invoke(app, ["serve", "--slots", "0"])
    assert result.exit_code == ExitCode.USAGE
    assert "--slots must be at least 1" in result.stderr
    assert CliRunner().invoke(app, ["serve", "--quantize", "fp3"]).exit_code == ExitCode.USAGE
    assert served == []


def test_serve_says_why_it_cannot_start(monkeypatch: pytest.MonkeyPatch, served: list[ServerConfig]) -> None:
    from graftwork.adapters.errors import ConfigurationError

    def serve(config: ServerConfig) -> int:
        raise ConfigurationError("another server holds this home; stop it or take another --home.")

    monkeypatch.setattr(sys.modules["graftwork.server.app"], "serve", serve)
    result = CliRunner().invoke(app, ["serve"])
    assert result.exit_code == ExitCode.FAILED
    assert "error: another server holds this home" in result.stderr
