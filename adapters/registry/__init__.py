"""The registry: versions of adapters, the aliases that point to them, and the history of both.

A version is immutable: a number of its adapter, identified by the digest of its files. An alias is a movable name for
a version. Every change is an event, written in the same transaction as the change and never altered.
"""

from graftwork.adapters.registry.change import RegistryGuard
from graftwork.adapters.registry.records import Adapter, AliasEvent, Version
from graftwork.adapters.registry.registry import Registry

__all__ = ["Adapter", "AliasEvent", "Registry", "RegistryGuard", "Version"]
