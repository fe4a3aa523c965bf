"""``graftwork data`` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import InvalidRequest
from graftwork.training.cli.data import app
from graftwork.training.config import TrainConfig
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.store import DataStore
from graftwork.training.run.plan import plan_run
from tests.training.conftest import EXAMPLES, chat
from tests.training.exports import answer, said
from tests.training.records import pair, question

TICKETS = EXAMPLES / "tickets.jsonl"


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Result]:
    """Runs ``graftwork data``, with a home below ``tmp_path``."""

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments), "--home", str(tmp_path / "home")])

    return run


def test_a_file_is_looked_at_and_nothing_is_written(data: Callable[..., Result], tmp_path: Path) -> None:
    result = data("check", TICKETS)
    assert result.exit_code == 0, result.output
    assert "300 rows read as OpenAI chat" in result.stdout
    assert "Characters" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_kept_listed_and_shown(data: Callable[..., Result], tmp_path: Path) -> None:
    assert "No data sets yet" in data("list").stdout
    result = data("check", TICKETS, "--held-out", EXAMPLES / "tickets_heldout.jsonl", "--save", "tickets")
    assert result.exit_code == 0, result.output
    assert "Kept as tickets@1. Train on it: graftwork train NAME --data tickets@1 --local" in result.stderr
    again = data("check", TICKETS, "--held-out", EXAMPLES / "tickets_heldout.jsonl", "--save", "tickets")
    assert "These very rows are tickets@1 already: nothing was added" in again.stderr
    assert "tickets@1" in data("list").stdout
    (listed,) = json.loads(data("list", "--json").stdout)
    assert (listed["id"], listed["rows"]["test"]) == ("tickets@1", 60)
    assert data("show", "tickets").stdout == result.stdout
    shown = json.loads(data("show", "tickets@1", "--json").stdout)
    assert shown["digest"] == listed["digest"]
    path = tmp_path / "home" / "datasets" / "tickets" / "1" / "test.jsonl"
    path.chmod(0o644)
    path.write_text("")
    result = data("show", "tickets@1")
    assert (result.exit_code, "not as it was written" in result.stderr) == (1, True)


def test_the_report_is_json_for_programs_and_a_page_for_people(data: Callable[..., Result], tmp_path: Path) -> None:
    result = data("check", TICKETS, "--json", "--html", tmp_path / "report.html")
    assert json.loads(result.stdout)["fates"] == {"kept": 300}
    assert "report.html" in result.stderr
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    result = data("check", TICKETS, "--html", tmp_path / "nowhere" / "report.html")
    assert (result.exit_code, "cannot be written: No such file" in result.stderr) == (1, True)


def test_a_named_base_counts_in_tokens(data: Callable[..., Result], tiny_base: BaseInfo) -> None:
    result = data("check", TICKETS, "--base", tiny_base.path, "--max-length", 40)
    assert "Tokens" in result.stdout
    assert "longer than 40 tokens" in result.stdout


def test_options_reach_the_policy(data: Callable[..., Result], write_rows: Callable[..., Path]) -> None:
    rows = [pair(question(number), "yes", side="dev", who="ann", score=number % 5 + 1) for number in range(20)]
    path = write_rows(*rows, pair("mail ann@acme.com", "no", side="test", who="bob", score=5), {"bad": 1})
    given = ("--split-column", "side", "--user-column", "who", "--score-range", "1:5", "--max-bad", "0", "--near", 0)
    report = json.loads(data("check", path, "--json", "--keep", "@acme.com", *given).stdout)
    assert report["sides"] == {"train": 0, "validation": 20, "test": 1}
    assert (report["users"], report["kinds"], report["found"]) == (2, {"scored": 21}, [])
    assert "No row is left to train on" in report["notes"][0]
    assert "holds private data" in data("check", path, "--personal", "refuse", *given).stderr
    for wrong, message in (
        (("--score-range", "5"), "as in 1:5"),
        (("--split", "80"), "as in 80/10/10"),
        (("--personal", "hide"), "hide"),
        (("--format", "excel"), "is no format"),
        (("--finder", "nothing"), "is no finder"),
        (("--region", "Germany"), "two letters"),
    ):
        result = data("check", path, *wrong)
        assert result.exit_code in (1, 2)
        assert message in result.stderr


def test_exports_of_the_server_are_joined(data: Callable[..., Result], write_rows: Callable[..., Path]) -> None:
    asked = [{"messages": [{"role": "user", "content": question(number)}]} for number in range(12)]
    answers = write_rows(*(answer(f"a{n}", prompt=one) for n, one in enumerate(asked)), name="interactions.jsonl")
    verdicts = [
        said(f"a{n}", thumb="up", asked=n < 5) if n % 3 else said(f"a{n}", correction="delivery") for n in range(12)
    ]
    result = data("check", answers, write_rows(*verdicts, name="feedback.jsonl"))
    assert result.exit_code == 0, result.output
    assert "interactions.jsonl + feedback.jsonl" in result.stdout
    assert "12 rows read as logged answers with feedback" in result.stdout
    kinds = "4 preferences, 8 judged answers, 4 of them corrections, 3 from users who were asked"
    assert kinds in " ".join(result.stdout.split())


@pytest.mark.parametrize("content", ["", "{", '{"level": "info"}\n' * 300])
def test_what_cannot_be_learned_from_ends_with_an_error(
    data: Callable[..., Result], write_rows: Callable[..., Path], content: str
) -> None:
    result = data("check", write_rows(content), "--save", "nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: data.jsonl holds no ")
    assert data("show", "nothing").exit_code == 1


def test_training_takes_a_data_set_that_was_kept(
    data: Callable[..., Result], tiny_base: BaseInfo, tmp_path: Path
) -> None:
    data("check", TICKETS, "--save", "tickets")
    stored = DataStore(tmp_path / "home" / "datasets").get("tickets")
    run = plan_run(name="sort", data=stored, base=tiny_base, config=TrainConfig(max_length=512))
    assert (run.data, run.data_digest) == ("tickets@1", stored.digest)
    assert (len(run.rows), len(run.validation)) == (stored.num_rows["train"], stored.num_rows["validation"])
    assert (run.num_bad, run.remarks) == (0, ())


def test_training_says_what_was_done_to_a_file(tiny_base: BaseInfo, write_rows: Callable[..., Path]) -> None:
    rows = [chat(question(number), "yes") for number in range(20)]
    path = write_rows(*rows, rows[0], chat("Write to ann@acme.com", "no"), pair("Q", "A", label=False), "{")
    run = plan_run(name="sort", data=path, base=tiny_base, config=TrainConfig(validation=0))
    assert (len(run.rows), run.num_bad) == (21, 1)
    assert [remark.partition(":")[0] for remark in run.remarks] == [
        "Left out",
        "Masked",
        "1 row say what not to answer, which supervised training cannot use.",
    ]
    preferences = write_rows({"prompt": "Q", "chosen": "A", "rejected": "B"}, name="p.jsonl")
    assert len(plan_run(name="sort", data=preferences, base=tiny_base, config=TrainConfig(validation=0)).rows) == 1
    with pytest.raises(InvalidRequest, match=r"23 of the 24 rows of data.jsonl cannot be used"):
        plan_run(name="sort", data=path, columns=Columns(plain=True), base=tiny_base, config=TrainConfig())


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "numpy", "ftfy", "phonenumbers", "tokenizers"}
    code = (
        f"import atexit, sys\natexit.register(lambda: print({heavy} & set(sys.modules), file=sys.stderr))\n"
        "from graftwork.training.cli.data import app\napp()"
    )
    ran = subprocess.run([sys.executable, "-c", code, "check", "--help"], capture_output=True, text=True, check=True)
    assert "--held-out" in ran.stdout
    assert ran.stderr == "set()\n"
