"""Lists and errors, which all nouns share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from typing_extensions import TypedDict

T = TypeVar("T")


class ListObject(TypedDict, Generic[T]):
    """One page of a list. With ``has_more``, ask again with ``after`` the last one's id."""

    object: Literal["list"]
    data: Sequence[T]
    has_more: bool


class ErrorDetails(TypedDict):
    """``message`` says what to do, ``param`` names the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorObject(TypedDict):
    """Every answer but 2xx."""

    error: ErrorDetails
