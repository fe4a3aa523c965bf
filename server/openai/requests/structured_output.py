"""What an answer may be held to: OpenAI's `response_format`, and vLLM's `structured_outputs` with its older names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from graftwork.adapters.errors import InvalidRequest
from graftwork.server.bodies import StrictModel, Text, body_error, field_error, json_type
from graftwork.server.engine.request import GrammarKind

#: Of a schema, an expression, all choices or a grammar.
MAX_SOURCE_BYTES = 256 << 10

#: The schema of ``json_object``.
ANY_OBJECT = '{"type":"object"}'


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", value):
        raise body_error("invalid_value", "must have 1 to 64 letters of a-z, A-Z, 0-9, _ and -")
    return value


def _schema(value: Any) -> Mapping[str, Any]:
    """A JSON schema: an object, or the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise body_error("invalid_value", f"is a string, but no JSON: {error}") from None
    if not isinstance(value, dict):
        raise body_error("invalid_type", f"must be a JSON schema, an object, not {json_type(value)}")
    return value


def _choices(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise body_error("invalid_type", f"must be a list of strings, not {json_type(value)}")
    if not value or "" in value:
        raise body_error("invalid_value", "must have one choice at least, and none that is empty")
    return value


Schema = Annotated[Mapping[str, Any], PlainValidator(_schema, json_schema_input_type=dict[str, Any] | str)]

Choices = Annotated[list[str], PlainValidator(_choices, json_schema_input_type=list[str])]


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """What an answer is held to, as it was asked.

    Attributes:
        text: See ``make_grammar``.
        field: Where in the body it stands, for errors.
    """

    kind: GrammarKind
    text: str
    field: str

    @classmethod
    def of(cls, kind: GrammarKind, value: Any, field: str) -> GrammarSource:
        """From a field's value. Raises :class:`InvalidRequest` for one that is too long, or not JSON."""
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise InvalidRequest(f"{field} has a number that is not finite", param=field) from None
        if (size := len(text.encode())) > MAX_SOURCE_BYTES:
            raise InvalidRequest(f"{field} has {size} bytes: at most {MAX_SOURCE_BYTES} are taken", param=field)
        return cls(kind, text, field)


class JsonSchema(StrictModel):
    """OpenAI's ``response_format.json_schema``. ``name`` and ``description`` change nothing.

    The answer keeps to the schema whether it is ``strict`` or not.
    """

    name: Annotated[str, AfterValidator(_name)]
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None
    description: Text | None = None


class ResponseFormat(StrictModel):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise field_error("json_schema", "missing_required_parameter", "is required where type is json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise field_error("json_schema", "invalid_value", f"is for type json_schema, not {self.type}")
        return self

    def source(self) -> GrammarSource | None:
        """What the answer is held to; ``None``: nothing."""
        if self.json_schema is not None:
            return GrammarSource.of("json", self.json_schema.schema_, "response_format.json_schema.schema")
        return GrammarSource("json", ANY_OBJECT, "response_format") if self.type == "json_object" else None


class StructuredOutputs(StrictModel):
    """vLLM's ``structured_outputs``: one of these."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Annotated[Text, Field(min_length=1)] | None = None
    choice: Choices | None = None
    grammar: Annotated[Text, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self.model_dump(by_alias=True).items() if value not in (None, False)]
        if len(given) != 1:
            raise body_error(
                "invalid_value",
                f"takes one of json, json_object, regex, choice and grammar, got {' and '.join(given) or 'none'}",
            )
        return self

    def source(self) -> GrammarSource:
        """What the answer is held to."""
        if self.json_object:
            return GrammarSource("json", ANY_OBJECT, "structured_outputs.json_object")
        parts: dict[GrammarKind, Any] = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        kind, value = next((kind, value) for kind, value in parts.items() if value is not None)
        return GrammarSource.of(kind, value, f"structured_outputs.{kind}")
