"""The registry (adapters, versions, aliases and their history) and the keys.

``number``, ``parent``, ``from_version`` and ``to_version`` are version numbers of the row's own adapter.
Times are UTC: text like 2026-11-22T17:14:57.123456Z on SQLite, timestamptz on PostgreSQL.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Create the tables of the registry and of keys."""
    op.create_table(
        "adapters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name="ck_adapters_name"),
        comment="one row per named task; its versions and aliases point here",
    )
    op.create_table(
        "versions",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("base_digest", sa.Text, nullable=False),
        sa.Column("verified", sa.Boolean(create_constraint=True, name="ck_versions_verified"), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("num_parameters", sa.BigInteger, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("parent", sa.Integer),
        sa.Column("data_digest", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("retired_at", TIME),
        sa.PrimaryKeyConstraint("name", "number", name="pk_versions"),
        sa.UniqueConstraint("name", "digest", name="uq_versions_name_digest"),
        sa.ForeignKeyConstraint(["name"], ["adapters.name"], name="fk_versions_name"),
        sa.ForeignKeyConstraint(["name", "parent"], ["versions.name", "versions.number"], name="fk_versions_parent"),
        sa.CheckConstraint("number >= 1", name="ck_versions_number"),
        sa.CheckConstraint("parent < number", name="ck_versions_parent"),
        sa.CheckConstraint("digest LIKE 'sha256:%'", name="ck_versions_digest"),
        sa.CheckConstraint("base_digest LIKE 'sha256:%'", name="ck_versions_base_digest"),
        sa.CheckConstraint("rank >= 0 AND num_parameters >= 0 AND num_bytes >= 0", name="ck_versions_sizes"),
        comment="every pushed adapter folder, by the digest of its files: immutable but for being retired, once",
    )
    op.create_table(
        "aliases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(["name", "number"], ["versions.name", "versions.number"], name="fk_aliases_version"),
        comment="where each alias of an adapter points now; alias_events says since when, by whom, and where before",
    )
    op.create_table(
        "alias_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("alias", sa.Text),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_alias_events"),
        sa.ForeignKeyConstraint(
            ["name", "from_version"], ["versions.name", "versions.number"], name="fk_alias_events_from_version"
        ),
        sa.ForeignKeyConstraint(
            ["name", "to_version"], ["versions.name", "versions.number"], name="fk_alias_events_to_version"
        ),
        sa.CheckConstraint("action IN ('push', 'promote', 'rollback', 'retire')", name="ck_alias_events_action"),
        sa.CheckConstraint(
            "(alias IS NOT NULL) = (action IN ('promote', 'rollback'))", name="ck_alias_events_alias_moves"
        ),
        comment="what happened to versions and aliases, in order and for good: what served at time T is read from here",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alias_events_name_id", "alias_events", ["name", "id"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.CheckConstraint("role IN ('app', 'operator', 'admin')", name="ck_keys_role"),
        comment="who may call the server: bearer keys, of which only a hash is kept",
    )
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


IMMUTABLE = "a version is immutable, push a new one"
RETIRED_ONCE = "a retired version stays retired"
APPEND_ONLY = "the history of aliases is append-only"

# The REPLACE in "INSERT OR REPLACE" deletes a row without firing its delete trigger: hence the two on insert.
SQLITE = [
    f"""
    CREATE TRIGGER versions_refuse_update BEFORE UPDATE OF
      name, number, digest, base_digest, verified, rank, num_parameters, num_bytes, config, parent, data_digest,
      metadata, created_at ON versions
    BEGIN SELECT RAISE(ABORT, '{IMMUTABLE}'); END
    """,
    f"""
    CREATE TRIGGER versions_retire_once BEFORE UPDATE OF retired_at ON versions WHEN OLD.retired_at IS NOT NULL
    BEGIN SELECT RAISE(ABORT, '{RETIRED_ONCE}'); END
    """,
    f"""
    CREATE TRIGGER versions_refuse_delete BEFORE DELETE ON versions
    BEGIN SELECT RAISE(ABORT, '{IMMUTABLE}'); END
    """,
    f"""
    CREATE TRIGGER versions_refuse_replace BEFORE INSERT ON versions
    WHEN EXISTS (SELECT 1 FROM versions WHERE name = NEW.name AND (number = NEW.number OR digest = NEW.digest))
    BEGIN SELECT RAISE(ABORT, '{IMMUTABLE}'); END
    """,
    f"""
    CREATE TRIGGER alias_events_refuse_update BEFORE UPDATE ON alias_events
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
    f"""
    CREATE TRIGGER alias_events_refuse_delete BEFORE DELETE ON alias_events
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
    f"""
    CREATE TRIGGER alias_events_refuse_replace BEFORE INSERT ON alias_events
    WHEN EXISTS (SELECT 1 FROM alias_events WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
]

POSTGRESQL = [
    """
    CREATE FUNCTION graftwork_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation'; END $$
    """,
    f"""
    CREATE TRIGGER versions_refuse_update BEFORE UPDATE OF
      name, number, digest, base_digest, verified, rank, num_parameters, num_bytes, config, parent, data_digest,
      metadata, created_at ON versions
    FOR EACH ROW EXECUTE FUNCTION graftwork_refuse('{IMMUTABLE}')
    """,
    f"""
    CREATE TRIGGER versions_retire_once BEFORE UPDATE OF retired_at ON versions
    FOR EACH ROW WHEN (OLD.retired_at IS NOT NULL) EXECUTE FUNCTION graftwork_refuse('{RETIRED_ONCE}')
    """,
    f"""
    CREATE TRIGGER versions_refuse_delete BEFORE DELETE OR TRUNCATE ON versions
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{IMMUTABLE}')
    """,
    f"""
    CREATE TRIGGER alias_events_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON alias_events
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
]
