"""A trained version measured on held-out rows over HTTP, and held against the gates."""
