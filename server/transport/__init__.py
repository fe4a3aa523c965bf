"""The line between the API processes and the engine's process."""
