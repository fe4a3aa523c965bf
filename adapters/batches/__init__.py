"""Batches: many requests in one file, answered in the background, their results in files."""
