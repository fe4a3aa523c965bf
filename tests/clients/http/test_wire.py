"""JSON to dataclasses: strict for known fields, tolerant of unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from graftwork.clients.errors import GraftworkProtocolError
from graftwork.clients.http.wire import dump, parse
from graftwork.clients.types import adapters, pages
from tests.clients.fake_server import FakeServer


@dataclass(frozen=True, kw_only=True)
class Leaf:
    name: str
    size: float


@dataclass(frozen=True, kw_only=True)
class Tree:
    at: datetime
    leaves: tuple[Leaf, ...]
    counts: Mapping[str, int]
    note: str | None = None
    anything: Any = None


WIRE = {"at": 12, "leaves": [{"name": "a", "size": 1}], "counts": {"x": 2}}


def test_reads_nested_values_and_leaves_unknown_fields_alone() -> None:
    tree = parse(Tree, WIRE | {"new": 1, "leaves": [{"name": "a", "size": 1, "new": 1}]})
    assert tree == Tree(at=datetime.fromtimestamp(12, UTC), leaves=(Leaf(name="a", size=1.0),), counts={"x": 2})
    assert parse(pages.Page[Leaf], {"data": [{"name": "a", "size": 1.5}]}).data[0].size == 1.5


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"at": "yesterday"}, "Tree.at"),
        ({"at": 1e30}, "Tree.at"),
        ({"leaves": {}}, "Tree.leaves"),
        ({"leaves": [{"size": 1}]}, r"Tree.leaves\[0\].name"),
        ({"leaves": [{"name": "a", "size": True}]}, r"Tree.leaves\[0\].size"),
        ({"leaves": [None]}, r"Tree.leaves\[0\]"),
        ({"counts": {"x": 1.5}}, r"Tree.counts\['x'\]"),
        ({"counts": None}, "Tree.counts"),
        ({"note": 3}, "Tree.note"),
    ],
)
def test_says_where_an_answer_is_wrong(change: dict[str, Any], where: str) -> None:
    with pytest.raises(GraftworkProtocolError, match=where):
        parse(Tree, WIRE | change)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(GraftworkProtocolError, match=r"lacks Tree\.leaves"):
        parse(Tree, {"at": 12})


def test_dump_is_what_parse_reads() -> None:
    state = FakeServer()
    state.seed("intents", 2)
    for kind, wire in [
        (adapters.Adapter, state.adapters["intents"]),
        (adapters.AdapterEvent, state.events[0]),
        (Tree, WIRE),
    ]:
        value = parse(kind, wire)
        written = dump(value)
        assert parse(kind, written) == value
        assert all(wire[name] == written[name] for name in written if name in wire and name not in ("versions",))
    assert type(dump(parse(Tree, WIRE))["at"]) is int
