"""The adapters that the present caller may see, and everything about them.

A key may be limited to some adapters. To its caller everything else is as if it were not there. The scope is entered in
one place, where a request's key is checked, and asked where things are read: in the registry, and in the queries of
tables whose rows are about adapters. So no route can forget it. What no request asked for, the server's own work, sees
everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, column, or_, select, table

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest

BASE: Final = "base"
"""Stands for the bare base in a scope; no adapter can have this name."""

MAX_ADAPTERS: Final = 100

Scope = frozenset[str] | None
"""Names of adapters, and perhaps ``BASE``; ``None`` is everything."""

_current: ContextVar[Scope] = ContextVar("scope", default=None)
_experiments = table("experiments", column("name"), column("adapter"))


def current() -> Scope:
    """The present caller's scope."""
    return _current.get()


def enter(scope: Scope) -> None:
    """Make ``scope`` that of the present context, and of all threads and tasks that it starts."""
    _current.set(scope)


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """Make ``scope`` the present one until the end of the block."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


def visible(adapter: str | None) -> bool:
    """Whether the present caller may see an adapter; ``None``: the bare base."""
    scope = _current.get()
    return scope is None or (BASE if adapter is None else adapter) in scope


def rows_about(adapter: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """The condition on rows that are about one adapter, named in this column."""
    scope = _current.get()
    return [] if scope is None else [adapter.in_(scope)]


def answers_of(adapter: ColumnElement[Any], experiment: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """The condition on rows about answers, with their adapter's name (null: the bare base) and their experiment's.

    An answer that an arm of an adapter's experiment gave counts as the adapter's, also where that arm is the bare base.
    """
    scope = _current.get()
    if scope is None:
        return []
    tried = select(_experiments.c.name).where(_experiments.c.adapter.in_(scope))
    seen = [adapter.in_(scope), experiment.in_(tried)]
    return [or_(*seen, adapter.is_(None) & experiment.is_(None)) if BASE in scope else or_(*seen)]


def experiment_visible(connection: Connection, name: str) -> bool:
    """Whether the present caller may see an experiment."""
    return visible(connection.scalar(select(_experiments.c.adapter).where(_experiments.c.name == name)) or "")


def read_scope(adapters: object) -> Scope:
    """The scope that a list of names means; ``None``: everything.

    Raises:
        InvalidRequest: It is empty or too long, or has what cannot be a name.
    """
    if adapters is None:
        return None
    assert isinstance(adapters, list | tuple | frozenset)
    if not 1 <= len(adapters) <= MAX_ADAPTERS:
        raise InvalidRequest(
            f"adapters has {len(adapters)} names: give 1 to {MAX_ADAPTERS}, or null for a key that is for everything",
            param="adapters",
        )
    for name in adapters:
        if not names.is_name(name):
            raise InvalidRequest(
                f"adapters: {names.quoted(name)} cannot be an adapter's name: give names of adapters, without a "
                f'version, and "{BASE}" for the model without one',
                param="adapters",
                code="invalid_name",
            )
    return frozenset(adapters)
