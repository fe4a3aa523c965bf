"""The base model: where it comes from, its digest, its modules, and the one way to load it.

``prepare`` turns the embedded default, a hub id or a folder into a plain folder and a ``BaseInfo``, which describes a
base without loading it. ``load_model`` gives serving and training the very same weights.

No torch at import; even ``prepare`` needs none once its result is cached.
"""

from graftwork.adapters.base.embedded import EMBEDDED_ID
from graftwork.adapters.base.info import BaseInfo, ModuleShape
from graftwork.adapters.base.loading import load_model
from graftwork.adapters.base.preparing import prepare
from graftwork.adapters.base.progress import Progress

__all__ = ["EMBEDDED_ID", "BaseInfo", "ModuleShape", "Progress", "load_model", "prepare"]
