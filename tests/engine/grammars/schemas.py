"""JSON schemas as people write them: what is followed, and what is refused by which word."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Item(Closed):
    sku: str = Field(max_length=8)
    amount: int = Field(ge=1, le=99)


class Order(Closed):
    id: int = Field(ge=0, le=10**6)
    items: list[Item] = Field(min_length=1, max_length=3)
    note: str | None = Field(default=None, max_length=12)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[Literal["sit", "roll"]] = Field(max_length=2)


class Pet(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")


class Tree(Closed):
    name: str = Field(max_length=4)
    children: list[Tree] = Field(default_factory=list, max_length=2)


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def text(longest: int = 6, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest, **more}


INTEGER = {"type": "integer", "minimum": -99, "maximum": 999}
AGE = {"type": "integer", "maximum": 150}

ACCEPTED: dict[str, dict[str, Any]] = {
    # pydantic
    "order": Order.model_json_schema(),
    "pet, discriminated": Pet.model_json_schema(),
    "tree, recursive": Tree.model_json_schema(),
    # zod and others
    "zod": {"$schema": "http://json-schema.org/draft-07/schema#", **closed(name=text(), age=AGE)},
    "zod, nullable": closed(a={"anyOf": [text(), {"type": "null"}]}),
    "zod, record": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "draft 2020": {"$schema": "https://json-schema.org/draft/2020-12/schema", **closed(a=INTEGER)},
    "draft 04": {"$schema": "http://json-schema.org/draft-04/schema#", **closed(a=INTEGER)},
    "strict, as OpenAI's examples": closed(
        steps={"type": "array", "items": closed(explanation=text(), output=text()), "maxItems": 2}, final_answer=text()
    ),
    # kinds of values
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "integer": INTEGER,
    "integer, one bound": closed(a={"type": "integer", "minimum": 0, "maximum": 10**9}),
    "integer, exclusive bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "number, exclusive bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number, negative": {"type": "number", "minimum": -2.5, "maximum": -0.25},
    "multiple of 5": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    "multiple of 0.1": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 100},
    "string": text(),
    "string, lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "string, empty": text(0),
    "several types": {"type": ["integer", "boolean", "null"], "minimum": 0, "maximum": 9},
    "anything at all": closed(a={"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
    "enum of strings": {"enum": ["red", "green", "blue", 'quo"te', "new\nline"]},
    "enum of anything": {"enum": ["a", 1, None, True, [1, 2], {"k": "v"}]},
    "const": {"const": {"version": 2, "tags": ["x"]}},
    "true in a property": closed(a=INTEGER, b={"enum": [1.5]}),
    # patterns and formats
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "pattern, alternatives": {"type": "string", "pattern": "^(yes|no|maybe)$"},
    "pattern, classes": {"type": "string", "pattern": r"^\d{2}\s\w{1,4}$"},
    "pattern, unanchored": {"type": "string", "pattern": "b", "maxLength": 6},
    "pattern, letters": {"type": "string", "pattern": "^[a-zäöü]{1,5}$"},
    "date-time": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "duration": {"type": "string", "format": "duration"},
    "email": {"type": "string", "format": "email"},
    "hostname": {"type": "string", "format": "hostname"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    # arrays
    "array": {"type": "array", "items": INTEGER, "maxItems": 4},
    "array, at least": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "array, exactly": {"type": "array", "items": INTEGER, "minItems": 3, "maxItems": 3},
    "array, empty": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [text(), INTEGER], "items": False, "minItems": 2},
    "tuple, open": {"type": "array", "prefixItems": [text()], "items": {"type": "null"}, "maxItems": 3},
    "tuple, draft 07": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [INTEGER, {"type": "boolean"}],
        "additionalItems": False,
        "minItems": 2,
    },
    "nested arrays": {"type": "array", "maxItems": 2, "items": {"type": "array", "items": INTEGER, "maxItems": 2}},
    # objects
    "object": closed(a=INTEGER, b=text()),
    "object, all optional": closed([], a=INTEGER, b=text(), c={"type": "boolean"}),
    "object, some optional": closed(["b"], a=INTEGER, b=text(), c={"type": "boolean"}),
    "object, required and undescribed": {
        "type": "object",
        "properties": {"a": INTEGER},
        "required": ["a", "b"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "object, at least": {"type": "object", "additionalProperties": INTEGER, "minProperties": 2, "maxProperties": 3},
    "object, by pattern": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": INTEGER, "^y[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "object, many optional": closed([], **{f"property_{i}": {"type": "null"} for i in range(240)}),
    "object, deep": closed(a=closed(b=closed(c=closed(d=closed(e=INTEGER))))),
    "names that need escapes": closed(**{'a "b"': INTEGER, "c\\d": INTEGER, "é": INTEGER}),
    "no type": {"properties": {"a": INTEGER}, "required": ["a"], "type": "object", "additionalProperties": False},
    # combinations
    "anyOf": {"anyOf": [INTEGER, text(), {"type": "null"}]},
    "anyOf, objects": {"anyOf": [closed(a=INTEGER), closed(b=text())]},
    "oneOf, disjoint": {"oneOf": [{"type": "boolean"}, text()]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "allOf, objects": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": text()}, "required": ["b"]},
        ],
        "additionalProperties": True,
        "maxProperties": 2,
    },
    "$ref": {**closed(a={"$ref": "#/$defs/n"}, b={"$ref": "#/$defs/n"}), "$defs": {"n": INTEGER}},
    "$ref, definitions": {**closed(a={"$ref": "#/definitions/n"}), "definitions": {"n": text()}},
    "$ref with siblings": {**closed(a={"$ref": "#/$defs/n", "maximum": 5}), "$defs": {"n": INTEGER}},
    "$ref to the root": closed(["v"], v=INTEGER, next={"anyOf": [{"type": "null"}, {"$ref": "#"}]}),
    "a list of lists": {
        "$ref": "#/$defs/l",
        "$defs": {"l": {"anyOf": [INTEGER, {"type": "array", "items": {"$ref": "#/$defs/l"}, "maxItems": 2}]}},
    },
    "$anchor": {**closed(a={"$ref": "#n"}), "$defs": {"n": {"$anchor": "n", "type": "boolean"}}},
    "words that change nothing": {
        "title": "T", "description": "D", "examples": [1], "default": 1, "deprecated": True, "readOnly": True,
        "$comment": "C", **INTEGER,
    },
    "a schema with its own settings": {"x-guidance": {"lenient": True}, **closed(a=INTEGER)},
}  # fmt: skip

# The schema, and what the refusal says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "set": ({"type": "array", "uniqueItems": True}, "uniqueItems is not supported"),
    "set, deep": (closed(a={"type": "array", "items": text(), "uniqueItems": True}), "uniqueItems is not supported"),
    "set, and lenient": (
        {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True},
        "uniqueItems is not supported",
    ),
    "not": ({"not": {"type": "string"}}, "not is not supported"),
    "if": ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
    "contains": ({"type": "array", "contains": {"type": "integer"}}, "contains is not supported"),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired is not supported"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames is not supported"),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties is not"),
    "oneOf": ({"oneOf": [text(), text(3)]}, "oneOf whose branches overlap is not supported"),
    "format": ({"type": "string", "format": "iban"}, "format iban is not supported"),
    "look-ahead": ({"type": "string", "pattern": "^(?=.*a).*$"}, "pattern: look-around"),
    "back-reference": ({"type": "string", "pattern": r"(a)\1"}, "pattern: backreferences are not supported"),
    "broken pattern": ({"type": "string", "pattern": "("}, "pattern: unclosed group"),
    "type": ({"type": "strng"}, "strng"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
    "nothing": (closed(a=False), "'a' is unsatisfiable"),
    "$ref to nothing": ({"$ref": "#/$defs/zz"}, "$ref: /$defs/zz does not exist"),
    "$ref elsewhere": ({"$ref": "https://example.com/s.json"}, "$ref: https://example.com/s.json is not part of this"),
    "$ref loop": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "allows no answer at all"),
    "patterns that overlap": (
        {"type": "object", "patternProperties": {"^a": INTEGER, "a$": text()}},
        "patternProperties: regexes /^a/ and /a$/ are not disjoint",
    ),
    "huge bounds": ({"type": "integer", "minimum": -(10**300)}, "minimum and maximum: these bounds are not supported"),
    "many optional properties": (
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}},
        "too large or too complex",
    ),
}
