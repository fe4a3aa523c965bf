"""Files opened as text: UTF-8, or UTF-16 or UTF-32 where the first bytes say so. Any other encoding is refused.

None is guessed: of twelve short tables in cp1252 (English, French, German, Spanish) charset-normalizer 3.5 named three
rightly and made wrong letters of four. Wrong letters would be learned without a word, and a refusal costs a minute.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from graftwork.adapters.errors import InvalidRequest

BOM: Final = "\ufeff"
"""The byte order mark, decoded."""

_CHUNK: Final = 1 << 20


@contextmanager
def open_text(path: Path, *, newline: str | None = "") -> Iterator[TextIO]:
    """The file as text, for the block. Bytes that are not UTF-8 become lone surrogates: see `undecoded_byte`.

    Args:
        newline: as of the built-in ``open``: ``""`` ends lines at ``\\n``, ``\\r`` and ``\\r\\n`` and leaves them as
            they are; None makes each of them ``\\n``.

    Raises:
        InvalidRequest: while it is opened or read, for a file that cannot be read or is not in the encoding that it
            begins with.
    """
    encoding = ""
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
            file.seek(0)
            errors = "surrogateescape" if _is_utf8(encoding) else "strict"
            with io.TextIOWrapper(file, encoding, errors=errors, newline=newline) as text:
                yield text
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{path} begins as {encoding.upper()} and does not go on so ({error.reason}): save the file as UTF-8.",
            param="data",
        ) from error
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}.", param="data") from error


def undecoded_byte(line: str) -> int | None:
    """The first byte of a line (from 1) that was not UTF-8; None where all were."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return len(line[: error.start].encode()) + 1
    return None


def require_utf8(path: Path) -> None:
    """Refuses a file that is in another encoding as a whole, such as cp1252.

    A single line that is not UTF-8, or some among lines that are, beyond ASCII, is left to the reader: these rows are
    bad, the others are not.

    Raises:
        InvalidRequest: with the first line and byte that are not UTF-8.
    """
    with path.open("rb") as file:
        if not _is_utf8(json.detect_encoding(file.read(4))):
            return
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
        else:
            return
    broken: list[tuple[int, int]] = []
    with open_text(path) as text:
        number, begins_line = 0, True
        while piece := text.readline(_CHUNK):
            number += begins_line
            begins_line = piece.endswith(("\n", "\r"))
            if piece.isascii():
                continue
            byte = undecoded_byte(piece.removeprefix(BOM))
            if byte is None:
                return
            broken.append((number, byte))
    if len(broken) > 1:
        line, byte = broken[0]
        raise InvalidRequest(
            f"{path} is not UTF-8: the first byte of another encoding is byte {byte} of line {line}, and so with "
            f"{len(broken):,} lines. Save the file as UTF-8.",
            param="data",
        )


def _is_utf8(encoding: str) -> bool:
    return encoding.startswith("utf-8")
