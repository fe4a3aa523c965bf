"""Homes as earlier versions left them, which today's code must open and serve.

``v0_1_0/`` was written by the code of 0.1.0 before its packages were laid out anew: the database as an SQL dump, two
artifacts for the embedded base, one uploaded file, and in ``facts.json`` what a test needs to know of them. There is no
``base/``: link or prepare one beside it. The keys belong to this home alone.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "v0_1_0"


@dataclass(frozen=True, kw_only=True)
class EarlierHome:
    """A home on disk, and what is in it.

    Attributes:
        base: ``id`` and ``digest`` of the base that everything in it belongs to.
        keys: bearer keys by ``admin``, ``app``, ``revoked``.
        versions: digests of ``intents@1``, which is live, and ``intents@2``, the candidate.
        interactions: ids by ``rated`` (a thumb), ``corrected``, and ``not_logged``, which has no row.
        experiment: the name of one that has ended. arm: of it, which gave the rated answer.
        file: the id of an uploaded file. jobs: ids by status, ``succeeded`` and ``cancelled``.
    """

    path: Path
    base: Mapping[str, str]
    keys: Mapping[str, str]
    versions: tuple[str, str]
    interactions: Mapping[str, str]
    experiment: str
    arm: str
    file: str
    jobs: Mapping[str, str]


def restore(home: Path) -> EarlierHome:
    """Write the home of 0.1.0 into the folder ``home``, which may be there already, with a ``base/`` in it perhaps."""
    home.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(home / "graftwork.db")) as connection:
        connection.executescript((_FOLDER / "graftwork.sql").read_text(encoding="utf-8"))
    for folder in ("artifacts", "files"):
        shutil.copytree(_FOLDER / folder, home / folder)
    facts = json.loads((_FOLDER / "facts.json").read_text(encoding="utf-8"))
    return EarlierHome(path=home, **{**facts, "versions": tuple(facts["versions"])})
