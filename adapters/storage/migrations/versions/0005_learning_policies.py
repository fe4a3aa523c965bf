"""The table of learning policies. Their rounds are jobs, whose ``key_id`` says that a policy submitted them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Create the table of learning policies."""
    op.create_table(
        "learning_policies",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("after", sa.Integer),
        sa.Column("every_days", sa.Double),
        sa.Column("at_least", sa.Integer, nullable=False),
        sa.Column("control_every", sa.Integer),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("hyperparameters", sa.JSON, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_learning_policies"),
        sa.ForeignKeyConstraint(["name"], ["adapters.name"], name="fk_learning_policies_adapter"),
        sa.CheckConstraint("after >= 1", name="ck_learning_policies_after"),
        sa.CheckConstraint("every_days > 0", name="ck_learning_policies_every_days"),
        sa.CheckConstraint("after IS NOT NULL OR every_days IS NOT NULL", name="ck_learning_policies_when"),
        sa.CheckConstraint("at_least >= 1", name="ck_learning_policies_at_least"),
        sa.CheckConstraint("control_every >= 1", name="ck_learning_policies_control_every"),
        comment="when an adapter learns by itself: after so many new judgements, or every so many days with some",
    )
