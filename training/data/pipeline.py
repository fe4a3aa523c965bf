"""The data pipeline: read → repair → mask → exact duplicates → conflicts → near duplicates → splits → report.

Rows go through a file on disk, so that memory holds some hundred bytes per row whatever its length. The result depends
only on the rows, their order and the policy, not on the process, the machine or the time.
"""

from __future__ import annotations

import hashlib
import json
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
from graftwork.training.data.kept import KeptRow, KeptRows
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
    Unusable,
    plain_words,
    set_digest,
)
from graftwork.training.data.splits import SplitKey, assign
from graftwork.training.data.spool import RowSpool

RowProgress = Callable[[str, int], None]
"""Callback that is called with the name of the current stage and the number of rows that it has processed."""

HOPELESS_AFTER: Final = 200
"""If the first rows of a source are all bad, reading stops after this many."""

_NUMBERS: Final = re.compile(r"\d+")

BAD_ROWS_SHOWN: Final = 100
"""Maximum number of bad rows that are kept with their reasons."""

EXAMPLES_SHOWN: Final = 20
"""Maximum number of conflicts, and of near duplicates, that the report shows."""

PROGRESS_EVERY: Final = 1_000
"""Rows between two calls of the progress callback."""


@dataclass(frozen=True, kw_only=True)
class PreparedDataSet:
    """The result of `prepare`. Its rows can be read until the block of `prepare` ends."""

    report: DataReport
    bad: tuple[BadRow, ...]
    """The first `BAD_ROWS_SHOWN` rows that could not be used."""

    policy: DataPolicy
    _spool: RowSpool
    _sides: Sequence[SplitName | None]
    _copied_from: Mapping[int, Sequence[str]]
    """Ids of the interactions that the exact duplicates of a row were made from, by the row's index in the spool."""
    _found: Callable[[], KeptRows]

    @property
    def kept(self) -> KeptRows:
        """What was found out about the rows, for a later `prepare` of the same ones."""
        return self._found()

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` over the set of rows, independent of their order and of the file format."""
        return self.report.digest

    def rows(self, side: SplitName | None = None) -> Iterator[Row]:
        """Yield the rows of one split, or of all splits, in the order of their sources."""
        for number, (row, own) in enumerate(zip(self._spool, self._sides, strict=True)):
            if own is not None and side in (None, own):
                # Whose words were said by another user, too, must still be found by both users' erasure.
                ids = dict.fromkeys((*row.interactions, *self._copied_from.get(number, ())))
                yield replace(row, split=own, interactions=tuple(ids))


@contextmanager
def prepare(
    sources: Sequence[Source],
    policy: DataPolicy | None = None,
    *,
    earlier: Mapping[int, SplitName] | None = None,
    kept: KeptRows | None = None,
    prompts: Prompts | None = None,
    max_length: int | None = None,
    on_progress: RowProgress = lambda title, num_rows: None,
) -> Iterator[PreparedDataSet]:
    """Make a data set from sources. The temporary file of its rows exists for the block.

    Args:
        sources: the sources. Of duplicate rows the first is kept, but a source of held-out rows comes before others.
        policy: the settings; the defaults if None.
        earlier: the split that earlier data had a question in, by `Row.question_key`; it is in that one again.
        kept: what was found out when the same sources were prepared before. Their rows are then neither cleaned nor
            compared again, and have the splits that they had; what was left out then, or is new, is left out.
        prompts: the tokenizer for lengths in tokens; without it lengths are in characters.
        max_length: the longest row that training does not truncate, in tokens.
        on_progress: called with the name of a stage and the number of rows processed.

    Yields:
        The rows with their splits, and the report.

    Raises:
        InvalidRequest: if a source cannot be read, if there is no usable row or too many bad ones, or if private data
            is found that the policy refuses.
        ConfigurationError: if the policy names a region or finder that does not exist.
    """
    policy = policy or DataPolicy()
    # Held-out rows first, so that they are the ones kept of duplicates.
    ordered = sorted(sources, key=lambda source: source.split not in ("test", "validation"))
    with tempfile.TemporaryDirectory(prefix="graftwork-data-") as folder:
        pipeline = _Pipeline(
            policy=policy,
            earlier=earlier or {},
            kept=None if kept is None else kept.by_raw_key(),
            prompts=prompts,
            max_length=max_length,
            spool=RowSpool(path=Path(folder, "rows.jsonl")),
            on_progress=on_progress,
        )
        pipeline.read(ordered)
        if kept is None:
            pipeline.resolve_conflicts()
            pipeline.find_near_duplicates()
            pipeline.assign_splits()
        yield pipeline.finish()


@dataclass(kw_only=True)
class _Pipeline:
    """A data set while it is made. Lists hold one value for each row in the spool, by its index there."""

    policy: DataPolicy
    earlier: Mapping[int, SplitName]
    kept: Mapping[int, tuple[SplitName, KeptRow]] | None
    prompts: Prompts | None
    max_length: int | None
    spool: RowSpool
    on_progress: RowProgress

    fates: Counter[RowOutcome] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)
    expired: list[BadRow] = field(default_factory=list)
    sources: list[SourceReport] = field(default_factory=list)
    private: PrivateCounts = field(init=False)
    num_repaired: int = 0
    num_personal_in_system: int = 0

    raw_keys: array[int] = field(default_factory=lambda: array("Q"))
    same_keys: array[int] = field(default_factory=lambda: array("Q"))
    question_keys: array[int] = field(default_factory=lambda: array("Q"))
    changed: array[int] = field(default_factory=lambda: array("B"))
    places: list[SplitKey] = field(default_factory=list)
    tasks: array[int] = field(default_factory=lambda: array("Q"))
    verdicts: array[int] = field(default_factory=lambda: array("Q"))
    exact_parts: array[int] = field(default_factory=lambda: array("Q"))
    copies: array[int] = field(default_factory=lambda: array("L"))
    copied_from: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    judged_copies: list[tuple[int, int, bool]] = field(default_factory=list)
    excluded: dict[int, RowOutcome] = field(default_factory=dict)
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
        # Most rows have the same system message.
        self._personal_in_system = lru_cache(maxsize=64)(self._finder.personal)

    # --- first pass: row by row ---------------------------------------------------------------------------------------

    def read(self, sources: Sequence[Source]) -> None:
        """First pass: clean the rows, drop exact duplicates, and write the remaining rows to the spool."""
        seen: dict[tuple[int, SplitName | None], int] = {}
        with self.spool.writing() as write:
            for source in sources:
                rows = bad = expired = 0
                for row in source.rows():
                    if isinstance(row, BadRow):
                        self._add_bad(row)
                        expired += row.expired
                        bad += not row.expired
                        if bad == HOPELESS_AFTER and not rows:
                            raise no_usable_rows(source.title, self.bad)
                        continue
                    rows += 1
                    self._add(row, seen, write)
                    if rows % PROGRESS_EVERY == 0:
                        self.on_progress(f"Reading {source.title}", rows)
                self.sources.append(
                    SourceReport(
                        name=source.title,
                        digest=source.digest,
                        rows=rows,
                        bad=bad,
                        expired=expired,
                        formats=dict(source.formats),
                        columns=source.mapped,
                    )
                )
        self._refuse_if_bad(" and ".join(source.title for source in sources))

    def _add_bad(self, row: BadRow) -> None:
        shown = self.expired if row.expired else self.bad
        self.fates["expired" if row.expired else "bad"] += 1
        if len(shown) < BAD_ROWS_SHOWN:
            shown.append(row)

    def _add(self, row: Row, seen: dict[tuple[int, SplitName | None], int], write: Callable[[Row], None]) -> None:
        raw = row.raw_key()
        kept = None if self.kept is None else self.kept.get(raw)
        if self.kept is not None and kept is None:
            return
        try:
            cleaned = row if kept is not None and not kept[1].changed else self._clean(row)
        except Unusable as problem:
            self._add_bad(problem.bad_row(row.source, row.line))
            return
        if cleaned is None:
            self.fates["private"] += 1
            return
        is_changed = cleaned is not row
        row = cleaned
        same = row.same_key()
        key = (same, row.split if kept is None else None)
        if (first := seen.setdefault(key, self.spool.num)) != self.spool.num:
            self.fates["same"] += 1
            self.copies[first] += 1
            if row.interactions:
                self.copied_from[first] += row.interactions
                self.judged_copies.append((first, raw, is_changed))
            return
        write(row)
        question = row.question_key()
        self.raw_keys.append(raw)
        self.same_keys.append(same)
        self.question_keys.append(question)
        self.changed.append(is_changed)
        self.copies.append(1)
        if kept is not None:
            self.sides.append(kept[0])
            return
        self.places.append(
            SplitKey(question=question, group=row.group, given=row.split, earlier=self.earlier.get(question))
        )
        self.tasks.append(row.task_key())
        self.verdicts.append(_hash64(row.verdict()))
        self.exact_parts.append(_hash64(_exact_parts(row)))
        if self.policy.near is not None:
            self.common.count(shingles(row.question))

    def _clean(self, row: Row) -> Row | None:
        """Return the row repaired and masked; None if the policy drops it, or nothing but private data told its answers
        apart.

        Raises:
            Unusable: if nothing but broken text did.
        """
        if self.policy.repair:
            repaired = row.with_texts(lambda role, text: repair(text))
            self.num_repaired += repaired is not row
            row = repaired
            if _answers_alike(row):
                raise Unusable("the chosen and the rejected answer are the same once broken text is repaired")
        policy, finder = self.policy, self._finder
        kinds: list[str] = []
        kept: list[Finding] = []

        def apply_action(text: str, found: Sequence[Finding], action: Action) -> str:
            kinds.extend(finding.kind for finding in found)
            return mask(text, found) if action == "mask" else text

        def clean_text(role: str, text: str) -> str:
            # Secrets first, so that digits inside a key are not taken for a phone number.
            text = apply_action(text, finder.secrets(text), policy.secrets)
            if role not in OPERATORS:
                return apply_action(text, finder.personal(text), policy.personal)
            found = self._personal_in_system(text)
            if policy.clean_system:
                return apply_action(text, found, policy.personal)
            kept.extend(found)
            return text

        row = row.with_texts(clean_text)
        self.num_personal_in_system += bool(kept)
        if kinds:
            self.private.add(kinds, row.place)
            actions = {policy.secrets if kind == SECRET else policy.personal for kind in kinds}
            if "drop" in actions or _answers_alike(row):
                return None
        return row

    def _refuse_if_bad(self, name: str) -> None:
        num_bad, num_good = self.fates["bad"], self.spool.num
        if not num_good and not self.fates["private"]:
            raise no_usable_rows(name, self.bad or self.expired)
        if self.kept is not None:
            return  # they passed before
        # Without what has expired, which is no sign that something is wrong with the others.
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

    # --- rows compared with each other --------------------------------------------------------------------------------

    def resolve_conflicts(self) -> None:
        """Find rows of the same task with different verdicts, and apply the policy for conflicts."""
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
                    self.excluded[number] = "conflict"

    def find_near_duplicates(self) -> None:
        """Second pass: find near duplicates, and exclude the later row of each pair."""
        if self.policy.near is None:
            return
        questions = Signatures(self.policy.near)
        answers = Signatures(self.policy.near, searchable=False)
        words, long_answer = array("Q"), array("l")
        for number, row in enumerate(self.spool):
            questions.add(self.common.without(shingles(row.question)))
            # Short answers must be equal, since they may differ in one letter only.
            answer = _compared_answer(row)
            words.append(_hash64(answer))
            is_long = len(answer) > MAX_LABEL_CHARS
            long_answer.append(len(answers) if is_long else -1)
            if is_long:
                answers.add(shingles(answer))
            if number % PROGRESS_EVERY == 0:
                self.on_progress("Comparing", number)
        for one, other in questions.near():
            if self.excluded.keys() & {one, other}:
                continue
            self.pairs.append((one, other))
            if self.exact_parts[one] != self.exact_parts[other] or self.places[one].given != self.places[other].given:
                continue
            both_long = long_answer[one] >= 0 and long_answer[other] >= 0
            if words[one] == words[other] or (both_long and answers.similar(long_answer[one], long_answer[other])):
                self.excluded[other] = "near"
                self.twins.append((one, other))
                if self.places[one].earlier is None:
                    self.places[one] = replace(self.places[one], earlier=self.places[other].earlier)
            elif not both_long and self.tasks[one] != self.tasks[other]:
                self.near_conflicts.append((one, other))

    def assign_splits(self) -> None:
        """Assign the rows that are not excluded to splits; exclude those whose question is on another side."""
        numbers = [number for number in range(self.spool.num) if number not in self.excluded]
        index_of = {number: index for index, number in enumerate(numbers)}
        pairs = [(index_of[one], index_of[other]) for one, other in self.pairs if {one, other} <= index_of.keys()]
        self.sides = [None] * self.spool.num
        sides = assign([self.places[number] for number in numbers], pairs, self.policy.shares)
        for number, side in zip(numbers, sides, strict=True):
            self.sides[number] = side
            if side is None:
                self.excluded[number] = "held_out"

    # --- the report ---------------------------------------------------------------------------------------------------

    def finish(self) -> PreparedDataSet:
        """Third pass: count the rows and build the report."""
        counts = RowCounts(prompts=self.prompts, max_length=self.max_length)
        excerpts = RowExcerpts({number for pair in self._shown() for number in pair})
        for number, (row, side) in enumerate(zip(self.spool, self.sides, strict=True)):
            excerpts.add(number, row)
            if side is not None:
                counts.add(row, side)
            if number % PROGRESS_EVERY == 0:
                self.on_progress("Counting", number)
        fates = self.fates + Counter(self.excluded.values())
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
            asked=counts.num_asked,
            users=len(counts.groups),
            sides={side: len(counts.digests[side]) for side in SPLITS},
            side_digests={side: set_digest(counts.digests[side]) for side in SPLITS},
            digest=set_digest([digest for side in SPLITS for digest in counts.digests[side]]),
            lengths=counts.lengths(),
            labels=counts.labels.found(),
            num_conflicts=len(self.conflicting),
            conflicts=tuple(excerpts.conflict(numbers) for numbers in self.conflicting[:EXAMPLES_SHOWN]),
            conflict_action=self.policy.conflicts,
            twins=tuple(excerpts.near_duplicates(*pair) for pair in self.twins[:EXAMPLES_SHOWN]),
            num_near_conflicts=0,
            near_conflicts=(),
            shares={
                "train": 1 - shares.validation - shares.test,
                "validation": shares.validation,
                "test": shares.test,
            },
        )
        if report.labels:
            # Only for labels: free-form answers to similar questions are expected to differ.
            remaining = [pair for pair in self.near_conflicts if not self.excluded.keys() & set(pair)]
            shown = tuple(excerpts.near_duplicates(*pair) for pair in remaining[:EXAMPLES_SHOWN] if excerpts.has(*pair))
            report = replace(report, num_near_conflicts=len(remaining), near_conflicts=shown)
        return PreparedDataSet(
            report=replace(report, notes=notes(report)),
            bad=tuple(self.bad),
            policy=self.policy,
            _spool=self.spool,
            _sides=self.sides,
            _copied_from=self.copied_from,
            _found=self.kept_rows,
        )

    def kept_rows(self) -> KeptRows:
        """What was found out about the rows that are kept."""
        by_side: dict[SplitName, list[KeptRow]] = {side: [] for side in SPLITS}
        firsts = zip(range(self.spool.num), self.raw_keys, map(bool, self.changed), strict=True)
        # Copies, too, whose interactions belong to the row.
        for number, raw, changed in (*firsts, *self.judged_copies):
            if (side := self.sides[number]) is not None:
                by_side[side].append(KeptRow(raw, self.same_keys[number], self.question_keys[number], changed))
        return KeptRows(sides=by_side)

    def _shown(self) -> Iterator[Sequence[int]]:
        yield from self.conflicting[:EXAMPLES_SHOWN]
        yield from self.twins[:EXAMPLES_SHOWN]
        yield from self.near_conflicts[: 5 * EXAMPLES_SHOWN]


def _answers_alike(row: Row) -> bool:
    """Whether a row prefers an answer to the same one."""
    return row.rejected is not None and row.answer.split() == row.rejected_answer.split()


def _compared_answer(row: Row) -> str:
    """What near duplicates must nearly agree in beside the question: the answers, or what graders are told. A text
    alone has none."""
    match row.kind:
        case "text":
            return ""
        case "question":
            return json.dumps(row.item, sort_keys=True)
        case _:
            return plain_words(f"{row.answer}\n{row.rejected_answer}")


def _exact_parts(row: Row) -> str:
    """The parts that must be equal in near duplicates: feedback, system message, tools, and the numbers in the
    question, which tell two orders, amounts or dates apart."""
    numbers = "" if row.kind == "text" else " ".join(_NUMBERS.findall(row.question))
    return f"{row.kind}\0{row.label}\0{row.score}\0{numbers}\0{plain_words(row.setting)}"


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
