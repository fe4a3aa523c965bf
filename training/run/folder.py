"""Names of the files and folders in the folder of a run."""

from __future__ import annotations

from typing import Final

SPEC_FILE: Final = "job.json"
"""The specification of the run."""

PROGRESS_FILE: Final = "progress.jsonl"
"""Messages and measurements while it runs."""

RESULT_FILE: Final = "result.json"
"""The result, or the error that it failed with."""

PARTS_FILE: Final = "parts.json"
"""The micro-batch size that the run began with."""

BEGAN_FILE: Final = "began.json"
"""When it first began, which a chat template may write into prompts."""

ROWS_FILE: Final = "rows.json"
"""What became of its rows, as hashes: `graftwork.training.worker.job.rounds`."""

CHECKPOINTS_FOLDER: Final = "checkpoints"

ADAPTER_FOLDER: Final = "adapter"
"""The finished PEFT folder."""

PARENTS_FOLDER: Final = "parents"
"""Adapters that the run continues or is graded by, where they were fetched from a bucket."""

REPORT_FILE: Final = "report.html"
"""The report of the evaluation."""

TRIALS_FOLDER: Final = "trials"
"""The trials of a search."""

WORDINGS_FILE: Final = "wordings.jsonl"
"""Generated paraphrases, while the run needs them."""

FEEDBACK_FILE: Final = "feedback.jsonl"
"""The feedback that the run learns from, and the answers that it is about."""

ANSWERS_FILE: Final = "answers.json"
"""Ids of the logged interactions that the run learns from."""

SIDES_FILE: Final = "sides.json"
"""The split of each question of the adapter, by the question's key in hexadecimal digits."""
