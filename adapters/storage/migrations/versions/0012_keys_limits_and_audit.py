"""Keys with an end, a scope, limits and a second secret; limits of adapters; what both used; and the audit log.

Names of keys are unique from now on, among keys that are not revoked. Older databases may hold two of one name, which
go on to work: so the rule is kept by the code, not by an index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Add the columns of keys, and create the tables of usage and of the audit log."""
    op.add_column("keys", sa.Column("expires_at", TIME))
    op.add_column("keys", sa.Column("adapters", sa.JSON))
    op.add_column("keys", sa.Column("limits", sa.JSON))
    op.add_column("keys", sa.Column("rotated_at", TIME))
    op.add_column("keys", sa.Column("previous_sha256", sa.Text))
    op.add_column("keys", sa.Column("previous_until", TIME))
    op.add_column("adapters", sa.Column("limits", sa.JSON))
    op.create_table(
        "usage",
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subject", "day", name="pk_usage"),
        sa.CheckConstraint("requests >= 0 AND tokens >= 0", name="ck_usage_counts"),
        comment="what a key, or adapter:NAME, used per day (UTC, YYYY-MM-DD), written every second: budgets count it",
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("remote", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        comment="every change by a request, and by whom; append-only",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_key_id", "audit_log", ["key_id", "id"])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


APPEND_ONLY = "the audit log is append-only"

SQLITE = [
    f"""
    CREATE TRIGGER audit_log_refuse_{action.lower()} BEFORE {action} ON audit_log
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """
    for action in ("UPDATE", "DELETE")
]

POSTGRESQL = [
    f"""
    CREATE TRIGGER audit_log_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """
]
