"""Reward models among the rewards of a job: versions, named like ``polite@3``, beside reward functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import split_model
from graftwork.adapters.registry.records import Version
from graftwork.adapters.registry.registry import Registry


def is_named(reward: str) -> bool:
    """Whether a reward is the name of a version, and not that of a reward function."""
    return "@" in reward


def check_method(method: str, adapter: str, registry: Registry) -> None:
    """Check that the versions of an adapter are of the kind that a method trains: reward models, or what answers.

    Raises:
        InvalidRequest: They are not.
    """
    known = registry.find(adapter)
    if known is None or known.versions[0].is_reward_model == (method == "reward_model"):
        return
    raise InvalidRequest(
        f"{adapter} is a reward model: choose the method reward_model, or another adapter"
        if known.versions[0].is_reward_model
        else f"{adapter} gives answers, and reward_model trains a reward model: begin with the base, and another name"
    )


def pinned(rewards: Iterable[str], registry: Registry) -> list[str]:
    """Return rewards with the numbers of versions in place of aliases, so that a job learns from one to its end.

    Raises:
        NotFound: There is no such version, or it is retired.
        InvalidRequest: It is no reward model.
    """
    return [_reward_model(name, registry).id if is_named(name) else name for name in rewards]


def named(rewards: Iterable[str], registry: Registry) -> Iterator[Version]:
    """Yield the versions among pinned rewards. A version that was retired meanwhile is still learned from."""
    for name in filter(is_named, rewards):
        adapter, number = split_model(name)
        yield registry.version(adapter, int(number))


def _reward_model(name: str, registry: Registry) -> Version:
    version = registry.resolve(name)
    if not version.is_reward_model:
        raise InvalidRequest(f"{version.id} is no reward model: train one with the method reward_model")
    return version
