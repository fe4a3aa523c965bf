"""Bounds for the numbers of JSON schemas, so that an answer does not go on with digits for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Whole numbers that every reader of JSON holds exactly.
_INTEGERS: Final = {"minimum": -(2**53 - 1), "maximum": 2**53 - 1}

#: Nine digits on the right. More digits together than a reader holds, but few enough to come to an end.
_NUMBERS: Final = {"minimum": -(10**15), "maximum": 10**15, "multipleOf": 1e-9}

_BOUNDS: Final = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}

#: Keywords whose value is a schema, a list of schemas, and schemas by name.
_ONE: Final = ("items", "additionalProperties")
_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions")


def bound_numbers(schema: Any) -> Any:
    """A copy of a JSON schema in which numbers without any bound of their own have one."""
    if not isinstance(schema, Mapping):
        return schema
    bounded: dict[str, Any] = dict(schema)
    for keyword in _ONE:
        if keyword in schema:
            bounded[keyword] = bound_numbers(schema[keyword])
    for keyword in _LISTS:
        if isinstance(schema.get(keyword), list):
            bounded[keyword] = [bound_numbers(part) for part in schema[keyword]]
    for keyword in _NAMED:
        if isinstance(schema.get(keyword), Mapping):
            bounded[keyword] = {name: bound_numbers(part) for name, part in schema[keyword].items()}
    if not schema.keys() & {"enum", "const", *_BOUNDS}:
        types = schema.get("type")
        if types == "integer" or (isinstance(types, list) and "integer" in types and "number" not in types):
            bounded |= _INTEGERS
        elif types == "number" or (isinstance(types, list) and "number" in types):
            bounded = {
                **bounded,
                **_NUMBERS,
                **({"multipleOf": schema["multipleOf"]} if "multipleOf" in schema else {}),
            }
    return bounded
