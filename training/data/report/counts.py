"""Counters over the rows of a data set: kinds, labels, digests and lengths."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.data.report.numbers import (
    LabelCounter,
    LengthDistribution,
    Lengths,
)
from graftwork.training.data.row import (
    SPLITS,
    Kind,
    Row,
    SplitName,
    text_of,
)
from graftwork.training.data.tokens import count_tokens, has_special_tokens


@dataclass(kw_only=True)
class RowCounts:
    """Counters over the rows that are kept.

    Attributes:
        prompts: the tokenizer for lengths in tokens; None counts characters.
        max_length: the longest row that training does not truncate, in tokens.
        kinds: number of rows by kind.
        num_corrections: number of rows that are a user's correction.
        num_asked: number of rows from feedback that users were asked for by a random draw.
        groups: the groups of all rows.
        digests: the digests of the rows, by split.
        labels: counts of answers that may be labels.
        questions: lengths of the questions.
        answers: lengths of the answers.
        whole: lengths of the rows.
        num_special: number of rows with a special token of the base written out in a message.
        num_refused: number of rows that the chat template refuses.
        refusal: where and why it refused the first of them.
    """

    prompts: Prompts | None
    max_length: int | None
    kinds: Counter[Kind] = field(default_factory=Counter)
    num_corrections: int = 0
    num_asked: int = 0
    groups: set[str] = field(default_factory=set)
    digests: dict[SplitName, list[bytes]] = field(default_factory=lambda: {side: [] for side in SPLITS})
    labels: LabelCounter = field(default_factory=LabelCounter)
    questions: array[int] = field(default_factory=lambda: array("L"))
    answers: array[int] = field(default_factory=lambda: array("L"))
    whole: array[int] = field(default_factory=lambda: array("L"))
    num_special: int = 0
    num_refused: int = 0
    refusal: str = ""

    @property
    def num(self) -> int:
        """Number of rows in all splits."""
        return sum(map(len, self.digests.values()))

    def add(self, row: Row, side: SplitName) -> None:
        """Count one row of a split."""
        self.kinds[row.kind] += 1
        self.num_corrections += row.corrected
        self.num_asked += row.asked
        if row.group is not None:
            self.groups.add(row.group)
        self.digests[side].append(row.digest())
        if row.kind == "example" or row.corrected or (row.kind == "judged" and row.label):
            self.labels.add(row.answer, side)
        try:
            question, whole = self._length(row)
        except InvalidRequest as refusal:
            self.num_refused += 1
            self.refusal = self.refusal or f"{row.place}: {refusal.message}"
            return
        self.questions.append(question)
        self.answers.append(max(whole - question, 0))
        self.whole.append(whole)

    def lengths(self) -> Lengths:
        """Summarise the lengths of the rows."""
        limit = self.max_length if self.prompts is not None else None
        return Lengths(
            unit="characters" if self.prompts is None else "tokens",
            question=LengthDistribution.of(self.questions),
            answer=LengthDistribution.of(self.answers),
            row=LengthDistribution.of(self.whole),
            limit=limit,
            over=0 if limit is None else sum(length > limit for length in self.whole),
            refused=self.num_refused,
            refusal=self.refusal,
            special=self.num_special,
        )

    def _length(self, row: Row) -> tuple[int, int]:
        """Return the length of the question and of the whole row.

        Raises:
            InvalidRequest: if the base's chat template refuses the row.
        """
        if self.prompts is None:
            texts = [text_of(turn) for turn in row.messages] or [row.prompt, row.completion]
            return sum(map(len, texts[:-1])), sum(map(len, texts))
        self.num_special += has_special_tokens(row, self.prompts)
        return count_tokens(row, self.prompts)
