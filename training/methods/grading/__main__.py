"""``python -m graftwork.training.methods.grading``: one answer, graded for whoever tries a grader out.

It reads one JSON object from standard input, ``{"grader", "item", "sample", "url"}``, and writes one: ``{"grade",
"parts"}``, or ``{"error", "part"}`` with what failed. The key for the server stands in the environment.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from graftwork.adapters.errors import GraftworkError
from graftwork.adapters.parent_death import die_with_parent
from graftwork.clients.client import Client
from graftwork.training.methods.grading.grading import GivenAnswer, Grading


def answer(question: dict[str, Any], key: str | None) -> dict[str, Any]:
    """Return the grade that was asked for, or what failed."""
    try:
        with Client(question["url"], key) as client:
            grading = Grading(question["grader"], client=client)
            grades = grading.grade([GivenAnswer(text=question["sample"], item=question["item"])])
    except GraftworkError as error:
        return {"error": error.message}
    return {"grade": grades.grades[0], "parts": {name: part[0] for name, part in grades.parts.items()}}


def main() -> None:
    """Answer the question on standard input."""
    question = json.loads(sys.stdin.buffer.read())
    die_with_parent(question["parent"])
    print(json.dumps(answer(question, os.environ.get("GRAFTWORK_API_KEY"))))


if __name__ == "__main__":
    main()
