"""The commands of docs/benchmarks.md run in a small form on a real server. Their numbers are not checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from tests.conftest import CHECKOUT, TEST_HOME
from tests.e2e.server_process import Server


def test_every_file_is_on_the_map_of_the_house() -> None:
    section = (CHECKOUT / "CONTRIBUTING.md").read_text().partition("### benchmarks: ")[2].partition("\n#")[0]
    named = set(re.findall(r"^\| `([\w/]+\.py)` \| .+ \|$", section, re.MULTILINE))
    files = [path for path in (CHECKOUT / "benchmarks").rglob("*.py") if path.name != "__init__.py"]
    assert named == {path.relative_to(CHECKOUT / "benchmarks").as_posix() for path in files}


def run(module: str, *arguments: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "GRAFTWORK_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_adapters_are_made_pushed_and_loaded_upon(server: Server, embedded_base: BaseInfo, tmp_path: Path) -> None:
    made = run(
        "harness.make_adapters",
        "--base",
        embedded_base.path,
        "--count",
        "2",
        "--out",
        str(tmp_path),
        "--push",
        url=server.url,
    )
    assert made.split() == ["a0@1", "a1@1"]
    assert read_spec(tmp_path / "a0", embedded_base, AdapterLimits()).rank == 16
    asked = ("--models", "a0,a1", "--clients", "2", "--requests", "4", "--max-tokens", "4", "--prompt-words", "5")
    for more in ((), ("--rate", "20")):
        result = json.loads(run("load.generator", server.url, *asked, *more, url=server.url))
        assert (result["requests"], result["errors"]) == (4, 0)
        assert result["out_tok_s"] > 0
    assert "over" in run("serving.perplexity", "LICENSE", "--characters", "500", url=server.url)


@pytest.mark.slow
def test_benchmarks_of_graftwork_itself(embedded_base: BaseInfo, tmp_path: Path) -> None:
    """Every kind of load, very small, in the real server; the second time nothing is pushed again."""
    command = [sys.executable, "-m", "benchmarks", "--only", "graftwork", "--home", str(TEST_HOME)]
    command += ["--cache", str(tmp_path / "cache"), "--requests", "4", "--max-tokens", "4", "--registered", "3"]
    command += ["--json", str(tmp_path / "table.json"), "--markdown", str(tmp_path / "table.md")]
    kinds = ["2x0", "2x2", "poisson", "zipf", "cold", "prefix"]
    pushed = []
    for loads in (kinds, ["2x2"]):
        done = subprocess.run(
            [*command, "--loads", ",".join(loads)],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        pushed.append("pushing" in done.stderr)
        results = json.loads((tmp_path / "table.json").read_text())["results"]
        assert {result["load"] for result in results} == {*loads, *(["16x8"] if "poisson" in loads else [])}
        assert all(result["errors"] == 0 and result["peak_rss_mb"] > 100 for result in results)
        assert (tmp_path / "table.md").read_text() in done.stdout
    assert pushed == [True, False]
    assert "| **Graftwork" in done.stdout
