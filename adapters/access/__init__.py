"""Who may call the server: keys, roles and principals."""
