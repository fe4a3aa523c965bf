"""Broken text made whole: wrongly decoded characters, control characters, line ends. What could be meant stays.

``ftfy`` does the work. Quotes, ligatures, wide letters and HTML entities are left as they are: a model may be meant to
read or write them.
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
_SOUND: Final = re.compile(r"[\t\n\x20-\x7e]*")


def repair(text: str) -> str:
    """The text as it was meant; the same object where nothing is wrong with it."""
    if _SOUND.fullmatch(text):
        return text
    fixed = ftfy.fix_text(text, _CONFIG)
    return text if fixed == text else fixed
