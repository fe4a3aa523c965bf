"""Authentication: keys, roles and principals."""
