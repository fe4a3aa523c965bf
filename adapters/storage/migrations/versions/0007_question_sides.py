"""The table of the sides that questions are on: learned from, or held out, for good."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table of questions' sides."""
    op.create_table(
        "question_sides",
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("side", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("adapter", "question", name="pk_question_sides"),
        sa.CheckConstraint("side IN ('train', 'validation', 'test')", name="ck_question_sides_side"),
        comment="which questions, by their hashes, an adapter's versions learn from or hold out; written once",
    )
