"""Tables of experiments: plans, epochs of weights, events, exposures, closed units and readings.

``salt`` and the arcs of an epoch determine the arm of each unit. A trigger adds a row to ``exposures`` for each
interaction that is logged with an experiment's arm: what the statistics need of it stays when the interaction is
erased. ``unit`` there is a keyed hash of the user or session, or the interaction's id if the request named neither.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables and triggers of experiments."""
    op.create_table(
        "experiments",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("started_by", sa.Text, nullable=False),
        sa.Column("ended_at", TIME),
        sa.Column("outcome", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("name", name="pk_experiments"),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name="fk_experiments_adapter"),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ck_experiments_outcome"),
        comment="what was asked, once and for all; with its end comes the outcome, and what it was decided on",
    )
    op.create_index(
        "uq_experiments_running",
        "experiments",
        ["adapter"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "experiment_epochs",
        sa.Column("experiment", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("arcs", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("experiment", "number", name="pk_experiment_epochs"),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.name"], name="fk_experiment_epochs_experiment"),
        comment="which arcs of the hash belonged to which arm, from when on: [start, end, arm] each",
    )
    op.create_table(
        "experiment_events",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("experiment", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("arm", sa.Text),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("details", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("id", name="pk_experiment_events"),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.name"], name="fk_experiment_events_experiment"),
        sa.CheckConstraint(
            "action IN ('start', 'weights', 'rollback', 'advice', 'alarm', 'stop')", name="ck_experiment_events_action"
        ),
        comment="what happened to experiments, in order and for good",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_experiment_events_experiment", "experiment_events", ["experiment", "id"])
    op.create_table(
        "exposures",
        sa.Column("seq", NUMBER, autoincrement=True, nullable=False),
        sa.Column("experiment", sa.Text, nullable=False),
        sa.Column("interaction_id", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("total_ms", sa.Double, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_exposures"),
        comment="one row per logged request that an experiment answered, in the order in which they were logged",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_exposures_experiment", "exposures", ["experiment", "seq"])
    op.create_index("ix_exposures_unit", "exposures", ["experiment", "unit"])
    op.create_table(
        "experiment_units",
        sa.Column("experiment", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("first_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=False),
        sa.Column("learned", sa.Boolean(create_constraint=True, name="ck_experiment_units_learned"), nullable=False),
        sa.Column("outcome", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("experiment", "number", name="pk_experiment_units"),
        sa.UniqueConstraint("experiment", "unit", name="uq_experiment_units_unit"),
        sa.ForeignKeyConstraint(
            ["experiment", "epoch"],
            ["experiment_epochs.experiment", "experiment_epochs.number"],
            name="fk_experiment_units_epoch",
        ),
        comment="what came of each unit within its window, in the order in which it counts; learned: left out, because "
        "a version had learned from this user or prompt",
    )
    op.create_table(
        "experiment_readings",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("experiment", sa.Text, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("units", sa.Integer, nullable=False),
        sa.Column("reading", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_experiment_readings"),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.name"], name="fk_experiment_readings_experiment"),
        comment="how an experiment stood at a time: intervals, guardrails, shares",
        sqlite_autoincrement=True,
    )
    op.create_index("ix_experiment_readings_experiment", "experiment_readings", ["experiment", "id"])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


FINAL = "the plan of an experiment is fixed and its end is final, start another one"
APPEND_ONLY = "the record of experiments is append-only"
RECORDS = ("experiment_epochs", "experiment_events", "experiment_units", "exposures")
EXPOSURE = (
    "(experiment, interaction_id, unit, arm, probability, created_at, status, total_ms, completion_tokens) "
    "{} NEW.experiment, NEW.id, coalesce(NEW.unit, NEW.id), NEW.arm, NEW.probability, NEW.created_at, NEW.status, "
    "NEW.total_ms, NEW.completion_tokens"
)

SQLITE = [
    f"""
    CREATE TRIGGER experiments_refuse_update BEFORE UPDATE ON experiments
    WHEN OLD.ended_at IS NOT NULL OR NEW.ended_at IS NULL OR NEW.name <> OLD.name OR NEW.adapter <> OLD.adapter
      OR NEW.plan <> OLD.plan OR NEW.salt <> OLD.salt OR NEW.started_at <> OLD.started_at
    BEGIN SELECT RAISE(ABORT, '{FINAL}'); END
    """,
    f"""
    CREATE TRIGGER experiments_refuse_delete BEFORE DELETE ON experiments
    BEGIN SELECT RAISE(ABORT, '{FINAL}'); END
    """,
    *(
        f"""
        CREATE TRIGGER {table}_refuse_{action.lower()} BEFORE {action} ON {table}
        BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END
        """
        for table in RECORDS
        for action in ("UPDATE", "DELETE")
    ),
    f"""
    CREATE TRIGGER interactions_are_exposures AFTER INSERT ON interactions
    WHEN NEW.experiment IS NOT NULL
    BEGIN INSERT INTO exposures {EXPOSURE.format("SELECT")}; END
    """,
]

POSTGRESQL = [
    f"""
    CREATE TRIGGER experiments_refuse_update BEFORE UPDATE ON experiments
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL OR NEW.ended_at IS NULL OR NEW.name <> OLD.name
      OR NEW.adapter <> OLD.adapter OR NEW.plan::text <> OLD.plan::text OR NEW.salt <> OLD.salt
      OR NEW.started_at <> OLD.started_at)
    EXECUTE FUNCTION graftwork_refuse('{FINAL}')
    """,
    f"""
    CREATE TRIGGER experiments_refuse_delete BEFORE DELETE OR TRUNCATE ON experiments
    FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{FINAL}')
    """,
    *(
        f"""
        CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION graftwork_refuse('{APPEND_ONLY}')
        """
        for table in RECORDS
    ),
    f"""
    CREATE FUNCTION graftwork_expose() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO exposures {EXPOSURE.format("SELECT")}; RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER interactions_are_exposures AFTER INSERT ON interactions
    FOR EACH ROW WHEN (NEW.experiment IS NOT NULL) EXECUTE FUNCTION graftwork_expose()
    """,
]
