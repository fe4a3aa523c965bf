"""The error that a benchmark ends with."""

from __future__ import annotations

from graftwork.adapters.errors import GraftworkError


class BenchmarkError(GraftworkError):
    """Raised when a system under test cannot be set up, started or used. The message names its log."""
