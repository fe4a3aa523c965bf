"""Arms that join experiments, what was known of units before, and episodes: several answers with one judgement.

``episode`` is a keyed hash of the name that a request gave, as ``unit`` is of a user or a session. Where the plan of an
experiment says so, an exposure's unit is the episode.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the table of joined arms, add the columns, and make the triggers anew that list columns."""
    op.create_table(
        "experiment_arms",
        sa.Column("experiment", sa.Text, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("arm", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("experiment", "epoch", name="pk_experiment_arms"),
        sa.ForeignKeyConstraint(
            ["experiment", "epoch"],
            ["experiment_epochs.experiment", "experiment_epochs.number"],
            name="fk_experiment_arms_epoch",
        ),
        comment="arms that joined a running experiment, each with an epoch of weights; the plan has the first ones",
    )
    op.add_column("experiment_units", sa.Column("covariate", sa.Double))
    op.add_column("interactions", sa.Column("episode", sa.Text))
    op.add_column("feedback", sa.Column("episode", sa.Text))
    op.create_index("ix_interactions_episode", "interactions", ["episode", "created_at", "id"])
    op.create_index("ix_interactions_unit", "interactions", ["unit", "created_at", "id"])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


FEEDBACK_APPEND_ONLY = "feedback is append-only"
ARMS_APPEND_ONLY = "the record of experiments is append-only"
JUDGEMENT = (
    "id, at, interaction_id, interaction_at, adapter, version, experiment, arm, probability, unit, asked, episode, "
    "choice, thumb, score, preferred_over, preferred_over_choice, key_id, idempotency_key"
)
EXPOSURE = """
INSERT INTO exposures
  (experiment, interaction_id, unit, arm, probability, created_at, status, total_ms, completion_tokens)
SELECT NEW.experiment, NEW.id,
  coalesce((SELECT NEW.episode FROM experiments WHERE name = NEW.experiment AND {} = 'episode'), NEW.unit, NEW.id),
  NEW.arm, NEW.probability, NEW.created_at, NEW.status, NEW.total_ms, NEW.completion_tokens
"""

SQLITE = [
    "DROP TRIGGER feedback_refuse_update",
    f"""
    CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF {JUDGEMENT} ON feedback
    BEGIN SELECT RAISE(ABORT, '{FEEDBACK_APPEND_ONLY}'); END
    """,
    *(
        f"""
        CREATE TRIGGER experiment_arms_refuse_{action.lower()} BEFORE {action} ON experiment_arms
        BEGIN SELECT RAISE(ABORT, '{ARMS_APPEND_ONLY}'); END
        """
        for action in ("UPDATE", "DELETE")
    ),
    "DROP TRIGGER interactions_are_exposures",
    f"""
    CREATE TRIGGER interactions_are_exposures AFTER INSERT ON interactions
    WHEN NEW.experiment IS NOT NULL
    BEGIN {EXPOSURE.format("json_extract(plan, '$.unit')")}; END
    """,
]

POSTGRESQL = [
    "DROP TRIGGER feedback_refuse_update ON feedback",
    f"""
    CREATE TRIGGER feedback_refuse_update BEFORE UPDATE OF {JUDGEMENT} ON feedback
    FOR EACH ROW EXECUTE FUNCTION graftwork_refuse('{FEEDBACK_APPEND_ONLY}')
    """,
    f"""
    CREATE TRIGGER experiment_arms_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON experiment_arms
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{ARMS_APPEND_ONLY}')
    """,
    f"""
    CREATE OR REPLACE FUNCTION graftwork_expose() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN {EXPOSURE.format("plan ->> 'unit'")}; RETURN NULL; END $$
    """,
]
