"""JSON bodies: the strict pydantic model of requests, shared field types, error messages for people, and how JSON is
written.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError, to_json

from graftwork.adapters.errors import InvalidRequest

MAX_LABEL_CHARS = 256

#: So many more wrong fields are named in an error.
MAX_OTHERS = 8

StrictModelT = TypeVar("StrictModelT", bound="StrictModel")


Place = tuple[int | str, ...]
"""Where in the body: ``("messages", 0, "content")``."""


def parse(model: type[StrictModelT], raw: bytes, *, whole: str = "the body") -> StrictModelT:
    """Parse a request's body.

    Args:
        model: What it is read as.
        raw: The body.
        whole: What messages call it.

    Raises:
        InvalidRequest: For the body's first error, with the field's path as ``param``.
    """
    if not raw.strip():
        raise InvalidRequest(f"{whole} is empty: send a JSON object", code="invalid_json")
    try:
        return model.model_validate_json(raw)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    places = [(*error["loc"], *error.get("ctx", {}).get("field", ())) for error in errors]
    code, message = _explain(errors[0], places[0], model, whole)
    if others := [_path(place) or whole for place in places[1:]]:
        shown = ", ".join(others[:MAX_OTHERS]) + (", …" if len(others) > MAX_OTHERS else "")
        message += f" (and {len(others)} more {'problem' if len(others) == 1 else 'problems'}: {shown})"
    raise InvalidRequest(message, param=_path(places[0]) or None, code=code)


def parse_value(model: type[StrictModelT], value: Mapping[str, Any]) -> StrictModelT:
    """``parse`` of what was read from another kind of body."""
    return parse(model, to_json(value))


# ------------------------------------------------------------------------------------------------- field types


def body_error(code: str, message: str) -> PydanticCustomError:
    """An error that a validator raises for its field; ``code`` and ``message`` as in ``InvalidRequest``.

    The field's name is put before ``message``.
    """
    # The message travels as context, so that braces in a user's value are never read as a template.
    return PydanticCustomError("graftwork", "{message}", {"code": code, "message": message})


def reject_nul(value: str) -> str:
    """A validator of strings: PostgreSQL stores no NUL characters."""
    if "\0" in value:
        raise body_error("invalid_value", "contains a NUL character (\\u0000): remove it")
    return value


def string_at(where: str, value: Any) -> str:
    """A text within a field that a validator reads itself; ``where`` is its place in the field.

    Raises:
        PydanticCustomError: It is none.
    """
    if not isinstance(value, str):
        raise body_error("invalid_type", f"{where} must be a string, not {json_type(value)}")
    return reject_nul(value)


#: A text of any length.
Text = Annotated[str, AfterValidator(reject_nul)]

#: A short text that names something.
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS), AfterValidator(reject_nul)]

#: What names the base, an adapter, a version or an alias.
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS), AfterValidator(reject_nul)]


def only_off(*values: Any, instead: str) -> BeforeValidator:
    """A validator of unsupported fields: accepts ``None`` and ``values``, with which the field does nothing.

    Args:
        values: Accepted besides ``None``.
        instead: For the error message: what to do instead.
    """

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(off) and value == off for off in values):
            return value
        raise body_error("unsupported_parameter", f"is not supported: {instead}")

    return BeforeValidator(check)


def _metadata(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise body_error("invalid_type", "must be an object of strings")
    if len(value) > 16:
        raise body_error("invalid_value", f"takes at most 16 pairs, got {len(value)}")
    for key, item in value.items():
        if not isinstance(item, str):
            raise body_error("invalid_type", f"[{short_repr(key)}] must be a string, not {json_type(item)}")
        if not 1 <= len(key) <= 64 or len(item) > 512:
            raise body_error(
                "invalid_value", f"[{short_repr(key)}] is too long: keys take 1 to 64 characters, values 512"
            )
        reject_nul(key + item)
    return value


#: OpenAI's ``metadata``: at most 16 pairs of short strings.
Metadata = Annotated[
    Mapping[str, str] | None, PlainValidator(_metadata, json_schema_input_type=Mapping[str, str] | None)
]


# ------------------------------------------------------------------------------------------------------ models


class StrictModel(BaseModel):
    """Base of all bodies: no coercion, no unknown fields, no infinities, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


# ----------------------------------------------------------------------------------------------- error messages


def field_error(field: str, code: str, message: str) -> PydanticCustomError:
    """An error that a validator of the whole body raises for one of its fields."""
    return PydanticCustomError("graftwork", "{message}", {"code": code, "message": message, "field": (field,)})


_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "dict_type": "an object",
}


_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _explain(error: ErrorDetails, place: Place, model: type[StrictModel], whole: str) -> tuple[str, str]:
    """The code and the message for one of pydantic's errors."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    field = _path(place) or whole
    if kind == "graftwork":
        message = context["message"]
        return context["code"], field + message if message.startswith("[") else f"{field} {message}"
    if kind == "json_invalid":
        reason = context["error"]
        if "hex escape" in reason:
            reason += " (half a surrogate pair is no character)"
        return "invalid_json", f"{whole} is not valid JSON: {reason}"
    if kind == "missing":
        return "missing_required_parameter", f"{field} is required"
    if kind == "extra_forbidden":
        return "unknown_parameter", _unknown(place, model)
    if kind in _TYPES:
        shown = short_repr(value) if kind == "finite_number" else json_type(value)
        return "invalid_type", f"{field} must be {_TYPES[kind]}, not {shown}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return "invalid_value", f"{field} must be {words} {_number(context[key])}, got {short_repr(value)}"
    if kind == "literal_error":
        return "invalid_value", f"{field} must be {context['expected']}, got {short_repr(value)}"
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        return "invalid_value", f"{field} is too long: at most {context['max_length']} {unit}"
    if kind in ("string_too_short", "too_short"):
        return "invalid_value", f"{field} must not be empty"
    return "invalid_value", f"{field}: {error['msg']}"


def _unknown(place: Place, model: type[StrictModel]) -> str:
    """The message for an unknown field, with the field that was probably meant."""
    name, where = str(place[-1]), _path(place)
    near = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=0.75) if len(place) == 1 else []
    return f"{short_repr(where)} is not a field of this request: {f'did you mean {near[0]}?' if near else 'remove it'}"


def _path(place: Place) -> str:
    """A field's path as people write it: ``messages[0].content``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    return path if len(path) <= 128 else path[:127] + "…"


def short_repr(value: Any) -> str:
    """A user's value for a message: shortened, on one line."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number with very many digits"
    text = repr(value)
    return text if len(text) <= 64 else text[:63] + "…"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def json_type(value: Any) -> str:
    """The name of a value's type in JSON, with its article."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else "an object")


#: Unicode's line breaks in UTF-8, at which some clients split events, and their JSON escapes.
_LINE_BREAKS = {text.encode(): f"\\u{ord(text):04x}".encode() for text in "\u0085\u2028\u2029"}


def write_json(value: Any) -> bytes:
    """``value`` as JSON in one line, also for clients that split lines at Unicode's line breaks."""
    written = to_json(value)
    if written.isascii():
        return written
    for line_break, escaped in _LINE_BREAKS.items():
        written = written.replace(line_break, escaped)
    return written
