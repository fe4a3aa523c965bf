"""The rules for names, and what a ``model`` may be: ``intents``, ``intents@7``, ``intents@candidate``. Which
adapters exist is the registry's matter.
"""

from __future__ import annotations

import re

from graftwork.adapters.errors import InvalidRequest

LIVE = "live"
"""The alias that every adapter has: ``intents`` means ``intents@live``."""

CANDIDATE = "candidate"
"""The alias of the newest version that training made and its gates passed."""

TRIAL = "_trial-"
"""How the names begin under which adapters are tried before they get a number of their own. Nobody else can choose such
a name; it has no alias and stands in no list, and its version can be called for as long as the trial takes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TRIAL = re.compile(f"{TRIAL}[0-9a-f]{{16}}")
# An alias starts with a letter: after the @, digits are always a version's number.
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
# An experiment's arm may be "base", the model without any adapter: no alias can mean something else by it.
_RESERVED_ALIASES = frozenset({"base"})


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(name: str, *, base_id: str) -> None:
    """InvalidRequest unless an adapter may be called ``name`` beside the base ``base_id``."""
    if not is_name(name):
        raise InvalidRequest(
            f"{quoted(name)} cannot be an adapter's name: use 1 to 64 characters out of a-z, 0-9, '.', '_' and '-', "
            "the first one a letter or a digit",
            param="name",
            code="invalid_name",
        )
    if name == base_id:
        raise InvalidRequest(
            f"{name!r} is the base model's own id: choose another name for the adapter", param="name", code="name_taken"
        )


def is_trial(name: str) -> bool:
    return _TRIAL.fullmatch(name) is not None


def check_alias(alias: str) -> None:
    """InvalidRequest unless ``alias`` can name a version."""
    if not _ALIAS.fullmatch(alias):
        raise InvalidRequest(
            f"{quoted(alias)} cannot be an alias: use 1 to 64 characters out of a-z, 0-9, '.', '_' and '-', "
            "the first one a letter (digits after the @ are a version's number)",
            param="alias",
            code="invalid_alias",
        )
    if alias in _RESERVED_ALIASES:
        raise InvalidRequest(
            f"{alias!r} cannot be an alias: in experiments it means the model without an adapter",
            param="alias",
            code="invalid_alias",
        )


def check_text(text: str, *, param: str, max_chars: int) -> None:
    """InvalidRequest unless ``text`` is plain text that every database can store: no NUL, no half characters."""
    if len(text) > max_chars:
        raise InvalidRequest(f"{param} has {len(text)} characters: shorten it to {max_chars} at most", param=param)
    # A JSON body can spell both; PostgreSQL refuses the one, UTF-8 the other.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{param} contains a NUL or a lone surrogate: send plain text", param=param)


def split_model(model: str) -> tuple[str, str]:
    """``"intents@7"`` → ``("intents", "7")``; a bare name selects ``live``. Nothing is checked: rules and existence are
    the caller's. ``"intents@"`` selects the empty alias, which nothing has."""
    name, at, selector = model.partition("@")
    return name, selector if at else LIVE


def quoted(text: str) -> str:
    """What a user sent, fit for a message: quoted, escaped and never longer than a line."""
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def escaped(text: object) -> str:
    """What a stranger's file says, fit for a message: quoted, plain ASCII and at most 120 characters."""
    shown = ascii(text) if isinstance(text, str) else repr(text)
    return shown if len(shown) <= 120 else shown[:117] + "..."
