"""Templates of graders: texts with ``{{ item.field }}``, ``{{ sample.output_text }}`` and the like.

Only paths are read, nothing is computed: a template comes over HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted

Path = tuple[str | int, ...]
"""Where a value stands: the namespace, then fields and places in lists: ``("sample", "output_json", "items", 0)``."""

SAMPLE_FIELDS: Final = ("output_text", "output_json")
"""What a template may read of an answer: its text, and the JSON that the text is."""

MAX_CHARS: Final = 1 << 16

# Without braces inside, so that what has no end is read once and not again from each brace on.
_EXPRESSION: Final = re.compile(r"\{\{([^{}]*)\}\}")
_PATH: Final = re.compile(r"""\s*(?P<namespace>\w+)(?P<steps>(?:\.\w+|\[\d{1,6}\]|\['[^']*'\]|\["[^"]*"\])*)\s*""")
_STEP: Final = re.compile(r"""\.(\w+)|\[(\d+)\]|\['([^']*)'\]|\["([^"]*)"\]""")


class NotThere(Exception):
    """There is no value at the path of a template; the message is the path."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A text with places for values: its constant parts, and the paths between them."""

    parts: tuple[str | Path, ...]

    @classmethod
    def parse(cls, text: str, param: str) -> Self:
        """Read a template.

        Args:
            text: The text.
            param: The field of the request that it is, for messages.

        Raises:
            InvalidRequest: It has something else in braces than a path.
        """
        if len(text) > MAX_CHARS:
            raise InvalidRequest(f"{param} has more than {MAX_CHARS:,} characters", param=param)
        parts: list[str | Path] = []
        for number, part in enumerate(_EXPRESSION.split(text)):
            if number % 2:
                parts.append(_path(part, param))
            elif "{{" in part or "{%" in part:
                raise InvalidRequest(
                    f"{param} has braces without an end, or statements: a template has paths alone, such as "
                    "{{ item.reference }}",
                    param=param,
                )
            elif part:
                parts.append(part)
        return cls(parts=tuple(parts))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths that it reads."""
        return tuple(part for part in self.parts if isinstance(part, tuple))

    def render(self, values: Mapping[str, Any]) -> str:
        """Fill in values. Texts are taken as they are, others as JSON.

        Args:
            values: ``item`` and ``sample``.

        Raises:
            NotThere: A path leads nowhere.
        """
        return "".join(part if isinstance(part, str) else _text(look_up(values, part)) for part in self.parts)


def look_up(values: Any, path: Path) -> Any:
    """Return the value at a path.

    Raises:
        NotThere: It leads nowhere.
    """
    found = values
    for step in path:
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            raise NotThere(".".join(map(str, path))) from None
    return found


def _path(expression: str, param: str) -> Path:
    read = _PATH.fullmatch(expression)
    if read is None:
        raise InvalidRequest(
            f"{param}: {quoted(expression.strip())} is no path: write {{{{ item.field }}}}, "
            "{{ sample.output_text }} or {{ sample.output_json.field }}",
            param=param,
        )
    steps = tuple(
        int(place) if place else name or single or double
        for name, place, single, double in _STEP.findall(read["steps"])
    )
    namespace = read["namespace"]
    if namespace == "sample" and steps[:1] in {(name,) for name in SAMPLE_FIELDS}:
        if steps[0] == "output_json" or len(steps) == 1:
            return (namespace, *steps)
    elif namespace == "item" and steps:
        return (namespace, *steps)
    raise InvalidRequest(
        f"{param} reads {quoted(expression.strip())}, and there is nothing but the fields of item, sample.output_text "
        "and sample.output_json",
        param=param,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
