"""Graders that are tried out: each in a process of its own, as only training can compute them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from graftwork.adapters.errors import GraftworkError

MAX_SECONDS: Final = 120.0
"""How long one answer may take to be graded."""


@dataclass(frozen=True, kw_only=True)
class GraderTrials:
    """Tries graders out.

    Attributes:
        url: The server's address, where models that grade are asked.
        key: A key for it.
    """

    url: str
    key: str = field(repr=False)

    def run(self, grader: Mapping[str, Any], *, item: Any, sample: str) -> dict[str, Any]:
        """Grade one answer; takes seconds.

        Args:
            grader: The grader, checked.
            item: What it is told of the row.
            sample: The answer.

        Returns:
            ``grade`` and ``parts``, or ``error``.

        Raises:
            GraftworkError: The process failed, or took too long.
        """
        question = {"grader": grader, "item": item, "sample": sample, "url": self.url, "parent": os.getpid()}
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "graftwork.training.methods.grading"],
                input=json.dumps(question).encode(),
                stdout=subprocess.PIPE,
                env={**os.environ, "GRAFTWORK_API_KEY": self.key},
                timeout=MAX_SECONDS,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"it took more than {MAX_SECONDS:g} s"}
        except subprocess.CalledProcessError as error:
            raise GraftworkError("the grader's process failed: the server's log says why") from error
        reply: dict[str, Any] = json.loads(ended.stdout)
        return reply
