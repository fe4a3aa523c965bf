"""The names of what lies in a run's folder."""

from __future__ import annotations

from typing import Final

SPEC: Final = "job.json"


PROGRESS: Final = "progress.jsonl"


RESULT: Final = "result.json"


PARTS: Final = "parts.json"


CHECKPOINTS: Final = "checkpoints"


ADAPTER: Final = "adapter"


REPORT: Final = "report.html"


TRIALS: Final = "trials"


WORDINGS: Final = "wordings.jsonl"

FEEDBACK_FILE: Final = "feedback.jsonl"


ANSWERS_FILE: Final = "answers.json"
