"""Tables of batches and of their results; and files of the purposes ``batch`` and ``batch_output``.

The results of a batch that has not ended are in ``batch_results``, a row for each request that was answered, written in
one transaction with the batch's counts. When it has ended they are in its files, and the rows are deleted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
STATUSES = "'validating', 'in_progress', 'finalizing', 'completed', 'failed', 'expired', 'cancelling', 'cancelled'"
PURPOSES = "purpose IN ('fine-tune', 'fine-tune-results', 'batch', 'batch_output')"


def upgrade() -> None:
    """Create the tables of batches, and let files have their purposes."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    if is_postgresql:
        op.drop_constraint("ck_files_purpose", "files")
        op.create_check_constraint("ck_files_purpose", "files", PURPOSES)
    else:
        _copy_files()
    op.create_table(
        "batches",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file", sa.Text, nullable=False),
        sa.Column("completion_window", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("in_progress_at", TIME),
        sa.Column("finalizing_at", TIME),
        sa.Column("completed_at", TIME),
        sa.Column("failed_at", TIME),
        sa.Column("expired_at", TIME),
        sa.Column("cancelling_at", TIME),
        sa.Column("cancelled_at", TIME),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("errors", sa.JSON, nullable=False),
        sa.Column("waiting", sa.Text),
        sa.Column("output_file", sa.Text),
        sa.Column("error_file", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_batches"),
        sa.UniqueConstraint("id", name="uq_batches_id"),
        sa.UniqueConstraint("key_id", "idempotency_key", name="uq_batches_idempotency_key"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name="ck_batches_status"),
        sa.CheckConstraint("completed >= 0 AND failed >= 0 AND completed + failed <= total", name="ck_batches_counts"),
        comment="one row per batch of requests: what was asked, where it stands, which files have the results",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batches_status", "batches", ["status", "number"])
    op.create_table(
        "batch_results",
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("failed", sa.Boolean(create_constraint=True, name="ck_batch_results_failed"), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("batch", "line", name="pk_batch_results"),
        sa.ForeignKeyConstraint(["batch"], ["batches.id"], name="fk_batch_results_batch"),
        comment="answers of batches that have not ended, by the line of the input file; later they are in files",
    )
    for statement in POSTGRESQL if is_postgresql else SQLITE:
        op.get_bind().exec_driver_sql(statement)


def _copy_files() -> None:
    """Make the table of files anew: SQLite cannot change a constraint."""
    op.create_table(
        "files_with_batches",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("deleted_at", TIME),
        sa.PrimaryKeyConstraint("number", name="pk_files"),
        sa.UniqueConstraint("id", name="uq_files_id"),
        sa.CheckConstraint(PURPOSES, name="ck_files_purpose"),
        comment="what was uploaded, and results of jobs and batches; the bytes are in the folder of files, by id",
        sqlite_autoincrement=True,
    )
    op.execute("INSERT INTO files_with_batches SELECT * FROM files")
    op.drop_table("files")
    op.rename_table("files_with_batches", "files")


ENDED = "a batch that has ended does not change, create another one"
APPEND_ONLY = "the record of batches is append-only"
HAS_ENDED = "OLD.status IN ('completed', 'failed', 'expired', 'cancelled')"

SQLITE = [
    f"""
    CREATE TRIGGER batches_refuse_update BEFORE UPDATE ON batches
    WHEN {HAS_ENDED} OR NEW.id <> OLD.id OR NEW.key_id <> OLD.key_id OR NEW.created_at <> OLD.created_at
    BEGIN SELECT RAISE(ABORT, '{ENDED}'); END
    """,
    f"""
    CREATE TRIGGER batches_refuse_delete BEFORE DELETE ON batches
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
]

POSTGRESQL = [
    f"""
    CREATE TRIGGER batches_refuse_update BEFORE UPDATE ON batches
    FOR EACH ROW WHEN ({HAS_ENDED} OR NEW.id <> OLD.id OR NEW.key_id <> OLD.key_id
      OR NEW.created_at <> OLD.created_at)
    EXECUTE FUNCTION graftwork_refuse('{ENDED}')
    """,
    f"""
    CREATE TRIGGER batches_refuse_delete BEFORE DELETE OR TRUNCATE ON batches
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
]
