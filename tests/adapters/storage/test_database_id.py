"""A home and a bucket belong to one database; another one, to which all their files are strays, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwork.adapters.backup import back_up
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.storage import database_id, settings
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.objects import ObjectStore


def open_in(home: Path) -> Database:
    home.mkdir(exist_ok=True)
    database = Database(home / "graftwork.db")
    migrate(database)
    return database


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that belongs to the database in it."""
    home = tmp_path / "home"
    database_id.claim_home(home, open_in(home))
    return home


def test_a_home_is_served_on_its_database_alone(home: Path, tmp_path: Path) -> None:
    database_id.claim_home(home, open_in(home))
    with pytest.raises(ConfigurationError, match="belongs to another database"):
        database_id.claim_home(home, open_in(tmp_path / "other"))


def test_a_home_of_before_is_taken_by_its_own_database_only(tmp_path: Path) -> None:
    own, other = open_in(tmp_path / "home"), open_in(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="graftwork move"):
        database_id.claim_home(tmp_path / "home", other)
    assert not (tmp_path / "home" / "database.id").exists()
    database_id.claim_home(tmp_path / "home", own)
    (tmp_path / "new").mkdir()
    database_id.claim_home(tmp_path / "new", other)  # one more server of that database


def test_what_was_moved_is_neither_served_nor_saved_as_it_was(home: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "before", lambda title, fraction: None)
    elsewhere = open_in(tmp_path / "elsewhere")
    with elsewhere.write() as connection:
        settings.replace(connection, settings.DATABASE_ID, "ab" * 32)
    database_id.give(home, elsewhere)
    database_id.claim_home(home, elsewhere)
    with pytest.raises(ConfigurationError, match="After graftwork move"):
        database_id.claim_home(home, open_in(home))
    with pytest.raises(ConfigurationError, match="After graftwork move"):
        back_up(home, tmp_path / "after", lambda title, fraction: None)
    assert not (tmp_path / "after").exists()


def test_a_bucket_is_refused_to_another_database(home: Path, tmp_path: Path) -> None:
    objects = ObjectStore(f"file://{tmp_path}/bucket")
    for _ in range(2):
        database_id.claim_bucket(objects, home)
    database_id.claim_home(tmp_path / "other", open_in(tmp_path / "other"))
    with pytest.raises(ConfigurationError, match="a prefix of its own"):
        database_id.claim_bucket(objects, tmp_path / "other")
    database_id.give_bucket(objects, tmp_path / "other")
    database_id.claim_bucket(objects, tmp_path / "other")
