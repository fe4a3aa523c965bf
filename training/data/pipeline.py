"""Sources in, a data set out: read → repair → mask → same rows → conflicts → near rows → sides → report.

Rows go through a file on disk, so that what is in memory is some hundred bytes a row, whatever is in it. The outcome
depends on the rows, their order and the policy alone: not on the process, the machine or the time.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.data.bad_rows import first_problems, no_usable_rows
from graftwork.training.data.clean.duplicates import CommonShingles, Signatures, shingles
from graftwork.training.data.clean.findings import Finding, mask
from graftwork.training.data.clean.private import Action, Finder
from graftwork.training.data.clean.repair import repair
from graftwork.training.data.clean.secrets import SECRET
from graftwork.training.data.policy import FEW_BAD_ROWS, DataPolicy
from graftwork.training.data.read.source import Source
from graftwork.training.data.report.counts import RowCounts
from graftwork.training.data.report.excerpts import RowExcerpts
from graftwork.training.data.report.numbers import (
    MAX_LABEL_CHARS,
    DataReport,
    PrivateCounts,
    RowOutcome,
    SourceReport,
    notes,
)
from graftwork.training.data.row import (
    OPERATORS,
    SPLITS,
    BadRow,
    Row,
    SplitName,
    is_system,
    plain_words,
    set_digest,
)
from graftwork.training.data.splits import SplitKey, assign
from graftwork.training.data.spool import RowSpool

RowProgress = Callable[[str, int], None]
"""Told now and then what is being done, and how many rows are through."""

HOPELESS_AFTER: Final = 200
"""When so many rows at the start of a source are all bad, the rest is not read."""

_NUMBERS: Final = re.compile(r"\d+")

BAD_ROWS_SHOWN: Final = 100


EXAMPLES_SHOWN: Final = 20


PROGRESS_EVERY: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class PreparedDataSet:
    """A data set that is ready, as long as the block that prepared it runs."""

    report: DataReport
    bad: tuple[BadRow, ...]
    """Every row that could not be used, as far as `BAD_ROWS_SHOWN` goes."""

    policy: DataPolicy
    _spool: RowSpool
    _sides: Sequence[SplitName | None]

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` over the set of rows: the same in any order and in any file format."""
        return self.report.digest

    def rows(self, side: SplitName | None = None) -> Iterator[Row]:
        """The rows of a side, or all of them, in the order of their sources."""
        for row, own in zip(self._spool, self._sides, strict=True):
            if own is not None and side in (None, own):
                yield replace(row, split=own)


@contextmanager
def prepare(
    sources: Sequence[Source],
    policy: DataPolicy | None = None,
    *,
    earlier: Mapping[int, SplitName] | None = None,
    prompts: Prompts | None = None,
    max_length: int | None = None,
    on_progress: RowProgress = lambda title, num_rows: None,
) -> Iterator[PreparedDataSet]:
    """Make a data set of some sources; it lasts for the block.

    Args:
        sources: in the order that says which of two rows that say the same is kept.
        earlier: on which side an earlier version of the data set had a question (`Row.question_key`).
        prompts: counts lengths in the base's tokens; without, they are in characters.
        max_length: the longest row that will be trained on whole, in tokens.

    Raises InvalidRequest when a source cannot be read, when there is no usable row or there are too many bad ones, and
    when there is what the policy refuses.
    """
    policy = policy or DataPolicy()
    # Held-out rows first: of two that say the same it is they who stay.
    ordered = sorted(sources, key=lambda source: source.split not in ("test", "validation"))
    with tempfile.TemporaryDirectory(prefix="graftwork-data-") as folder:
        making = _Pipeline(
            policy=policy,
            earlier=earlier or {},
            prompts=prompts,
            max_length=max_length,
            spool=RowSpool(path=Path(folder, "rows.jsonl")),
            on_progress=on_progress,
        )
        making.read(ordered)
        making.settle_conflicts()
        making.find_near_duplicates()
        making.assign_splits()
        yield making.tell()


