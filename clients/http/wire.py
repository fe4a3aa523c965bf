"""Conversion of JSON to frozen dataclasses and back. Known fields are checked strictly, unknown fields are ignored.

The names of fields are those of the JSON. Their annotations may be ``str``, ``int``, ``float``, ``bool``, ``datetime``
(unix seconds in JSON), ``X | None``, ``tuple[X, ...]``, ``Mapping[str, X]``, ``Any`` and other dataclasses. A field
with a default may be absent.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from graftwork.clients.errors import GraftworkProtocolError

T = TypeVar("T")


def parse(kind: type[T], value: object) -> T:
    """Convert decoded JSON to a type.

    Raises:
        GraftworkProtocolError: if the value is not of that type; the message names the field.
    """
    return typing.cast(T, _parse(kind, value, kind.__name__))


def dump(value: Any) -> Any:
    """Convert a value of `parse` back to JSON's types."""
    if dataclasses.is_dataclass(value):
        return {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        seconds = value.timestamp()
        return int(seconds) if seconds.is_integer() else seconds
    if isinstance(value, tuple | list):
        return [dump(item) for item in value]
    if isinstance(value, Mapping):
        return {key: dump(item) for key, item in value.items()}
    return value


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        (wanted,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _parse(wanted, value, where)
    if dataclasses.is_dataclass(origin):
        return _parse_dataclass(typing.cast(type, origin), arguments, value, where)
    if origin is tuple:
        return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, value, where)))
    if origin is Mapping:
        items = _expect(dict, value, where).items()
        return {key: _parse(arguments[1], item, f"{where}[{key!r}]") for key, item in items}
    if kind is datetime:
        return _parse_datetime(_parse(float, value, where), where)
    if kind is float and type(value) is int:
        return float(value)
    return _expect(kind, value, where)


def _parse_dataclass(kind: type, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    found = _expect(dict, value, where)
    known: dict[str, Any] = {}
    for name, (annotation, required) in _fields(kind).items():
        if name in found:
            # The annotation of a generic has a type variable: Page[Adapter].data is a tuple[Adapter, ...].
            bound = annotation[arguments] if getattr(annotation, "__parameters__", ()) else annotation
            known[name] = _parse(bound, found[name], f"{where}.{name}")
        elif required:
            raise GraftworkProtocolError(f"the server's answer lacks {where}.{name}; is this a Graftwork server?")
    return kind(**known)


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Return the annotation of each field, and whether it is required."""
    annotations = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    return {
        field.name: (annotations[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
    }


def _parse_datetime(seconds: float, where: str) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise GraftworkProtocolError(f"the server's answer has no point in time at {where}: {seconds}") from error


def _expect(kind: type[T], value: Any, where: str) -> T:
    if type(value) is not kind:  # not isinstance: bool is a subclass of int
        found = type(value).__name__
        raise GraftworkProtocolError(
            f"the server's answer has {found} at {where}, not {kind.__name__}; is this a Graftwork server?"
        )
    return value
