"""Adapters, their versions, aliases and history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork.clients.endpoints.parts import path_of, reader_of, without_none
from graftwork.clients.errors import InvalidArgumentError, LocalFileError
from graftwork.clients.http.calls import (
    SLOW_TIMEOUT,
    Call,
    CallRequest,
    CallResponse,
    MultipartUpload,
    ProgressCallback,
)
from graftwork.clients.http.wire import parse
from graftwork.clients.types.adapters import Adapter, AdapterEvent, AdapterLimits, PushedVersion, Version
from graftwork.clients.types.pages import Page

CONFIG_FILE = "adapter_config.json"

WEIGHTS_FILE = "adapter_model.safetensors"
TOKENIZER_FILES = ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json", "added_tokens.json")


def list(*, after: str | None = None, limit: int | None = None) -> Call[Page[Adapter]]:
    """List adapters by name; ``after`` is the last name of the previous page."""
    request = CallRequest(method="GET", path=path_of("adapters"), query=without_none(after=after, limit=limit))
    return Call(request=request, read=reader_of(Page[Adapter]))


def get(name: str) -> Call[Adapter]:
    """Get an adapter with its versions, aliases, residency and traffic.

    Raises:
        NotFoundError: if there is no such adapter.
    """
    return Call(request=CallRequest(method="GET", path=path_of("adapters", name)), read=reader_of(Adapter))


def push(
    name: str,
    folder: str | Path | None = None,
    *,
    server_path: str | Path | None = None,
    alias: str | None = None,
    parent: int | None = None,
    data_digest: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> Call[PushedVersion]:
    """Push a PEFT folder as the adapter's next version.

    The first version of an adapter becomes ``live`` automatically. Pushing the same files again returns the existing
    version.

    Args:
        name: the name of the adapter.
        folder: a local folder, which is uploaded and streamed from disk.
        server_path: a folder that the server can read, in place of ``folder``.
        alias: alias to move to the version once it has passed the server's checks.
        parent: number of the version that it was trained from.
        data_digest: digest of the data that it was trained on.
        metadata: further provenance, in JSON's types.
        progress: called with the bytes sent so far and the total.

    Raises:
        InvalidArgumentError: unless exactly one of ``folder`` and ``server_path`` is given.
        LocalFileError: if the folder is not a PEFT folder.
        BadRequestError: if the server refuses the adapter.
    """
    path, query = path_of("adapters", name, "versions"), without_none(alias=alias)
    facts = without_none(parent=parent, data_digest=data_digest, metadata=metadata)
    if (folder is None) == (server_path is None):
        raise InvalidArgumentError("push takes a folder of this machine or a server_path, one of the two")
    if server_path is not None:
        body = {"path": str(server_path), **facts}
        request = CallRequest(method="POST", path=path, query=query, json=body, read_timeout=SLOW_TIMEOUT)
    else:
        fields = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
        upload = MultipartUpload(files=_adapter_files(Path(str(folder))), fields=fields, progress=progress)
        request = CallRequest(method="POST", path=path, query=query, upload=upload, read_timeout=SLOW_TIMEOUT)
    return Call(request=request, read=_read_pushed)


def promote(
    name: str, version: int, *, alias: str = "live", reason: str | None = None, end_experiment: bool | None = None
) -> Call[AdapterEvent]:
    """Move an alias to a version. Running requests finish on the version that they began with.

    Args:
        name: the name of the adapter.
        version: the number of the version.
        alias: the alias.
        reason: a reason for the history.
        end_experiment: whether to end a running experiment that needs the alias.

    Raises:
        NotFoundError: if there is no such version.
        ConflictError: if a running experiment needs the alias and ``end_experiment`` is not set.
    """
    path = path_of("adapters", name, "aliases", alias)
    body = {"version": version, **without_none(reason=reason, end_experiment=end_experiment)}
    return Call(
        request=CallRequest(method="PUT", path=path, json=body, read_timeout=SLOW_TIMEOUT), read=reader_of(AdapterEvent)
    )


def rollback(
    name: str, *, alias: str = "live", reason: str | None = None, end_experiment: bool | None = None
) -> Call[AdapterEvent]:
    """Move an alias back to the version that it pointed at before. Arguments as for ``promote``.

    Raises:
        ConflictError: as for ``promote``.
    """
    path = path_of("adapters", name, "rollback")
    body = {"alias": alias, **without_none(reason=reason, end_experiment=end_experiment)}
    return Call(
        request=CallRequest(method="POST", path=path, json=body, read_timeout=SLOW_TIMEOUT),
        read=reader_of(AdapterEvent),
    )


def retire(name: str, version: int) -> Call[Version]:
    """Take a version out of service.

    Raises:
        ConflictError: if an alias points at it.
    """
    request = CallRequest(method="DELETE", path=path_of("adapters", name, "versions", str(version)))
    return Call(request=request, read=reader_of(Version))


def history(name: str, *, after: int | None = None, limit: int | None = None) -> Call[Page[AdapterEvent]]:
    """List the events of an adapter, newest first; ``after`` is the last id of the previous page."""
    request = CallRequest(
        method="GET", path=path_of("adapters", name, "history"), query=without_none(after=after, limit=limit)
    )
    return Call(request=request, read=reader_of(Page[AdapterEvent]))


def limits(name: str) -> Call[AdapterLimits]:
    """Get the limits of an adapter, and what all keys together used of them.

    Raises:
        NotFoundError: if there is no such adapter.
    """
    return Call(
        request=CallRequest(method="GET", path=path_of("adapters", name, "limits")), read=reader_of(AdapterLimits)
    )


def set_limits(name: str, limits: Mapping[str, int | None]) -> Call[AdapterLimits]:
    """Set the limits of an adapter: numbers by their names, see ``Limits``. They take the place of all old ones.

    Raises:
        NotFoundError: if there is no such adapter.
        BadRequestError: if a limit cannot be so.
    """
    request = CallRequest(method="PUT", path=path_of("adapters", name, "limits"), json=dict(limits))
    return Call(request=request, read=reader_of(AdapterLimits))


def _read_pushed(reply: CallResponse) -> PushedVersion:
    return parse(PushedVersion, {**parse(dict, reply.json()), "created": reply.status == 201})


def _adapter_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a PEFT folder in the order that the server expects: the configuration first.

    A tokenizer's are among them, where there are any: the server says how they differ from the base's.
    """
    if not folder.is_dir():
        raise LocalFileError(f"{folder} is no folder; push takes the folder that PEFT's save_pretrained wrote")
    files = tuple(folder / name for name in (CONFIG_FILE, WEIGHTS_FILE))
    for file in files:
        if not file.is_file():
            pickled = file.name == WEIGHTS_FILE and (folder / "adapter_model.bin").is_file()
            advice = (
                "its adapter_model.bin is a pickle, which no server takes: save it with safe_serialization=True"
                if pickled
                else "push takes the folder that PEFT's save_pretrained wrote"
            )
            raise LocalFileError(f"{folder} has no {file.name}; {advice}")
    return (*files, *(folder / name for name in TOKENIZER_FILES if (folder / name).is_file()))
