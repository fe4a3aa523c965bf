"""Untrusted regular expressions, matched in bounded time.

PEFT matches the patterns of an adapter's config with Python's ``re``, which backtracks: ``(a+)+$`` against forty
letters would take longer than a lifetime, and no inspection of a pattern's text finds all bad ones. So a pattern is
parsed by Python's own parser (its syntax is exactly ``re``'s) but matched without backtracking: a walk through the
parsed tree carries along the set of all positions in the name that a match may have reached. A :class:`Budget` bounds
the work of all patterns of a config together.

The walk answers whether there is a match, which is all that PEFT needs. What goes beyond regular languages, or depends
on the order in which ``re`` tries alternatives (back references, look-behind, atomic groups, possessive repeats,
flags), is refused. Names without operators, as PEFT itself writes them, cannot backtrack and are matched by ``re``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.names import escaped

_MAX_LENGTH = 2000  # characters
_MAX_DEPTH = 30  # groups in groups
_PLAIN = re.compile(r"(?:[\w.^$-]|\\[.-])*", re.ASCII)

# The parser that re.compile runs. It has no public name, but its trees have kept their form since Python 3.11.
_parser: Any = importlib.import_module("re._parser")

_Places = frozenset[int]
_Step = Callable[["_Walk", _Places], _Places]
_Steps = tuple[_Step, ...]
_Character = Callable[[str], bool]


class _Unusable(Exception):
    """Continues the sentence "the pattern …"."""


class Budget:
    """The work that all patterns of one config may take together: five million steps are a few seconds."""

    def __init__(self, steps: int = 5_000_000) -> None:
        self._steps = steps

    def spend(self, steps: int) -> None:
        """Count steps. An internal error, which ``BoundedPattern`` turns into InvalidAdapter, if they are used up."""
        self._steps -= steps
        if self._steps < 0:
            raise _Unusable("takes too long to match, with the others of this config: write simpler or fewer ones")


class BoundedPattern:
    """A pattern that is matched in bounded time.

    Args:
        text: The pattern.
        source: Where it is, for messages.
        template: An expression into which ``text`` is inserted at ``{}``, as PEFT does.
        budget: Shared with the other patterns of the config.

    Raises:
        InvalidAdapter: It is invalid or not supported; so do its methods if it takes too much work.
    """

    def __init__(self, text: str, *, source: str, template: str = "{}", budget: Budget) -> None:
        self._text = text
        self._source = source
        self._budget = budget
        expression = template.replace("{}", text)
        self._plain = re.compile(expression) if _PLAIN.fullmatch(text) and len(text) <= _MAX_LENGTH else None
        if self._plain is None:
            with self._naming():
                _parse(text)  # by itself too: "a)(b" is no expression, even if a template makes it one
                self._steps = _parse(expression)

    def match(self, name: str) -> bool:
        """Whether ``re.match(pattern, name)`` would match."""
        with self._naming():
            if self._plain is None:
                return bool(_Walk(name, self._budget).ends(self._steps, frozenset((0,))))
            self._budget.spend(1)
            return self._plain.match(name) is not None

    def fullmatch(self, name: str) -> bool:
        """Whether ``re.fullmatch(pattern, name)`` would match."""
        with self._naming():
            if self._plain is None:
                return len(name) in _Walk(name, self._budget).ends(self._steps, frozenset((0,)))
            self._budget.spend(1)
            return self._plain.fullmatch(name) is not None

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except _Unusable as error:
            message = f"{self._source}: the pattern {escaped(self._text)} {error}."
            raise InvalidAdapter(message, param=self._source) from None


class _Walk:
    """The matching of one name: from the positions where something may start to those where it can end."""

    def __init__(self, name: str, budget: Budget) -> None:
        self.name = name
        self._budget = budget
        self._ahead: dict[tuple[_Steps, int], bool] = {}

    def ends(self, steps: _Steps, starts: _Places) -> _Places:
        """Where ``steps``, one after another, can end if they begin at any of ``starts``."""
        for step in steps:
            if not starts:
                break
            self._budget.spend(len(starts))
            starts = step(self, starts)
        return starts

    def fits_ahead(self, steps: _Steps, start: int) -> bool:
        """Whether ``steps`` match at ``start``, for look-ahead; cached."""
        if (steps, start) not in self._ahead:
            self._ahead[steps, start] = bool(self.ends(steps, frozenset((start,))))
        return self._ahead[steps, start]


def _parse(expression: str) -> _Steps:
    if len(expression) > _MAX_LENGTH:
        raise _Unusable(f"has {len(expression)} characters: at most {_MAX_LENGTH} are allowed")
    try:
        tree = _parser.parse(expression)
    except re.error as error:
        raise _Unusable(f"is not a regular expression: {error}") from None
    except (OverflowError, RecursionError, ValueError) as error:
        raise _Unusable(f"is not a usable regular expression: {error}") from None
    if tree.state.flags & ~re.UNICODE:
        raise _Unusable("uses flags, which are not supported")
    return _steps(tree, _MAX_DEPTH)


def _steps(tree: Any, depth: int) -> _Steps:
    if depth == 0:
        raise _Unusable(f"nests more than {_MAX_DEPTH} groups")
    return tuple(_step(str(operation), value, depth - 1) for operation, value in tree)


def _step(operation: str, value: Any, depth: int) -> _Step:
    """One node of the parsed tree as a step of the walk."""
    match operation:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            return _one_character(_character(operation, value))
        case "AT" if str(value) in _POSITIONS:
            position = _POSITIONS[str(value)]
            return _where(lambda walk, at: position(walk.name, at))
        case "BRANCH":
            return _either([_steps(branch, depth) for branch in value[1]])
        case "SUBPATTERN" if not value[1] and not value[2]:  # else it sets flags
            return _either([_steps(value[3], depth)])
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _repeat(int(value[0]), int(value[1]), _steps(value[2], depth))
        case "ASSERT" | "ASSERT_NOT" if value[0] > 0:  # else it looks behind
            steps, wanted = _steps(value[1], depth), operation == "ASSERT"
            return _where(lambda walk, at: walk.fits_ahead(steps, at) is wanted)
    raise _Unusable(f"uses {operation.lower()} in a way that is not supported")


def _one_character(fits: _Character) -> _Step:
    def step(walk: _Walk, starts: _Places) -> _Places:
        name, end = walk.name, len(walk.name)
        return frozenset([at + 1 for at in starts if at < end and fits(name[at])])

    return step


def _where(holds: Callable[[_Walk, int], bool]) -> _Step:
    return lambda walk, starts: frozenset([at for at in starts if holds(walk, at)])


def _either(branches: list[_Steps]) -> _Step:
    return lambda walk, starts: frozenset().union(*(walk.ends(branch, starts) for branch in branches))


def _repeat(least: int, most: int, body: _Steps) -> _Step:
    def step(walk: _Walk, starts: _Places) -> _Places:
        for _ in range(least):
            further = walk.ends(body, starts)
            if further == starts:  # nothing left, or only rounds that match nothing: more of them change nothing
                break
            starts = further
        reached = new = starts
        rounds = least
        # Only new positions lead to new positions: the rounds end when there are none.
        while new and rounds < most:
            new = walk.ends(body, new) - reached
            reached |= new
            rounds += 1
        return reached

    return step


def _character(operation: str, value: Any) -> _Character:
    """The test that a LITERAL, NOT_LITERAL, ANY or IN makes of one character."""
    match operation:
        case "LITERAL":
            return chr(value).__eq__
        case "NOT_LITERAL":
            return chr(value).__ne__
        case "ANY":
            return "\n".__ne__
        case "RANGE":
            first, last = chr(value[0]), chr(value[1])
            return lambda character: first <= character <= last
        case "CATEGORY":
            kind = str(value).removeprefix("CATEGORY_")
            test, wanted = _CATEGORIES[kind.removeprefix("NOT_")], not kind.startswith("NOT_")
            return lambda character: test(character) is wanted
    negated = bool(value) and str(value[0][0]) == "NEGATE"
    tests = [_character(str(kind), item) for kind, item in value[negated:]]
    return lambda character: any(test(character) for test in tests) is not negated


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_CATEGORIES: dict[str, _Character] = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": _is_word}

_POSITIONS: dict[str, Callable[[str, int], bool]] = {
    "AT_BEGINNING": lambda name, at: at == 0,
    "AT_BEGINNING_STRING": lambda name, at: at == 0,
    "AT_BOUNDARY": lambda name, at: _is_word(name[max(at - 1, 0) : at]) is not _is_word(name[at : at + 1]),
    "AT_END": lambda name, at: name[at:] in ("", "\n"),
    "AT_END_STRING": lambda name, at: at == len(name),
}
