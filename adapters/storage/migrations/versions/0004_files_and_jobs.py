"""Tables of uploaded files, and of jobs with their claims, events and checkpoints.

``owner``, ``token`` and ``lease_until`` are a job's claim: token grows with every claim. ``relayed_bytes`` is
how much of the run's progress file has become events, in one transaction with them, so that none is stored twice.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
STATUSES = "'validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    """Create the tables of files, jobs, events and checkpoints."""
    op.create_table(
        "files",
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
        sa.CheckConstraint("purpose IN ('fine-tune', 'fine-tune-results')", name="ck_files_purpose"),
        comment="what was uploaded, and results of jobs; the bytes are in the folder of files, under the id",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobs",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("hyperparameters", sa.JSON, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("training_file", sa.Text, nullable=False),
        sa.Column("validation_file", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("owner", sa.Text),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("lease_until", TIME),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("publishing", sa.Boolean(create_constraint=True, name="ck_jobs_publishing"), nullable=False),
        sa.Column("relayed_bytes", sa.BigInteger, nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("result_files", sa.JSON, nullable=False),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.UniqueConstraint("key_id", "idempotency_key", name="uq_jobs_idempotency_key"),
        sa.CheckConstraint(f"status IN ({STATUSES})", name="ck_jobs_status"),
        sa.CheckConstraint("(status = 'succeeded') = (version IS NOT NULL)", name="ck_jobs_version"),
        sa.CheckConstraint("(status = 'failed') = (error IS NOT NULL)", name="ck_jobs_error"),
        sa.CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="ck_jobs_finished"
        ),
        sa.CheckConstraint("finished_at IS NULL OR owner IS NULL", name="ck_jobs_owner"),
        sa.CheckConstraint("(owner IS NULL) = (lease_until IS NULL)", name="ck_jobs_lease"),
        comment="one row per training run that was asked for: what, where it stands, what came of it",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_status", "jobs", ["status", "number"])
    op.create_table(
        "job_events",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_events"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_job_events_job"),
        sa.CheckConstraint("level IN ('info', 'warn', 'error')", name="ck_job_events_level"),
        sa.CheckConstraint("kind IN ('message', 'metrics')", name="ck_job_events_kind"),
        comment="what happened to a job, in order and for good",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_events_job", "job_events", ["job", "id"])
    op.create_table(
        "job_checkpoints",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_job_checkpoints"),
        sa.UniqueConstraint("job", "step", name="uq_job_checkpoints_step"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_job_checkpoints_job"),
        comment="the steps after which a run was saved whole",
        sqlite_autoincrement=True,
    )
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


ENDED = "a job that has ended does not change, submit another one"
APPEND_ONLY = "the record of jobs is append-only"

SQLITE = [
    f"""
    CREATE TRIGGER jobs_refuse_update BEFORE UPDATE ON jobs
    WHEN OLD.finished_at IS NOT NULL OR NEW.id <> OLD.id OR NEW.name <> OLD.name OR NEW.created_at <> OLD.created_at
    BEGIN SELECT RAISE(ABORT, '{ENDED}'); END
    """,
    f"""
    CREATE TRIGGER jobs_refuse_delete BEFORE DELETE ON jobs
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
    *(
        f"""
        CREATE TRIGGER job_events_refuse_{action.lower()} BEFORE {action} ON job_events
        BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
        """
        for action in ("UPDATE", "DELETE")
    ),
]

POSTGRESQL = [
    f"""
    CREATE TRIGGER jobs_refuse_update BEFORE UPDATE ON jobs
    FOR EACH ROW WHEN (OLD.finished_at IS NOT NULL OR NEW.id <> OLD.id OR NEW.name <> OLD.name
      OR NEW.created_at <> OLD.created_at)
    EXECUTE FUNCTION graftwork_refuse('{ENDED}')
    """,
    f"""
    CREATE TRIGGER jobs_refuse_delete BEFORE DELETE OR TRUNCATE ON jobs
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
    f"""
    CREATE TRIGGER job_events_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON job_events
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
]
