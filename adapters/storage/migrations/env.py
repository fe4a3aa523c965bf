"""The entry point of Alembic.

There is no alembic.ini: ``adapters.storage.database.migrate`` passes the open connection.
"""

from __future__ import annotations

from alembic import context

# migrate() has begun the transaction and holds the write lock: all steps happen or none.
context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
