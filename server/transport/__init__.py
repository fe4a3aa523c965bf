"""The connection between the API processes and the engine worker."""
