"""The input file of a batch: checked as a whole before anything of it is answered, then read line by line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from graftwork.adapters.batches.batch import BatchError
from graftwork.adapters.errors import InvalidRequest
from graftwork.server.openai.batch_lines import BatchRequest, read_request

MAX_REQUESTS: Final = 50_000
"""OpenAI's limit."""

MAX_LINE_BYTES: Final = 8 << 20
"""As much as a route takes."""

MAX_ERRORS: Final = 100
"""So many wrong lines are told of; then the file is read no further."""


class BatchInput:
    """The input file of one batch.

    Args:
        path: The file.
        endpoint: What its requests are for.
    """

    def __init__(self, path: Path, endpoint: str) -> None:
        self._path = path
        self._endpoint = endpoint

    def check(self) -> tuple[int, list[BatchError]]:
        """Read the whole file.

        Returns:
            How many requests it has, and what is wrong with it.

        Raises:
            OSError: It cannot be read.
        """
        total = 0
        errors: list[BatchError] = []
        first_lines: dict[str, int] = {}
        for line, raw in self._lines():
            total += 1
            if total > MAX_REQUESTS:
                message = f"the file has more than {MAX_REQUESTS} requests: make several batches"
                return total, [BatchError(code="too_many_requests", message=message)]
            try:
                request = self._read(line, raw)
                first = first_lines.setdefault(request.custom_id, line)
                if first != line:
                    raise InvalidRequest(
                        f"custom_id is that of line {first}, too: results are told apart by it, so give each request "
                        "its own",
                        param="custom_id",
                        code="duplicate_custom_id",
                    )
            except InvalidRequest as error:
                errors.append(
                    BatchError(code=error.code or "invalid_value", message=error.message, line=line, param=error.param)
                )
                if len(errors) == MAX_ERRORS:
                    break
        if not total:
            errors.append(BatchError(code="empty_file", message="the file has no requests: write one on each line"))
        return total, errors

    def requests(self, *, without: Collection[int] = ()) -> Iterator[BatchRequest]:
        """The requests of a file that was checked, but for those of some lines."""
        for line, raw in self._lines():
            if line not in without:
                yield self._read(line, raw)

    def _read(self, line: int, raw: bytes) -> BatchRequest:
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidRequest(f"the line has more than {MAX_LINE_BYTES} bytes: shorten it", code="too_large")
        return read_request(line, raw, self._endpoint)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and bytes of the lines that are not blank; of one that is too long as much as shows that."""
        with self._path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 2):
                number += 1
                rest = raw
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 2)
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if stripped := raw.strip():
                    yield number, stripped
