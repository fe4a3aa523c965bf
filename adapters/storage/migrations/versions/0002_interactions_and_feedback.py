"""Tables of interactions, feedback, log policies, lineage (what versions were trained on), secrets and leases.

``adapter`` and ``version`` are an adapter's name and a version's number; both are NULL where the bare base answered.
``key_id`` is the key of the request, or ``local`` on a server without keys. ``unit`` is a keyed hash of the user or the
session. ``at`` is when feedback was received, ``created_at`` when a request was admitted, to the second.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Create the tables of interactions, feedback, log policies, lineage, settings and leases."""
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
        comment="what this server made up once and must keep: secrets, by name",
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("acquired_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
        comment="what only one process may do at a time, and who does it until when; token counts the owners",
    )
    op.create_table(
        "interactions",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text),
        sa.Column("version", sa.Integer),
        sa.Column("experiment", sa.Text),
        sa.Column("arm", sa.Text),
        sa.Column("probability", sa.Double),
        sa.Column("unit", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("completions", sa.JSON, nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("queue_ms", sa.Double),
        sa.Column("first_token_ms", sa.Double),
        sa.Column("total_ms", sa.Double, nullable=False),
        sa.Column("end_user", sa.Text),
        sa.Column("metadata", sa.JSON),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_interactions"),
        sa.CheckConstraint("kind IN ('chatcmpl', 'cmpl')", name="ck_interactions_kind"),
        sa.CheckConstraint("status IN ('ok', 'error', 'cancelled')", name="ck_interactions_status"),
        sa.CheckConstraint("(adapter IS NULL) = (version IS NULL)", name="ck_interactions_adapter"),
        sa.CheckConstraint(
            "(experiment IS NULL) = (arm IS NULL) AND (arm IS NULL) = (probability IS NULL)",
            name="ck_interactions_experiment",
        ),
        comment="one row per request that was answered and logged; kept as long as policies say",
    )
    op.create_index("ix_interactions_created", "interactions", ["created_at", "id"])
    op.create_index("ix_interactions_adapter", "interactions", ["adapter", "created_at", "id"])
    op.create_index("ix_interactions_experiment", "interactions", ["experiment", "created_at", "id"])
    op.create_index("ix_interactions_end_user", "interactions", ["end_user", "created_at", "id"])
    op.create_table(
        "feedback",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("interaction_id", sa.Text, nullable=False),
        sa.Column("interaction_at", TIME, nullable=False),
        sa.Column("adapter", sa.Text),
        sa.Column("version", sa.Integer),
        sa.Column("experiment", sa.Text),
        sa.Column("arm", sa.Text),
        sa.Column("probability", sa.Double),
        sa.Column("unit", sa.Text),
        sa.Column("choice", sa.Integer, nullable=False),
        sa.Column("thumb", sa.Text),
        sa.Column("score", sa.Double),
        sa.Column("correction", sa.Text),
        sa.Column("preferred_over", sa.Text),
        sa.Column("preferred_over_choice", sa.Integer),
        sa.Column("comment", sa.Text),
        sa.Column("metadata", sa.JSON),
        sa.Column("end_user", sa.Text),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("erased_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
        sa.UniqueConstraint("key_id", "idempotency_key", name="uq_feedback_idempotency_key"),
        sa.CheckConstraint("thumb IN ('up', 'down')", name="ck_feedback_thumb"),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name="ck_feedback_score"),
        sa.CheckConstraint("(preferred_over IS NULL) = (preferred_over_choice IS NULL)", name="ck_feedback_preferred"),
        sa.CheckConstraint("(adapter IS NULL) = (version IS NULL)", name="ck_feedback_adapter"),
        sa.CheckConstraint(
            "(experiment IS NULL) = (arm IS NULL) AND (arm IS NULL) = (probability IS NULL)",
            name="ck_feedback_experiment",
        ),
        comment="what was said of answers, in order and for good; only texts can be erased, and leave the judgement",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_feedback_interaction", "feedback", ["interaction_id", "id"])
    op.create_index("ix_feedback_adapter", "feedback", ["adapter", "id"])
    op.create_index("ix_feedback_experiment", "feedback", ["experiment", "id"])
    op.create_index("ix_feedback_unit", "feedback", ["unit", "id"])
    op.create_index("ix_feedback_end_user", "feedback", ["end_user", "id"])
    op.create_index("ix_feedback_at", "feedback", ["at", "id"])
    op.create_table(
        "log_policies",
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("log", sa.Boolean(create_constraint=True, name="ck_log_policies_log"), nullable=False),
        sa.Column("retention_days", sa.Double),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("scope", "subject", name="pk_log_policies"),
        sa.CheckConstraint("scope IN ('adapter', 'key')", name="ck_log_policies_scope"),
        sa.CheckConstraint("retention_days > 0", name="ck_log_policies_retention_days"),
        comment="what is logged of an adapter (or the base, by its id) or a key, and for how long, unless by default",
    )
    op.create_table(
        "learned_from",
        sa.Column("data_digest", sa.Text, nullable=False),
        sa.Column("interaction_sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("data_digest", "interaction_sha256", name="pk_learned_from"),
        comment="which answers a data set was made of, as hashes of their ids; versions name it by their data_digest",
    )
    op.create_index("ix_learned_from_interaction", "learned_from", ["interaction_sha256"])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


APPEND_ONLY = "feedback is append-only"
JUDGEMENT = (
    "id, at, interaction_id, interaction_at, adapter, version, experiment, arm, probability, unit, choice, thumb, "
    "score, preferred_over, preferred_over_choice, key_id, idempotency_key"
)
TEXTS = "correction, comment, metadata, end_user, erased_at"
ERASED = " AND ".join(f"NEW.{name} IS NULL" for name in TEXTS.split(", ")[:-1]) + " AND NEW.erased_at IS NOT NULL"

SQLITE = [
    f"""
    CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF {JUDGEMENT} ON feedback
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
    f"""
    CREATE TRIGGER feedback_erase_only BEFORE UPDATE OF {TEXTS} ON feedback WHEN NOT ({ERASED})
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
    f"""
    CREATE TRIGGER feedback_refuse_delete BEFORE DELETE ON feedback
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
    f"""
    CREATE TRIGGER feedback_refuse_replace BEFORE INSERT ON feedback
    WHEN EXISTS (SELECT 1 FROM feedback WHERE id = NEW.id
                 OR (key_id = NEW.key_id AND idempotency_key = NEW.idempotency_key))
    BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
    """,
]

POSTGRESQL = [
    f"""
    CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF {JUDGEMENT} ON feedback
    FOR EACH ROW EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
    f"""
    CREATE TRIGGER feedback_erase_only BEFORE UPDATE OF {TEXTS} ON feedback
    FOR EACH ROW WHEN (NOT ({ERASED})) EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
    f"""
    CREATE TRIGGER feedback_refuse_delete BEFORE DELETE OR TRUNCATE ON feedback
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
    """,
]
