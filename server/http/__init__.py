"""HTTP: middleware, authentication, uploads, helpers that routes share, and the routes."""
