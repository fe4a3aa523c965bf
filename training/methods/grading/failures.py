"""The error of a grader that failed, which ends a run."""

from __future__ import annotations

from graftwork.adapters.errors import GraftworkError


def grader_failed(name: str, why: str) -> GraftworkError:
    """Return the error, with code ``reward_failed``, for the grader of a name."""
    return GraftworkError(f"The grader {name} failed: {why}.", code="reward_failed")
