"""Feedback that was asked for: the share of the answers that a log policy marks, and whether feedback is on one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the two columns, and make the trigger that keeps judgements anew: this is part of one."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.execute(
        f"ALTER TABLE log_policies ADD COLUMN ask_feedback {'DOUBLE PRECISION' if is_postgresql else 'DOUBLE'} "
        "CONSTRAINT ck_log_policies_ask_feedback CHECK (ask_feedback BETWEEN 0 AND 1)"
    )
    # Nobody was asked by a draw before there was one.
    op.add_column("feedback", sa.Column("asked", sa.Boolean, nullable=False, server_default=sa.false()))
    for statement in POSTGRESQL if is_postgresql else SQLITE:
        op.get_bind().exec_driver_sql(statement)


APPEND_ONLY = "feedback is append-only"
JUDGEMENT = (
    "id, at, interaction_id, interaction_at, adapter, version, experiment, arm, probability, unit, asked, choice, "
    "thumb, score, preferred_over, preferred_over_choice, key_id, idempotency_key"
)

SQLITE = [
    "DROP TRIGGER feedback_refuse_update",
    f"""
    CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF {JUDGEMENT} ON feedback
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
]

POSTGRESQL = [
    "DROP TRIGGER feedback_refuse_update ON feedback",
    f"""
    CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF {JUDGEMENT} ON feedback
    FOR EACH ROW EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
]
