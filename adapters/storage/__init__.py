"""The database and files beside it: migrations, leases, settings, a cache of what was read, and durable writes."""
