"""The files of a batch that ends: its answers, and its errors with what was not answered.

They are written from what is stored, and their ids follow from the batch's: written again after a kill, they are the
same files. Each appears whole under its name, or not at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Final

from graftwork.adapters.batches.batch import Batch, BatchStatus
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.learning.files import Files
from graftwork.server.generation.batches.input import BatchInput
from graftwork.server.openai.batch_lines import unanswered_line

_WRITTEN_LINES: Final = 100

_NOT_ANSWERED: Final[dict[BatchStatus, tuple[str, str]]] = {
    "expired": ("batch_expired", "the batch's completion window ended before this request was answered: send it again"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was answered"),
}
"""Why a request has no answer, by how its batch ends: OpenAI's codes."""


def write_files(batches: Batches, files: Files, batch: Batch) -> tuple[str | None, str | None]:
    """Write the files of a batch. Every request of its file stands in one of them, once.

    Returns:
        The ids of the output and the error file; ``None`` for a file without lines.

    Raises:
        Unavailable: The disk is full; nothing is left of the file that did not fit.
    """
    answers = (result.content for result in batches.results(batch.id, failed=False))
    errors = ((result.line, result.content) for result in batches.results(batch.id, failed=True))
    all_errors = (content for _, content in heapq.merge(errors, _unanswered(batches, files, batch)))
    return _write(files, batch, "output", answers), _write(files, batch, "error", all_errors)


def _unanswered(batches: Batches, files: Files, batch: Batch) -> Iterator[tuple[int, str]]:
    """Lines of the input that were not answered, and what the error file says of them."""
    if batch.completed + batch.failed == batch.total:
        return
    code, message = _NOT_ANSWERED.get(batch.outcome) or (batch.errors[0].code, batch.errors[0].message)
    requests = BatchInput(files.fetch(files.get(batch.input_file)), batch.endpoint)
    for request in requests.requests(without=batches.answered_lines(batch.id)):
        yield request.line, unanswered_line(batch.id, request, {"code": code, "message": message})


def _write(files: Files, batch: Batch, name: str, contents: Iterator[str]) -> str | None:
    with files.upload(bounded=False) as upload:
        while some := list(islice(contents, _WRITTEN_LINES)):
            upload.write("".join(f"{content}\n" for content in some).encode())
        if not upload.num_bytes:
            return None
        return files.keep(
            upload,
            filename=f"{batch.id}_{name}.jsonl",
            purpose="batch_output",
            key_id=batch.key_id,
            id=f"file-{batch.id.removeprefix('batch_')}-{name}",
        ).id
