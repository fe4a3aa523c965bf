"""Carries batches on: from the requests of a file to the file of their results."""
