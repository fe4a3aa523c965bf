"""API keys: shown once, stored as a hash, created and revoked in all processes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from graftwork.adapters.access.keys import Keys, Role
from graftwork.adapters.access.limits import Limits
from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.storage.database import Database, migrate


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


def test_roles_are_ordered() -> None:
    assert Role.APP < Role.OPERATOR < Role.ADMIN
    assert Role.ADMIN >= Role.ADMIN > Role.APP
    assert max(Role) is Role.ADMIN
    assert Role.parse("operator") is Role.OPERATOR
    for wrong in ("root", "", "APP"):
        with pytest.raises(InvalidRequest, match="app, operator, admin") as caught:
            Role.parse(wrong)
        assert caught.value.param == "role"


def test_a_key_opens_until_it_is_revoked(database: Database) -> None:
    keys = Keys(database)
    bearer, key = keys.create("the shop's back end", "operator")
    assert bearer.startswith(f"gw_{key.id}_")
    assert keys.authenticate(bearer) == key
    assert (key.role, key.revoked_at) == (Role.OPERATOR, None)
    other_bearer, other = keys.create("ci", Role.APP)
    assert keys.list() == (key, other)
    revoked = keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert keys.authenticate(bearer) is None
    assert keys.authenticate(other_bearer) == other
    assert keys.revoke(key.id) == revoked
    assert keys.list() == (revoked, other)


def test_the_secret_is_not_in_the_database(database: Database, tmp_path: Path) -> None:
    bearer, key = Keys(database).create("ci", "app")
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.id.encode() in stored
    assert bearer.rsplit("_", 1)[1].encode() not in stored


def test_what_is_no_key(database: Database) -> None:
    keys = Keys(database)
    bearer, key = keys.create("ci", "admin")
    other, _ = keys.create("other", "app")
    wrong = [
        "",
        "gw_",
        key.id,
        bearer[:-1],
        bearer + "0",
        bearer.upper(),
        bearer + "\n",
        f"gw_{key.id}_{other.rsplit('_', 1)[1]}",
        f"gw_{'0' * 12}_{'0' * 64}",
        "\ud800",
        "x" * 100_000,
    ]
    assert [keys.authenticate(text) for text in wrong] == [None] * len(wrong)


def test_other_processes_see_new_and_revoked_keys(database: Database, tmp_path: Path) -> None:
    here, there = Keys(database), Keys(Database(tmp_path / "graftwork.db"))
    first, _ = here.create("first", "app")
    assert there.authenticate(first)
    second, key = here.create("second", "app")
    assert there.authenticate(second)
    here.revoke(key.id)
    assert there.authenticate(second) is None
    assert there.authenticate(first)


def test_a_known_key_is_not_looked_up_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(database)
    bearer, key = keys.create("ci", "app")
    keys.authenticate(bearer)
    monkeypatch.setattr(database, "read", lambda: pytest.fail("asked the database"))
    assert keys.authenticate(bearer) == key


def test_the_first_admin_key(database: Database) -> None:
    keys = Keys(database, admin_key="from the environment")
    admin = keys.authenticate("from the environment")
    assert admin is not None
    assert admin.role is Role.ADMIN
    assert keys.authenticate("from the environment ") is None
    assert keys.list() == ()


def test_taking_away_the_last_key_locks_the_door(database: Database) -> None:
    keys = Keys(database)
    assert not keys.configured()
    assert not Keys(database, admin_key="").configured()
    assert Keys(database, admin_key="secret").configured()
    _, key = keys.create("only", "admin")
    keys.revoke(key.id)
    assert keys.configured()


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\0b"])
def test_bad_names(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Keys(database).create(name, "app")
    assert caught.value.param == "name"


@pytest.mark.parametrize("key_id", ["", "0" * 12, "\ud800", "x" * 1000])
def test_revoking_what_is_not_there(database: Database, key_id: str) -> None:
    with pytest.raises(NotFound, match="the part after gw_"):
        Keys(database).revoke(key_id)


def test_the_database_knows_the_roles(database: Database) -> None:
    Keys(database).create("ci", "app")
    with pytest.raises(Exception, match="ck_keys_role"), database.write() as connection:
        connection.execute(text("UPDATE keys SET role = 'root'"))


# --- with a clock -----------------------------------------------------------------------------------------------------


class Clock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def test_a_key_ends_when_it_expires(database: Database) -> None:
    clock = Clock()
    keys = Keys(database, now=clock)
    bearer, key = keys.create("ci", "app", expires_at=clock.now + timedelta(seconds=60))
    clock.pass_(59.9)
    assert keys.authenticate(bearer) == keys.get(key.id) == key
    clock.pass_(0.1)
    assert keys.authenticate(bearer) is None
    assert keys.get(key.id) is None
    assert keys.record(key.id) == key
    # It can be renamed as it is, and brought back.
    keys.change(key.id, {"name": "ci, late"})
    with pytest.raises(InvalidRequest, match="expires_at has passed"):
        keys.change(key.id, {"expires_at": clock.now - timedelta(seconds=1)})
    keys.change(key.id, {"expires_at": None})
    assert keys.authenticate(bearer) is not None


def test_the_secret_before_is_valid_for_a_while(database: Database) -> None:
    clock = Clock()
    keys = Keys(database, now=clock)
    first, key = keys.create("ci", "app")
    second, rotated = keys.rotate(key.id, overlap=timedelta(seconds=60))
    assert (rotated.id, rotated.name, rotated.rotated_at) == (key.id, "ci", clock.now)
    clock.pass_(59.9)
    assert keys.authenticate(first) == keys.authenticate(second) == rotated
    clock.pass_(0.1)
    assert keys.authenticate(first) is None
    assert keys.authenticate(second) == rotated
    third, _ = keys.rotate(key.id, overlap=timedelta(seconds=60))
    fourth, _ = keys.rotate(key.id, overlap=timedelta(seconds=60))
    assert [keys.authenticate(bearer) is not None for bearer in (first, second, third, fourth)] == [
        False,
        False,
        True,
        True,
    ]
    keys.revoke(key.id)
    assert keys.authenticate(third) is None


def test_names_are_unique_from_now_on(database: Database) -> None:
    keys = Keys(database)
    _, one = keys.create("CI  pipeline", "app")
    with pytest.raises(Conflict, match="already"):
        keys.create("ci pipeline ", "operator")
    _, other = keys.create("other", "app")
    # As an older release let it be.
    with database.write() as connection:
        connection.execute(text("UPDATE keys SET name = 'CI  pipeline'"))
    assert keys.change(other.id, {"limits": Limits(concurrent=1)}).name == one.name
    with pytest.raises(Conflict):
        keys.create("CI pipeline", "app")
    keys.change(other.id, {"name": "other"})
    with pytest.raises(Conflict):
        keys.change(other.id, {"name": "CI pipeline"})
    keys.revoke(one.id)
    keys.change(other.id, {"name": "CI pipeline"})


@pytest.mark.parametrize("name", ["first admin key", "First  Admin Key", "LOCAL", "trainer", "keeper"])
def test_nobody_is_called_like_the_server(database: Database, name: str) -> None:
    with pytest.raises(InvalidRequest, match="histories"):
        Keys(database).create(name, "app")
