"""The error that a benchmark ends with."""

from __future__ import annotations

from graftwork.adapters.errors import GraftworkError


class BenchmarkError(GraftworkError):
    """A system under test could not be set up, started or asked. The message says where its log is."""
