"""Teachers of distillation: folders of larger models below a root that the operator allowed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.names import quoted


def check(folder: str, roots: Sequence[Path], *, param: str = "teacher") -> None:
    """Check a teacher's folder.

    Raises:
        InvalidRequest: It is no absolute path, holds no model, or is, links resolved, below none of ``roots``.
    """
    real = os.path.realpath(folder)
    allowed = [os.path.realpath(root) for root in roots]
    if not os.path.isabs(folder) or not any(os.path.commonpath((real, root)) == root for root in allowed):
        raise InvalidRequest(
            f"{quoted(folder)} is not below a folder that this server may read: give the whole path of a model's "
            "folder below one that it was started with, graftwork serve --allowed-root FOLDER",
            param=param,
            code="path_not_allowed",
        )
    if not os.path.isfile(os.path.join(real, "config.json")):
        raise InvalidRequest(f"{quoted(folder)} holds no model: there is no config.json in it", param=param)
