"""Formulas of graders: arithmetic over the grades of others, read and computed without ``eval``.

``+ - * / ^``, parentheses, numbers, names, and the functions of `FUNCTIONS`. Precedence and ``^``, the power, which is
taken from the right, are as in arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted

FUNCTIONS: Final[Mapping[str, Callable[..., float]]] = {
    "min": min,
    "max": max,
    "abs": abs,
    # As floats: powers of whole numbers would have no bound.
    "floor": lambda value: float(math.floor(value)),
    "ceil": lambda value: float(math.ceil(value)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_SEVERAL: Final = frozenset({"min", "max"})
"""The functions of more than one number."""

MAX_CHARS: Final = 1000
MAX_DEPTH: Final = 50

_TOKEN: Final = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)|(?P<name>[A-Za-z_]\w*)|(?P<mark>[-+*/^(),]))")

Values = Mapping[str, float]
_Node = Callable[[Values], float]


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A formula.

    Attributes:
        text: As it was written.
        names: The names that stand in it.
    """

    text: str
    names: frozenset[str]
    _compute: _Node

    @classmethod
    def parse(cls, text: str, param: str) -> Self:
        """Read a formula.

        Args:
            text: The text.
            param: The field of the request that it is, for messages.

        Raises:
            InvalidRequest: It is none.
        """
        reader = _Reader(text, param)
        compute = reader.formula()
        return cls(text=text, names=frozenset(reader.names), _compute=compute)

    def compute(self, values: Values) -> float:
        """Return its value, with a value for each of `names`.

        Raises:
            ArithmeticError, ValueError: It has none, such as 1 / 0.
        """
        value = self._compute(values)
        if isinstance(value, complex) or not math.isfinite(value):
            raise ArithmeticError("it is no finite number")
        return float(value)


class _Reader:
    """Reads one formula by recursive descent, a method for each level of precedence."""

    def __init__(self, text: str, param: str) -> None:
        self._param = param
        self._tokens = self._read(text)
        self._at = 0
        self._depth = 0
        self.names: set[str] = set()

    def formula(self) -> _Node:
        node = self._sum()
        if self._token != "":
            raise self._wrong(f"{quoted(self._token)} is not expected there")
        return node

    def _read(self, text: str) -> list[str]:
        if len(text) > MAX_CHARS:
            raise self._wrong(f"it has more than {MAX_CHARS:,} characters")
        tokens, end = [], 0
        while end < len(text.rstrip()):
            found = _TOKEN.match(text, end)
            if found is None:
                raise self._wrong(f"{quoted(text[end:].strip()[:20])} is no part of a formula")
            tokens.append(found[0].strip())
            end = found.end()
        return [*tokens, ""]

    @property
    def _token(self) -> str:
        return self._tokens[self._at]

    def _take(self, *tokens: str) -> str | None:
        """The next token, if it is one of these."""
        if self._token not in tokens or not self._token:
            return None
        self._at += 1
        return self._tokens[self._at - 1]

    def _sum(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong("its parentheses are too deep")
        node = self._product()
        while mark := self._take("+", "-"):
            node = _binary(mark, node, self._product())
        self._depth -= 1
        return node

    def _product(self) -> _Node:
        node = self._signed()
        while mark := self._take("*", "/"):
            node = _binary(mark, node, self._signed())
        return node

    def _signed(self) -> _Node:
        sign = 1
        while mark := self._take("+", "-"):
            sign = -sign if mark == "-" else sign
        node = self._power()
        return node if sign == 1 else lambda values: -node(values)

    def _power(self) -> _Node:
        node = self._atom()
        if self._take("^"):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self._wrong("its powers are too deep")
            node = _binary("^", node, self._signed())
            self._depth -= 1
        return node

    def _atom(self) -> _Node:
        token = self._token
        if self._take("("):
            node = self._sum()
            self._close()
            return node
        if not token or token in "-+*/^),":
            raise self._wrong("it ends too early" if not token else f"{quoted(token)} is not expected there")
        self._at += 1
        if token[0].isdigit() or token[0] == ".":
            number = float(token)
            return lambda values: number
        if self._take("("):
            return self._call(token)
        self.names.add(token)
        return lambda values: values[token]

    def _call(self, name: str) -> _Node:
        function = FUNCTIONS.get(name)
        if function is None:
            raise self._wrong(f"{quoted(name)} is no function: there are {', '.join(FUNCTIONS)}")
        given = [self._sum()]
        while self._take(","):
            given.append(self._sum())
        self._close()
        if (len(given) > 1) != (name in _SEVERAL):
            raise self._wrong(f"{name} takes {'several numbers' if name in _SEVERAL else 'one number'}")
        return lambda values: function(*(node(values) for node in given))

    def _close(self) -> None:
        if not self._take(")"):
            raise self._wrong("a parenthesis is not closed")

    def _wrong(self, why: str) -> InvalidRequest:
        return InvalidRequest(
            f"{self._param} cannot be read: {why}. A formula is made of graders' names, numbers, + - * / ^ and "
            f"{', '.join(FUNCTIONS)}",
            param=self._param,
        )


def _binary(mark: str, left: _Node, right: _Node) -> _Node:
    match mark:
        case "+":
            return lambda values: left(values) + right(values)
        case "-":
            return lambda values: left(values) - right(values)
        case "*":
            return lambda values: left(values) * right(values)
        case "/":
            return lambda values: left(values) / right(values)
        case _:
            return lambda values: left(values) ** right(values)
