"""The database and what lies beside it: migrations, leases, settings, a cache of what was read, and durable writes."""
