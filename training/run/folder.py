"""The names of what lies in a run's folder."""

from __future__ import annotations

from typing import Final

SPEC_FILE: Final = "job.json"


PROGRESS_FILE: Final = "progress.jsonl"


RESULT_FILE: Final = "result.json"


PARTS_FILE: Final = "parts.json"


CHECKPOINTS_FOLDER: Final = "checkpoints"


ADAPTER_FOLDER: Final = "adapter"


REPORT_FILE: Final = "report.html"


TRIALS_FOLDER: Final = "trials"


WORDINGS_FILE: Final = "wordings.jsonl"

FEEDBACK_FILE: Final = "feedback.jsonl"


ANSWERS_FILE: Final = "answers.json"
