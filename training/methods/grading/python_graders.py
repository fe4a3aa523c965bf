"""Grades by Python programs, each batch in a process of its own that is locked down; see `sandbox`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from graftwork.adapters.learning.graders.grader import Python
from graftwork.training.methods.grading import sandbox
from graftwork.training.methods.grading.failures import grader_failed

MAX_SECONDS: Final = 30
"""CPU time of a batch; of the clock it may take twice as long."""

MAX_BYTES: Final = 1 << 30
"""Address space of the process."""

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
    try:
        ended = subprocess.run(
            # Without anything of the environment; and with the same order in sets and the like in every process.
            [sys.executable, "-S", "-s", "-P", sandbox.__file__],
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            input=json.dumps(question).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=2 * MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise grader_failed(grader.name, f"it took more than {2 * MAX_SECONDS} s for {len(answers)} answers") from None
    try:
        reply = json.loads(ended.stdout)
    except ValueError:
        reply = {"error": f"its process ended (exit code {ended.returncode}): it may take {MAX_SECONDS} s and 1 GiB"}
    if "error" in reply:
        raise grader_failed(grader.name, reply["error"])
    grades = [float(value) for value in reply["grades"]]
    if not all(map(math.isfinite, grades)):
        raise grader_failed(grader.name, "it returned a grade that is no number")
    return grades
