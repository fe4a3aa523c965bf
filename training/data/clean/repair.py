"""Repair of broken text: wrongly decoded characters, control characters, line ends; by ``ftfy``.

Quotes, ligatures, full-width letters and HTML entities are left as they are, since a model may have to read or write
them.
"""

from __future__ import annotations

import re
from typing import Final

import ftfy

_CONFIG: Final = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization="NFC",
    explain=False,
)
_PLAIN_ASCII: Final = re.compile(r"[\t\n\x20-\x7e]*")


def repair(text: str) -> str:
    """Return the repaired text; the same object if there is nothing to repair."""
    if _PLAIN_ASCII.fullmatch(text):
        return text
    fixed = ftfy.fix_text(text, _CONFIG)
    return text if fixed == text else fixed
