"""``graftwork train`` from the outside: against a server that speaks the wire, on a tiny random base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from fastapi.responses import JSONResponse
from typer.testing import CliRunner

from graftwork.adapters.base import BaseInfo
from graftwork.training.cli.train import LOCAL_ONLY, train
from graftwork.training.run import callback
from graftwork.training.run import trainer as trainer_module
from tests.clients.fake_server import FakeServer, Refusal, running
from tests.training.conftest import chat

ROWS = [chat(f"Ticket {number}", "delivery" if number % 2 else "pause") for number in range(24)]
APP = """
import typer
from graftwork.training.cli.train import train
app = typer.Typer()
app.callback()(lambda: None)
app.command("train")(train)
app()
"""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as state:
        yield state


@pytest.fixture
def graftwork(tmp_path: Path, tiny_base: BaseInfo) -> Callable[..., Result]:
    """Runs ``graftwork train tickets --local`` with more arguments; HOME of Graftwork is below ``tmp_path``."""
    app = alone()

    def run(*arguments: Any, local: bool = True) -> Result:
        home = ["--home", str(tmp_path / "home"), "--base", tiny_base.path]
        fast = ["--epochs", "1", "--rank", "2", "--learning-rate", "0.01", "--batch-size", "8"]
        given = ["train", "tickets", *(["--local"] if local else []), *home, *fast, *map(str, arguments)]
        return CliRunner().invoke(app, given)

    return run


def alone() -> typer.Typer:
    """The command line with this one command."""
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("train")(train)
    return app


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home" / "trained").glob("*"))


def test_a_run_ends_in_a_version_on_the_server(
    graftwork: Callable[..., Result], server: FakeServer, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    result = graftwork("--data", write_rows(*ROWS, "{broken"), "--url", server.url)
    assert result.exit_code == 0, result.output
    assert result.stdout == "tickets@1\n"
    (folder,) = folders(tmp_path)
    for said in (
        "1 row cannot be used",
        "line 25: not JSON",
        "step 3/3",
        "tokens/s",
        "loss",
        'Callable as "tickets@1"',
    ):
        assert said in result.stderr
    assert str(folder) in result.stderr

    (pushed,) = server.asked("POST", "/v1/adapters/tickets/versions")
    assert set(pushed["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert pushed["files"]["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert pushed["data_digest"].startswith("sha256:")
    metadata = json.loads(pushed["metadata"])
    assert metadata["data"] == "data.jsonl"
    assert metadata["rows"]["left_out"] == 1
    assert metadata["rows"]["train"] + metadata["rows"]["validation"] == 24
    assert metadata["config"]["rank"] == 2
    assert metadata["config"]["alpha"] == 4
    assert metadata["metrics"]["num_steps"] == 3
    assert server.adapters["tickets"]["aliases"] == {"live": 1}


def test_a_second_version_waits_for_a_promote_or_an_alias(
    graftwork: Callable[..., Result], server: FakeServer, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    server.seed("tickets", 1)
    data = write_rows(*ROWS)
    result = graftwork("--data", data, "--url", server.url, "--out", tmp_path / "a", "--seed", 1)
    assert "graftwork adapters promote tickets@2" in result.stderr
    result = graftwork(
        "--data", data, "--url", server.url, "--out", tmp_path / "b", "--seed", 2, "--alias", "candidate"
    )
    assert "promote" not in result.stderr
    assert server.adapters["tickets"]["aliases"] == {"live": 1, "candidate": 3}


def test_json_on_standard_output_and_people_on_standard_error(
    graftwork: Callable[..., Result], server: FakeServer, write_rows: Callable[..., Path]
) -> None:
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url, "--json")
    answer = json.loads(result.stdout)
    assert answer["version"] == "tickets@1"
    assert Path(answer["folder"], "README.md").is_file()
    assert answer["metrics"]["last_loss"] > 0
    assert "Training tickets" in result.stderr


def test_the_best_of_a_search_is_pushed(
    graftwork: Callable[..., Result], server: FakeServer, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url, "--search", 2, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["version"] == "tickets@1"
    assert [trial["number"] for trial in answer["search"]] == [1, 2]
    (best,) = [trial for trial in answer["search"] if trial["best"]]
    for said in ("It will take about", "trial 1 of 2", "trial 2 of 2", "the best", f"{best['learning_rate']:.3g}"):
        assert said in result.stderr
    (pushed,) = server.asked("POST", "/v1/adapters/tickets/versions")
    assert json.loads(pushed["metadata"])["config"]["learning_rate"] == best["learning_rate"]
    assert [path.name for path in (tmp_path / "home" / "trained").iterdir()] == [folders(tmp_path)[0].name]


def test_without_a_server_nothing_is_pushed_and_the_command_to_do_it_is_said(
    graftwork: Callable[..., Result], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "my adapter"
    result = graftwork("--data", write_rows(*ROWS), "--no-push", "--out", out, "--alias", "candidate")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert f"graftwork adapters push tickets '{out}' --alias candidate" in result.stderr
    assert (out / "adapter_model.safetensors").is_file()


def test_a_table_with_named_columns_is_trained_on(graftwork: Callable[..., Result], tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("text,category\n" + "".join(f"Ticket {number},pause\n" for number in range(8)))
    columns = ("--prompt-column", "text", "--completion-column", "category", "--system", "Sort.")
    result = graftwork("--data", table, "--no-push", *columns, "--validation", 0)
    assert result.exit_code == 0, result.output
    assert "Training tickets on 8 rows" in result.stderr
    assert "No validation rows" in result.stderr


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found out here must be found out before the first step."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("the run has begun")

    monkeypatch.setattr(trainer_module, "train", refuse)


@pytest.mark.usefixtures("untrained")
def test_a_server_that_is_not_there_is_found_out_before_training(
    graftwork: Callable[..., Result], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    result = graftwork("--data", write_rows(*ROWS), "--url", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "no Graftwork server answers" in result.stderr
    assert "--no-push" in result.stderr
    assert folders(tmp_path) == []


@pytest.mark.usefixtures("untrained")
def test_a_wrong_key_is_found_out_before_training(
    graftwork: Callable[..., Result], server: FakeServer, write_rows: Callable[..., Path]
) -> None:
    server.key = "right"
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url, "--api-key", "wrong")
    assert result.exit_code == 5
    assert "unknown" in result.stderr


@pytest.mark.usefixtures("untrained")
def test_a_server_of_another_base_is_found_out_before_training(
    graftwork: Callable[..., Result], server: FakeServer, write_rows: Callable[..., Path]
) -> None:
    other = server.model("smollm2-135m-instruct") | {"graftwork": {"digest": "sha256:" + "0" * 64}}
    server.refusals += [JSONResponse({"object": "list", "data": [other], "has_more": False}) for _ in range(2)]
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url)
    assert result.exit_code == 1
    assert "serves the base smollm2-135m-instruct, and this run would train on tiny-llama" in result.stderr


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--rank", "0"], 1, "rank must be at least 1"),
        (["--alias", "7"], 1, "cannot be an alias"),
        (["--out", "{tmp}"], 1, "is there already"),
        (["--base", "{tmp}/nowhere"], 1, "nowhere"),
        (["--prompt-template", "{a.b}"], 1, "template"),
        (["--precision", "float16"], 2, "float16"),
        (["--search", "1"], 2, "--search"),
        (["--augment", "9"], 2, "--augment"),
        (["--search", "2", "--validation", "0"], 1, "held-out rows, and there are none"),
        (["--report-to", "tensorboard"], 1, "names trackers: wandb, mlflow, trackio"),
        (["--report-to", "wandb"], 1, "pip install wandb"),
    ],
)
def test_wrong_settings_are_found_out_before_training(
    graftwork: Callable[..., Result],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    result = graftwork("--data", write_rows(*ROWS), "--no-push", *given)
    assert result.exit_code == exit_code
    assert message in result.stderr


@pytest.mark.usefixtures("untrained")
def test_data_without_a_usable_row_is_refused(
    graftwork: Callable[..., Result], write_rows: Callable[..., Path]
) -> None:
    robot = {"messages": [{"role": "robot", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    result = graftwork("--data", write_rows(robot, "{"), "--no-push")
    assert result.exit_code == 1
    assert "no usable row (line 1: messages[0].role" in result.stderr
    assert "line 2: not JSON" in result.stderr


@pytest.mark.usefixtures("untrained")
def test_rows_that_all_fall_to_validation_are_refused(
    graftwork: Callable[..., Result], write_rows: Callable[..., Path]
) -> None:
    result = graftwork("--data", write_rows(*ROWS[:1]), "--no-push", "--validation", 0.999999)
    assert result.exit_code == 1
    assert "--validation 0" in result.stderr


def test_training_here_must_be_asked_for(graftwork: Callable[..., Result], write_rows: Callable[..., Path]) -> None:
    result = graftwork("--data", write_rows(*ROWS), local=False)
    assert result.exit_code == 2
    assert "--local" in result.stderr


@pytest.mark.parametrize("option", LOCAL_ONLY)
def test_what_a_job_cannot_do_is_refused_by_name(option: str, write_rows: Callable[..., Path]) -> None:
    flag, value = f"--{option.replace('_', '-')}", ["1"] if option == "validation" else ["auto"]
    given = {"plain": ["--plain"], "push": ["--no-push"], "full": ["--full"]}.get(option, [flag, *value])
    result = CliRunner().invoke(alone(), ["train", "tickets", "--data", str(write_rows(*ROWS)), *given])
    assert result.exit_code == 2
    assert f"jobs have no {flag}: add --local" in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize("given", [["--detach"], ["--continue", "tickets"]])
def test_what_only_a_job_can_do_is_refused_as_well(given: list[str], write_rows: Callable[..., Path]) -> None:
    result = CliRunner().invoke(alone(), ["train", "tickets", "--local", "--data", str(write_rows(*ROWS)), *given])
    assert result.exit_code == 2
    assert "leave --local away" in " ".join(result.stderr.replace("│", "").split())


def test_a_refused_push_keeps_the_adapter_and_says_how_to_push_it(
    graftwork: Callable[..., Result],
    server: FakeServer,
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Refusal(413, "too large", "too_large")

    monkeypatch.setattr(server, "push", refuse)
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url)
    assert result.exit_code == 1
    (folder,) = folders(tmp_path)
    assert f"graftwork adapters push tickets {folder}" in result.stderr
    assert "too large" in result.stderr
    assert (folder / "adapter_model.safetensors").is_file()


def test_a_push_interrupted_keeps_the_adapter(
    graftwork: Callable[..., Result],
    server: FakeServer,
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("graftwork.training.cli.pushing.push_folder", interrupt)
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url)
    assert result.exit_code == 130
    assert f"graftwork adapters push tickets {folders(tmp_path)[0]}" in result.stderr


def test_a_diverged_run_writes_and_pushes_nothing(
    graftwork: Callable[..., Result],
    server: FakeServer,
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise callback.diverged("The loss is nan at step 3 of 9")

    monkeypatch.setattr(trainer_module, "train", fail)
    result = graftwork("--data", write_rows(*ROWS), "--url", server.url)
    assert result.exit_code == 1
    assert "The loss is nan at step 3 of 9" in result.stderr
    assert folders(tmp_path) == []
    assert server.adapters == {}


def test_ctrl_c_stops_the_run_and_leaves_nothing(
    server: FakeServer, write_rows: Callable[..., Path], tiny_base: BaseInfo, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    given = ["train", "tickets", "--local", "--data", write_rows(*ROWS), "--url", server.url, "--home", home]
    command = [sys.executable, "-c", APP, *map(str, given), "--base", tiny_base.path, "--epochs", "100000"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as run:
        assert run.stderr is not None
        said = ""
        while "step 0/" not in said:
            line = run.stderr.readline()
            assert line, said
            said += line
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
    assert run.returncode == 130
    assert "Nothing was written, nothing was pushed" in rest
    assert "Traceback" not in rest
    assert list((home / "trained").iterdir()) == []
    assert server.adapters == {}


def test_help_loads_no_model_library() -> None:
    heavy = {"torch", "transformers", "trl", "peft", "tokenizers", "httpx"}
    code = f"import atexit, sys\natexit.register(lambda: print({heavy} & set(sys.modules), file=sys.stderr))\n{APP}"
    ran = subprocess.run([sys.executable, "-c", code, "train", "--help"], capture_output=True, text=True, check=True)
    assert "--learning-rate" in ran.stdout
    assert ran.stderr == "set()\n"