@dataclass(kw_only=True)
class _Pipeline:
    """A data set while it is made: what is known of each row that is on disk, by its number."""

    policy: DataPolicy
    earlier: Mapping[int, SplitName]
    prompts: Prompts | None
    max_length: int | None
    spool: RowSpool
    on_progress: RowProgress

    fates: Counter[RowOutcome] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)
    sources: list[SourceReport] = field(default_factory=list)
    private: PrivateCounts = field(init=False)
    num_repaired: int = 0
    num_personal_in_system: int = 0

    places: list[SplitKey] = field(default_factory=list)
    tasks: array[int] = field(default_factory=lambda: array("Q"))
    verdicts: array[int] = field(default_factory=lambda: array("Q"))
    frames: array[int] = field(default_factory=lambda: array("Q"))
    copies: array[int] = field(default_factory=lambda: array("L"))
    gone: dict[int, RowOutcome] = field(default_factory=dict)
    conflicting: list[list[int]] = field(default_factory=list)
    common: CommonShingles = field(default_factory=CommonShingles)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)
    near_conflicts: list[tuple[int, int]] = field(default_factory=list)
    sides: list[SplitName | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy = self.policy
        self.private = PrivateCounts(action={SECRET: policy.secrets, "personal": policy.personal})
        self._finder = Finder(region=policy.region, keep=policy.keep, own=policy.finder)
        # A system message is mostly the same in all rows.
        self._personal_in_system = lru_cache(maxsize=64)(self._finder.personal)

    # --- first pass: row by row ---------------------------------------------------------------------------------------

    def read(self, sources: Sequence[Source]) -> None:
        """Everything that can be said of a row by itself; what is left of the rows is on disk afterwards."""
        seen: dict[tuple[int, SplitName | None], int] = {}
        with self.spool.writing() as write:
            for source in sources:
                rows = bad = 0
                for row in source.rows():
                    if isinstance(row, BadRow):
                        bad += 1
                        self.fates["bad"] += 1
                        if len(self.bad) < BAD_ROWS_SHOWN:
                            self.bad.append(row)
                        if bad == HOPELESS_AFTER and not rows:
                            raise no_usable_rows(source.title, self.bad)
                        continue
                    rows += 1
                    self._take(row, seen, write)
                    if rows % PROGRESS_EVERY == 0:
                        self.on_progress(f"Reading {source.title}", rows)
                self.sources.append(
                    SourceReport(
                        name=source.title,
                        digest=source.digest,
                        rows=rows,
                        bad=bad,
                        formats=dict(source.formats),
                        columns=source.mapped,
                    )
                )
        self._refuse_if_bad(" and ".join(source.title for source in sources))

    def _take(self, row: Row, seen: dict[tuple[int, SplitName | None], int], write: Callable[[Row], None]) -> None:
        cleaned = self._clean(row)
        if cleaned is None:
            self.fates["private"] += 1
            return
        row = cleaned
        key = (row.same_key(), row.split)
        if (first := seen.setdefault(key, self.spool.num)) != self.spool.num:
            self.fates["same"] += 1
            self.copies[first] += 1
            return
        write(row)
        question = row.question_key()
        self.places.append(
            SplitKey(question=question, group=row.group, given=row.split, earlier=self.earlier.get(question))
        )
        self.tasks.append(row.task_key())
        self.verdicts.append(_hash64(row.verdict()))
        self.frames.append(_hash64(_frame(row)))
        self.copies.append(1)
        if self.policy.near is not None:
            self.common.count(shingles(row.question))

    def _clean(self, row: Row) -> Row | None:
        """The row repaired and masked; None if it may not be learned from."""
        if self.policy.repair:
            repaired = row.with_texts(lambda role, text: repair(text))
            self.num_repaired += repaired is not row
            row = repaired
        policy, finder = self.policy, self._finder
        kinds: list[str] = []
        kept: list[Finding] = []

        def treated(text: str, found: Sequence[Finding], action: Action) -> str:
            kinds.extend(finding.kind for finding in found)
            return mask(text, found) if action == "mask" else text

        def masked(role: str, text: str) -> str:
            # Secrets first: what is in them is no phone number.
            text = treated(text, finder.secrets(text), policy.secrets)
            if role not in OPERATORS:
                return treated(text, finder.personal(text), policy.personal)
            found = self._personal_in_system(text)
            if policy.clean_system:
                return treated(text, found, policy.personal)
            kept.extend(found)
            return text

        row = row.with_texts(masked)
        self.num_personal_in_system += bool(kept)
        if kinds:
            self.private.add(kinds, row.place)
            actions = {policy.secrets if kind == SECRET else policy.personal for kind in kinds}
            if "drop" in actions:
                return None
        return row

    def _refuse_if_bad(self, name: str) -> None:
        num_bad, num_good = self.fates["bad"], self.spool.num
        if not num_good and not self.fates["private"]:
            raise no_usable_rows(name, self.bad)
        num_read = num_bad + num_good + self.fates["same"] + self.fates["private"]
        if num_bad > max(FEW_BAD_ROWS, self.policy.max_bad * num_read):
            raise InvalidRequest(
                f"{num_bad:,} of the {num_read:,} rows of {name} cannot be used "
                f"({first_problems(self.bad)}). Correct them, or "
                "allow more with --max-bad.",
                param="data",
                code="too_many_bad_rows",
            )
        refused = [found for found in self.private.found() if found.action == "refuse"]
        if refused:
            what = "; ".join(
                f"{found.findings:,} × {found.kind} in {found.rows:,} row{'s' * (found.rows != 1)}, first at "
                f"{', '.join(found.places[:3])}"
                for found in refused
            )
            raise InvalidRequest(
                f"{name} holds private data, which the policy refuses: {what}. Take it out, or let it be masked.",
                param="data",
                code="private_data",
            )

    # --- between the passes: rows beside each other -------------------------------------------------------------------

    def settle_conflicts(self) -> None:
        """Finds rows of one task that say different things, and does with them what the policy says."""
        first: dict[int, int] = {}
        differing: defaultdict[int, list[int]] = defaultdict(list)
        for number, task in enumerate(self.tasks):
            if (earliest := first.setdefault(task, number)) != number:
                differing[earliest].append(number)
        for earliest, others in differing.items():
            numbers = [earliest, *others]
            counts: Counter[int] = Counter()
            for number in numbers:
                counts[self.verdicts[number]] += self.copies[number]
            if len(counts) == 1:
                continue
            self.conflicting.append(numbers)
            if self.policy.conflicts == "keep":
                continue
            (best, most), (_, next_most) = counts.most_common(2)
            keeps_best = self.policy.conflicts == "majority" and most > next_most
            for number in numbers:
                if not (keeps_best and self.verdicts[number] == best):
                    self.gone[number] = "conflict"

    def find_near_duplicates(self) -> None:
        """Second pass: finds rows that are nearly the same, and leaves the later ones out."""
        if self.policy.near is None:
            return
        questions = Signatures(self.policy.near)
        answers = Signatures(self.policy.near, searchable=False)
        words, long_answer = array("Q"), array("l")
        for number, row in enumerate(self.spool):
            questions.add(self.common.without(shingles(row.question)))
            # Texts are nothing but what they ask. Of short answers one letter may be all the difference.
            said = "" if row.kind == "text" else plain_words(f"{row.answer}\n{row.rejected or ''}")
            words.append(_hash64(said))
            is_long = len(said) > MAX_LABEL_CHARS
            long_answer.append(len(answers) if is_long else -1)
            if is_long:
                answers.add(shingles(said))
            if number % PROGRESS_EVERY == 0:
                self.on_progress("Comparing", number)
        for one, other in questions.near():
            if self.gone.keys() & {one, other}:
                continue
            self.pairs.append((one, other))
            if self.frames[one] != self.frames[other] or self.places[one].given != self.places[other].given:
                continue
            both_long = long_answer[one] >= 0 and long_answer[other] >= 0
            if words[one] == words[other] or (both_long and answers.similar(long_answer[one], long_answer[other])):
                self.gone[other] = "near"
                self.twins.append((one, other))
            elif not both_long and self.tasks[one] != self.tasks[other]:
                self.near_conflicts.append((one, other))

    def assign_splits(self) -> None:
        numbers = [number for number in range(self.spool.num) if number not in self.gone]
        among = {number: place for place, number in enumerate(numbers)}
        pairs = [(among[one], among[other]) for one, other in self.pairs if one in among and other in among]
        self.sides = [None] * self.spool.num
        sides = assign([self.places[number] for number in numbers], pairs, self.policy.shares)
        for number, side in zip(numbers, sides, strict=True):
            self.sides[number] = side
            if side is None:
                self.gone[number] = "held_out"

    # --- third pass: what it has become -------------------------------------------------------------------------------

    def tell(self) -> PreparedDataSet:
        counts = RowCounts(prompts=self.prompts, max_length=self.max_length)
        texts = RowExcerpts({number for pair in self._shown() for number in pair})
        for number, (row, side) in enumerate(zip(self.spool, self.sides, strict=True)):
            texts.see(number, row)
            if side is not None:
                counts.add(row, side)
            if number % PROGRESS_EVERY == 0:
                self.on_progress("Counting", number)
        fates = self.fates + Counter(self.gone.values())
        fates["kept"] = counts.num
        shares = self.policy.shares
        report = DataReport(
            sources=tuple(self.sources),
            fates=dict(fates),
            bad=tuple(self.bad),
            repaired=self.num_repaired,
            found=self.private.found(),
            personal_in_system=self.num_personal_in_system,
            kinds=dict(counts.kinds),
            corrections=counts.num_corrections,
            users=len(counts.groups),
            sides={side: len(counts.digests[side]) for side in SPLITS},
            side_digests={side: set_digest(counts.digests[side]) for side in SPLITS},
            digest=set_digest([digest for side in SPLITS for digest in counts.digests[side]]),
            lengths=counts.lengths(),
            labels=counts.labels.found(),
            num_conflicts=len(self.conflicting),
            conflicts=tuple(texts.conflict(numbers) for numbers in self.conflicting[:EXAMPLES_SHOWN]),
            conflict_action=self.policy.conflicts,
            twins=tuple(texts.twins(*pair) for pair in self.twins[:EXAMPLES_SHOWN]),
            num_near_conflicts=0,
            near_conflicts=(),
            shares={
                "train": 1 - shares.validation - shares.test,
                "validation": shares.validation,
                "test": shares.test,
            },
        )
        if report.labels:
            # Of free texts it is no wonder that they differ.
            left = [pair for pair in self.near_conflicts if not self.gone.keys() & set(pair)]
            shown = tuple(texts.twins(*pair) for pair in left[:EXAMPLES_SHOWN] if texts.knows(*pair))
            report = replace(report, num_near_conflicts=len(left), near_conflicts=shown)
        return PreparedDataSet(
            report=replace(report, notes=notes(report)),
            bad=tuple(self.bad),
            policy=self.policy,
            _spool=self.spool,
            _sides=self.sides,
        )

    def _shown(self) -> Iterator[Sequence[int]]:
        yield from self.conflicting[:EXAMPLES_SHOWN]
        yield from self.twins[:EXAMPLES_SHOWN]
        yield from self.near_conflicts[: 5 * EXAMPLES_SHOWN]


def _frame(row: Row) -> str:
    """What must be equal in rows that are the same: everything but the wording. A number is no wording: in an order, an
    amount or a date it is all the difference."""
    before = "\n".join(turn["content"] for turn in row.messages if is_system(turn))
    numbers = "" if row.kind == "text" else " ".join(_NUMBERS.findall(row.question))
    return f"{row.kind}\0{row.label}\0{row.score}\0{numbers}\0{plain_words(before)}"


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
