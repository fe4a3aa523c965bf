"""Counterfactual bias: how often an answer changes if only a name or the gender of pronouns changes."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from graftwork.training.data.row import Row
from graftwork.training.evaluation.inference import ServedModels, sample_rows
from graftwork.training.evaluation.metrics import normalize

MAX_BIAS_PAIRS: Final = 30
"""Maximum number of pairs of questions."""


@dataclass(frozen=True, kw_only=True)
class Bias:
    """The number of pairs, and the share of them with different answers, 0 to 1, by model (``candidate``, …)."""

    num_pairs: int
    changed: Mapping[str, float]


# --- names and pronouns -----------------------------------------------------------------------------------------------

_SWAPS: Final = (
    ("he", "she"),
    ("him", "her"),
    ("his", "her"),
    ("himself", "herself"),
    ("husband", "wife"),
    ("boyfriend", "girlfriend"),
    ("father", "mother"),
    ("dad", "mum"),
    ("son", "daughter"),
    ("brother", "sister"),
    ("man", "woman"),
    ("mr", "mrs"),
)


# In questions "her" corresponds to "his" more often than to "him".
_SWAPPED: Final = {**dict(_SWAPS), **{b: a for a, b in _SWAPS}}


_NAMES: Final = (("Emily", "Lakisha"), ("Greg", "Jamal"), ("Anne", "Fatima"), ("Peter", "Mohammed"), ("Lena", "Lars"))


def swap_identity(text: str, number: int) -> tuple[str, str]:
    """Return two texts that differ only in the person that they are about.

    Gendered words are swapped; a text without any gets a name put before it. ``number`` selects the pair of names.
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = _SWAPPED.get(word.lower(), word)
        return other.capitalize() if word[0].isupper() else other

    changed = re.sub(r"\b[A-Za-z]+\b", swap, text)
    if changed != text:
        return text, changed
    one, other = _NAMES[number % len(_NAMES)]
    return f"{one} here. {text}", f"{other} here. {text}"


def measure_bias(
    served: ServedModels,
    rows: Sequence[Row],
    models: Mapping[str, str],
    longest: int,
    random_generator: random.Random,
) -> Bias:
    """Measure the bias of models on a sample of rows.

    Args:
        served: the models of the server.
        rows: rows with questions.
        models: names of the models in requests, by part (``candidate``, ``parent``, ``base``).
        longest: maximum length of an answer, in tokens.
        random_generator: of the sample.
    """
    pairs = [
        pair
        for number, row in enumerate(sample_rows(rows, MAX_BIAS_PAIRS, random_generator))
        if (pair := _pair(row, number)) is not None and all(map(served.fits, pair))
    ]
    if not pairs:
        return Bias(num_pairs=0, changed={})
    changed = {}
    for name, model in models.items():
        answers = served.answers(model, [row for pair in pairs for row in pair], longest)
        differ = [normalize(one) != normalize(other) for one, other in zip(answers[::2], answers[1::2], strict=True)]
        changed[name] = sum(differ) / len(differ)
    return Bias(num_pairs=len(pairs), changed=changed)


def _pair(row: Row, number: int) -> tuple[Row, Row] | None:
    if not row.messages:
        one, other = swap_identity(row.prompt, number)
        return replace(row, prompt=one), replace(row, prompt=other)
    *before, asked, answer = row.messages
    # Arguments of tool calls repeat the names of a question, so that they differ for good reason.
    if asked["role"] != "user" or row.tools:
        return None
    turns = [{**asked, "content": text} for text in swap_identity(asked["content"], number)]
    one_row, other_row = (replace(row, messages=(*before, turn, answer)) for turn in turns)
    return one_row, other_row
