"""Topics: a version for each kind of data that servers keep in memory, raised by every change of its tables."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Create the table of topics with its rows, and the triggers that raise their versions."""
    topics = op.create_table(
        "topics",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_topics"),
        comment="what servers keep in memory, with a version that every change raises: equal version, equal data",
    )
    op.bulk_insert(topics, [{"name": name, "version": 0} for name in TABLES])
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.get_bind().exec_driver_sql(statement)


#: The tables of each topic.
TABLES: Mapping[str, tuple[str, ...]] = {
    "registry": ("adapters", "versions", "aliases", "alias_events"),
    "keys": ("keys",),
    "experiments": ("experiments", "experiment_epochs", "experiment_arms", "experiment_events"),
    "log_policies": ("log_policies",),
}
_TOPIC_OF = {table: topic for topic, tables in TABLES.items() for table in tables}

SQLITE = [
    f"""
    CREATE TRIGGER {table}_topic_{action.lower()} AFTER {action} ON {table}
    BEGIN UPDATE topics SET version = version + 1 WHERE name = '{topic}'; END
    """
    for table, topic in _TOPIC_OF.items()
    for action in ("INSERT", "UPDATE", "DELETE")
]

POSTGRESQL = [
    """
    CREATE FUNCTION graftwork_raise_topic() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE topics SET version = version + 1 WHERE name = TG_ARGV[0]; RETURN NULL; END $$
    """,
    *(
        f"""
        CREATE TRIGGER {table}_topic AFTER INSERT OR UPDATE OR DELETE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION graftwork_raise_topic('{topic}')
        """
        for table, topic in _TOPIC_OF.items()
    ),
]
