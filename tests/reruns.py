"""Tests that failed run once more at the end, alone: a pytest plugin, loaded by ``scripts/test --rerun-failed``.

At most ``MAX_FLAKY`` tests may pass at the second try. They count as *flaky*, the report prints the line that
``tests/flaky.md`` has to get, and the run passes. A test that stands in that file already, a second failure, or more
failures than that: the run fails.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

FLAKY_FILE = Path("tests", "flaky.md")
MAX_FLAKY = 2


class Reruns:
    """What became of the tests that failed; the report that pytest prints at the end says so."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lines: list[str] = []

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """After everything else of the session has ended, its workers too, and before the report."""
        yield
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        has_failed = session.exitstatus == pytest.ExitCode.TESTS_FAILED
        if has_failed and isinstance(reporter, TerminalReporter) and self._all_pass_now(reporter):
            session.exitstatus = pytest.ExitCode.OK

    def _all_pass_now(self, reporter: TerminalReporter) -> bool:
        reports = [*reporter.stats.get("failed", ()), *reporter.stats.get("error", ())]
        failed = list(dict.fromkeys(report.nodeid for report in reports))
        if any(not isinstance(report, pytest.TestReport) for report in reports):
            self._lines.append("Not every test could be collected: nothing runs again.")
            return False
        if len(failed) > MAX_FLAKY:
            self._lines.append(f"{len(failed)} tests failed, more than {MAX_FLAKY}: none runs again.")
            return False
        file = self._config.rootpath / FLAKY_FILE
        listed = file.read_text(encoding="utf-8") if file.exists() else ""
        if known := [test for test in failed if f"`{test}`" in listed]:
            self._lines += [f"{test} stands in {FLAKY_FILE} already: it has to be mended." for test in known]
            return False
        if again := [test for test in failed if not self._passes_alone(test)]:
            self._lines += [f"{test} failed twice." for test in again]
            return False
        self._lines += ["Passed at the second try, alone. Enter what is known:", f"add to {FLAKY_FILE}:"]
        for test in failed:
            reason = next(_last_line(report.longreprtext) for report in reports if report.nodeid == test)
            self._lines.append(f"- `{test}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {reason}")
        for kind in ("failed", "error"):
            reporter.stats["flaky"] = [*reporter.stats.get("flaky", ()), *reporter.stats.pop(kind, ())]
        # A test that failed counts once, also where its teardown failed as well or its call had passed.
        reporter.stats["flaky"] = list({report.nodeid: report for report in reporter.stats["flaky"]}.values())
        passed = reporter.stats.get("passed", [])
        passed[:] = [report for report in passed if report.nodeid not in failed]
        return True

    def _passes_alone(self, test: str) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", test]
        done = subprocess.run(command, cwd=self._config.rootpath, capture_output=True, text=True, check=False)
        sys.stdout.write(f"\n{test} once more, alone:\n{done.stdout}{done.stderr}\n")
        return done.returncode == 0

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        if not self._lines:
            return
        terminalreporter.section("flaky", yellow=True)
        for report in terminalreporter.stats.get("flaky", ()):
            terminalreporter.line(report.longreprtext)
        for line in self._lines:
            terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reruns(config))


def _last_line(text: str) -> str:
    """Of a traceback: what was raised, where pytest says so, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
    return (raised or lines or ["no reason was given"])[0]
