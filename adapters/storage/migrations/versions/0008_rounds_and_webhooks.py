"""Tables of rounds of learning and of webhooks, and policies whose candidates have to win an experiment.

Rounds that a policy began before are jobs with its name and number in their metadata. They become rounds that wait for
their jobs, and the keeper finds out what became of them.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
STATES = (
    "'collecting', 'training', 'gating', 'experimenting', 'awaiting_decision', "
    "'promoted', 'set_aside', 'failed', 'cancelled', 'undone'"
)


def upgrade() -> None:
    """Create the tables, and make rounds of the jobs that were."""
    op.add_column("learning_policies", sa.Column("experiment", sa.JSON))
    op.create_table(
        "rounds",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("control", sa.Boolean(create_constraint=True, name="ck_rounds_control"), nullable=False),
        sa.Column("continues", sa.Text),
        sa.Column("live", sa.Text, nullable=False),
        sa.Column("judgements", sa.JSON, nullable=False),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("data_digest", sa.Text),
        sa.Column("rows", sa.JSON),
        sa.Column("candidate", sa.Text),
        sa.Column("gates", sa.JSON),
        sa.Column("experiment", sa.Text),
        sa.Column("decision", sa.JSON),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("ended_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_rounds"),
        sa.UniqueConstraint("adapter", "number", name="uq_rounds_number"),
        sa.UniqueConstraint("job", name="uq_rounds_job"),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name="fk_rounds_adapter"),
        sa.CheckConstraint("number >= 1", name="ck_rounds_number"),
        sa.CheckConstraint(f"state IN ({STATES})", name="ck_rounds_state"),
        comment="rounds of learning: from feedback to a version that is live, or is not",
    )
    op.create_index("ix_rounds_created_at", "rounds", ["created_at"])
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        comment="addresses that are told what happens; a secret signs the requests and has to be known for that",
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("webhook", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", TIME),
        sa.Column("delivered_at", TIME),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_webhook_deliveries"),
        sa.UniqueConstraint("webhook", "event", name="uq_webhook_deliveries_event"),
        sa.ForeignKeyConstraint(["webhook"], ["webhooks.id"], name="fk_webhook_deliveries_webhook"),
        sa.CheckConstraint("state IN ('waiting', 'delivered', 'failed')", name="ck_webhook_deliveries_state"),
        sqlite_autoincrement=True,
        comment="events that webhooks are told of, stored with what they are about and sent afterwards",
    )
    op.create_index("ix_webhook_deliveries_next_at", "webhook_deliveries", ["state", "next_at"])
    _adopt_rounds()


def _adopt_rounds() -> None:
    connection = op.get_bind()
    found = connection.execute(
        sa.text(
            "SELECT id, name, parent, metadata, created_at, created_by FROM jobs "
            "WHERE key_id = 'learning-policy' ORDER BY number"
        )
    ).all()
    rounds = sa.table(
        "rounds",
        *(sa.column(name) for name in ("id", "adapter", "number", "state", "control", "continues", "live")),
        *(sa.column(name, sa.JSON) for name in ("judgements", "policy")),
        *(sa.column(name) for name in ("job", "created_by", "created_at", "updated_at")),
    )
    for row in found:
        metadata: dict[str, Any] = json.loads(row.metadata) if isinstance(row.metadata, str) else row.metadata
        live = row.parent or metadata.get("graftwork_control")
        if live is None or "round" not in metadata:
            continue
        connection.execute(
            sa.insert(rounds).values(
                id=f"round-{secrets.token_hex(12)}",
                adapter=row.name,
                number=int(metadata["round"]),
                state="training",
                control=row.parent is None,
                continues=row.parent,
                live=live,
                judgements={},
                policy={"experiment": None},
                job=row.id,
                created_by=row.created_by,
                created_at=row.created_at,
                updated_at=row.created_at,
            )
        )
