"""The base: where it comes from, what identifies it, what it is made of, and the one way to load it.

``prepare`` turns the embedded default, a hub id or a folder into a plain folder and a ``BaseInfo``: all that others
need to know of a base without loading it. ``load_model`` is how serving and training both get the very same weights.

Torch-free at import; even ``prepare`` is, once its result is cached.
"""

from graftwork.adapters.base.embedded import EMBEDDED_ID
from graftwork.adapters.base.info import BaseInfo, ModuleShape
from graftwork.adapters.base.loading import load_model
from graftwork.adapters.base.preparing import prepare
from graftwork.adapters.base.progress import Progress

__all__ = ["EMBEDDED_ID", "BaseInfo", "ModuleShape", "Progress", "load_model", "prepare"]
