"""Records for tests of data sets."""

from __future__ import annotations

import random
import re
from typing import Any

WORDS = re.findall(r"\w+", "parcel box coffee grinder voucher login invoice address refund label swap pause")


def question(number: int) -> str:
    """Questions that no two of are near each other."""
    words = random.Random(number)
    return " ".join([*words.choices(WORDS, k=12), *(f"{words.getrandbits(40):x}" for _ in range(6))])


def pair(asked: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"prompt": asked, "completion": answer, **more}
