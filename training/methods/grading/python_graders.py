"""Grades by Python programs, each batch in a process of its own that is locked down; see `sandbox`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

from graftwork.adapters.learning.graders.grader import Python
from graftwork.training.methods.grading import sandbox
from graftwork.training.methods.grading.failures import grader_failed

MAX_SECONDS: Final = 30
"""CPU time of a batch; of the clock it may take twice as long."""

MAX_BYTES: Final = 1 << 30
"""Address space of the process."""

ATTEMPTS: Final = 3

AT_ONCE: Final = 64
"""Answers in a batch."""


def grade(grader: Python, told: Sequence[Mapping[str, Any]]) -> list[float]:
    """Grade answers.

    Args:
        grader: the grader.
        told: ``item`` and ``sample`` of each answer. The program's ``output_json`` is None for an answer without.

    Raises:
        GraftworkError: with code ``reward_failed`` if the program fails, takes too long or returns no number.
    """
    answers = [{**values, "sample": {"output_json": None, **values["sample"]}} for values in told]
    batches = [answers[start : start + AT_ONCE] for start in range(0, len(answers), AT_ONCE)]
    return [value for batch in batches for value in _grade_batch(grader, batch)]


def _grade_batch(grader: Python, answers: Sequence[Mapping[str, Any]]) -> list[float]:
    question = {"source": grader.source, "answers": answers, "seconds": MAX_SECONDS, "bytes": MAX_BYTES}
    with tempfile.TemporaryFile() as output:
        code = _run(grader, question, output)
        output.seek(0)
        told = output.read(sandbox.MAX_REPLY_BYTES)
    try:
        reply = json.loads(told)
    except (ValueError, RecursionError):
        reply = {"error": f"its process ended (exit code {code}): it may take {MAX_SECONDS} s and 1 GiB"}
    # The program may have written in place of the process.
    grades = reply.get("grades") if isinstance(reply, dict) else None
    if not isinstance(grades, list) or len(grades) != len(answers):
        error = reply.get("error") if isinstance(reply, dict) else None
        raise grader_failed(grader.name, str(error or "it did not return a grade for each answer"))
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in grades):
        raise grader_failed(grader.name, "it returned a grade that is no number")
    return [float(value) for value in grades]


def _run(grader: Python, question: Mapping[str, Any], output: IO[bytes]) -> int:
    """Run a batch in a process of its own, and return its exit code.

    The time of the clock is no failure of the program, which may have been paused with the whole run: it is tried
    again. Its CPU time is what is bounded.
    """
    for _ in range(ATTEMPTS):
        output.seek(0)
        output.truncate()
        try:
            return subprocess.run(
                # Without anything of the environment; and with the same order in sets and the like in every process.
                [sys.executable, "-S", "-s", "-P", sandbox.__file__],
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                input=json.dumps(question).encode(),
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=2 * MAX_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            continue
    raise grader_failed(grader.name, f"it took more than {2 * MAX_SECONDS} s, {ATTEMPTS} times")
