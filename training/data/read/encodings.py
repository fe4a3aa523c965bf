"""Text files: UTF-8, or UTF-16 or UTF-32 where the first bytes tell so. Other encodings are refused.

Encodings are not guessed: of twelve short tables in cp1252 (English, French, German, Spanish), charset-normalizer 3.5
recognised three and decoded four to wrong letters. Those would be learned silently.
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
    """Open a file as text for the block. Bytes that are not UTF-8 become lone surrogates: see `undecoded_byte`.

    Args:
        path: the file.
        newline: as for the built-in ``open``: ``""`` ends lines at ``\\n``, ``\\r`` and ``\\r\\n`` and leaves them
            unchanged; None translates each of them to ``\\n``.

    Raises:
        InvalidRequest: on opening or reading, if the file cannot be read or is not in the encoding of its first bytes.
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
    """Return the position (from 1) of the first byte of a line that was not UTF-8; None if all were."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return len(line[: error.start].encode()) + 1
    return None


def require_utf8(path: Path) -> None:
    """Check that a file is not in another encoding as a whole, such as cp1252.

    Single lines that are not UTF-8 pass if there is only one, or if another line has non-ASCII characters in UTF-8.
    They become bad rows later.

    Raises:
        InvalidRequest: naming the first line and byte that are not UTF-8.
        OSError: if the file cannot be read.
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
