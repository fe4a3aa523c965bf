"""Unchanged clients of others, each against a real server: what works with which. See :mod:`__main__`."""
