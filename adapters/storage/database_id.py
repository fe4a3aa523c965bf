"""Which database a home and a bucket belong to: whatever their database has no row of is deleted in both.

Each database has a random id among its settings. A home has it in ``database.id``, a bucket in the object
``database-id``, both from the first start on. A server whose database has another id would take everything that was
uploaded for strays, and does not start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.storage.database import DATABASE_FILE, Database
from graftwork.adapters.storage.durable import write_durably
from graftwork.adapters.storage.objects import ObjectStore
from graftwork.adapters.storage.settings import DATABASE_ID, find_by_prefix, secret

HOME_FILE: Final = "database.id"
BUCKET_KEY: Final = "database-id"

_MAX_BYTES: Final = 1024


def claim_home(home: Path, database: Database) -> None:
    """Check that a home belongs to a database, or let it belong to that one if it belongs to none yet.

    Args:
        home: The folder, of which the caller has the lock.
        database: Migrated.

    Raises:
        ConfigurationError: It belongs to another database; the message says what to do.
    """
    known = _id_of(home)
    if known is None:
        own = home / DATABASE_FILE
        if own.exists() and not (database.is_sqlite and own.resolve() == Path(str(database)).resolve()):
            raise ConfigurationError(
                f"The home {home} has a {DATABASE_FILE}, and the server was started on {database}: files that only the "
                "former knows would be deleted. Copy it there with graftwork move. If that was done already, move "
                f"{DATABASE_FILE} out of the home."
            )
        give(home, database)
    elif known != secret(database, DATABASE_ID).hex():
        raise _belongs_to_another(home)


def give(home: Path, database: Database) -> None:
    """Let a home belong to a database, whichever it belonged to."""
    write_durably(home / HOME_FILE, secret(database, DATABASE_ID).hex())


def claim_bucket(objects: ObjectStore, home: Path) -> None:
    """Check that a bucket belongs to the database of a home, or let it belong to that if it belongs to none yet.

    Raises:
        ConfigurationError: It belongs to another database; the message says what to do.
        Unavailable: The bucket does not answer or refuses.
    """
    if objects.put_new(BUCKET_KEY, home / HOME_FILE):
        return
    if b"".join(objects.chunks(BUCKET_KEY, max_bytes=_MAX_BYTES)).decode(errors="replace") != _id_of(home):
        raise ConfigurationError(
            f"The bucket {objects.url} belongs to another database: what this one does not know would be deleted "
            "there. Give this server a bucket or a prefix of its own, or start it with the database that the bucket "
            f"had. Only if everything in it is this database's, delete its object {BUCKET_KEY}."
        )


def give_bucket(objects: ObjectStore, home: Path) -> None:
    """Let a bucket belong to the database of a home, whichever it belonged to.

    Raises:
        Unavailable: The bucket does not answer or refuses.
    """
    objects.put(BUCKET_KEY, home / HOME_FILE)


def check_own(home: Path) -> None:
    """Check that the SQLite file in a home is the database that the home belongs to, if it belongs to any.

    Raises:
        ConfigurationError: The home belongs to another one, or the file cannot be read.
    """
    known = _id_of(home)
    if known is None:
        return
    database = Database(home / DATABASE_FILE)
    try:
        stored = find_by_prefix(database, DATABASE_ID).get(DATABASE_ID)
    except DBAPIError as error:
        raise ConfigurationError(f"{database} cannot be read: {error.orig}") from error
    finally:
        database.close()
    if stored != known:
        raise _belongs_to_another(home)


def _id_of(home: Path) -> str | None:
    """The id of the database that a home belongs to."""
    try:
        return (home / HOME_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _belongs_to_another(home: Path) -> ConfigurationError:
    return ConfigurationError(
        f"The home {home} belongs to another database: what this one does not know would be deleted there. After "
        "graftwork move that is the one on PostgreSQL: name it with --database or GRAFTWORK_DATABASE. Give a different "
        "database a home of its own with --home. Only if all files of the home are this one's, delete its "
        f"{HOME_FILE}."
    )
