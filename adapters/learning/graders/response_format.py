"""``response_format`` of a reinforcement job: which JSON an answer has to be for graders to read it.

Answers are not held to it while they are generated. One that does not fit has no ``sample.output_json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Self

from graftwork.adapters.errors import InvalidRequest

TYPES: Final = ("text", "json_object", "json_schema")
SLOW_KEYWORDS: Final = frozenset({"pattern", "patternProperties"})
"""Keywords of JSON schema that are refused."""


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """The JSON that answers have to be.

    Attributes:
        schema: A JSON schema; True admits everything.
    """

    schema: Any = True

    @classmethod
    def read(cls, given: Any, param: str = "response_format") -> Self:
        """Read what was sent, in the shape that chat completions take it, too.

        Raises:
            InvalidRequest: It is none; ``param`` names what is wrong.
        """
        import jsonschema

        if not isinstance(given, dict) or given.get("type") not in TYPES:
            raise InvalidRequest(f"{param} must be an object whose type is one of {', '.join(TYPES)}", param=param)
        match given["type"]:
            case "text":
                return cls()
            case "json_object":
                return cls(schema={"type": "object"})
        place = f"{param}.json_schema"
        described = given.get("json_schema")
        if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
            raise InvalidRequest(f"{place} must be an object with a schema", param=place, code="invalid_type")
        try:
            jsonschema.Draft202012Validator.check_schema(described["schema"])
        except jsonschema.SchemaError as error:
            raise InvalidRequest(
                f"{place}.schema is no JSON schema: {error.message}", param=f"{place}.schema"
            ) from None
        for keyword in sorted(_keywords(described["schema"]) & SLOW_KEYWORDS):
            raise InvalidRequest(
                f"{place}.schema has {keyword}, whose expressions may take any time: leave it out, let a grader look "
                "at the text",
                param=f"{place}.schema",
            )
        return cls(schema=described["schema"])

    def parse(self, text: str) -> Any:
        """Return the JSON that an answer is.

        Raises:
            ValueError: It is no JSON, or not the one that is asked for.
        """
        import jsonschema
        import referencing

        try:
            value = json.loads(text)
            # With a registry of its own a schema cannot have others fetched.
            validator = jsonschema.Draft202012Validator(self.schema, registry=referencing.Registry())
            fits = validator.is_valid(value)
        except (RecursionError, referencing.exceptions.Unresolvable) as error:
            raise ValueError("it cannot be read") from error
        if not fits:
            raise ValueError("it is not what response_format asks for")
        return value


def _keywords(schema: Any, *, named: bool = False) -> frozenset[str]:
    """The keywords of a schema; ``named``: it is an object of schemas by names, which are none."""
    if isinstance(schema, list):
        return frozenset().union(*(_keywords(each) for each in schema))
    if not isinstance(schema, dict):
        return frozenset()
    inside = (
        _keywords(value, named=not named and key in ("properties", "$defs", "definitions"))
        for key, value in schema.items()
        if named or key not in ("const", "enum", "default", "examples")
    )
    return frozenset(() if named else schema).union(*inside)
