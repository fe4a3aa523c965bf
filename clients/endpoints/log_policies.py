"""What is logged, and for how long."""

from __future__ import annotations

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.errors import InvalidArgumentError
from graftwork.clients.http.calls import Call, CallRequest
from graftwork.clients.types.log_policies import LogPolicy, LogPolicyList


def list() -> Call[LogPolicyList]:
    """What is logged of single adapters and keys, for how long, and the default."""
    return Call(request=CallRequest(method="GET", path=path_of("log_policies")), read=reader_of(LogPolicyList))


def set(
    *, adapter: str | None = None, key: str | None = None, log: bool = True, retention_days: float | None = None
) -> Call[LogPolicy]:
    """Say whether what an adapter (or the base, by its id) answers, or a key asks, is logged, and for how long."""
    body = {"log": log, **without_none(retention_days=retention_days)}
    return Call(
        request=CallRequest(method="PUT", path=_policy_path(adapter, key), json=body), read=reader_of(LogPolicy)
    )


def remove(*, adapter: str | None = None, key: str | None = None) -> Call[LogPolicy]:
    """Let the default hold again for an adapter or a key."""
    return Call(request=CallRequest(method="DELETE", path=_policy_path(adapter, key)), read=reader_of(LogPolicy))


def _policy_path(adapter: str | None, key: str | None) -> str:
    if (adapter is None) == (key is None):
        raise InvalidArgumentError("a policy is about an adapter or a key, one of the two")
    whose = ("keys", key or "") if adapter is None else ("adapters", adapter)
    return path_of("log_policies", *whose)
