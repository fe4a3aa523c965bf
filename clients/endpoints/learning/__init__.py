"""Calls for learning: jobs, learning policies and rounds."""
