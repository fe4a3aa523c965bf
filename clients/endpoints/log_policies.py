"""Log policies: which interactions are logged, how long they are kept, and how often users are asked for feedback."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.errors import InvalidArgumentError
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.log_policies import LogPolicy, LogPolicyList


def list() -> Call[LogPolicyList]:
    """List the log policies of adapters and keys, and the default."""
    return Call(request=CallRequest(method="GET", path=path_of("log_policies")), read=reader_of(LogPolicyList))


def set(
    *,
    adapter: str | None = None,
    key: str | None = None,
    log: bool = True,
    retention_days: float | None = None,
    ask_feedback: float | None = None,
) -> Call[LogPolicy]:
    """Set the log policy of an adapter or a key.

    Args:
        adapter: the name of an adapter, or the id of the base.
        key: the id of a key, in place of ``adapter``.
        log: whether its interactions are logged.
        retention_days: days for which they are kept; None for the default.
        ask_feedback: the share of the answers, 0 to 1, that are marked at random, so that their users are asked for
            feedback. Where an adapter and a key both say, the smaller one holds.

    Raises:
        InvalidArgumentError: unless exactly one of ``adapter`` and ``key`` is given.
    """
    body = {"log": log, **without_none(retention_days=retention_days, ask_feedback=ask_feedback)}
    return Call(
        request=CallRequest(method="PUT", path=_policy_path(adapter, key), json=body), read=reader_of(LogPolicy)
    )


def remove(*, adapter: str | None = None, key: str | None = None) -> Call[LogPolicy]:
    """Remove the log policy of an adapter or a key, so that the default applies.

    Raises:
        InvalidArgumentError: unless exactly one of ``adapter`` and ``key`` is given.
    """
    return Call(request=CallRequest(method="DELETE", path=_policy_path(adapter, key)), read=reader_of(LogPolicy))


def _policy_path(adapter: str | None, key: str | None) -> str:
    if (adapter is None) == (key is None):
        raise InvalidArgumentError("a policy is about an adapter or a key, one of the two")
    whose = ("keys", key or "") if adapter is None else ("adapters", adapter)
    return path_of("log_policies", *whose)
