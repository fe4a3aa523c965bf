"""HTTP: middleware, authentication, uploads, what routes share, and the routes."""
