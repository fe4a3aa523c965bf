"""Adds a version: upload or folder → staging → checks → published → canary (→ bucket) → registry row and alias.

The bytes of an upload go from the socket to the staging folder, a megabyte at a time, without a temporary file in
between. If the adapter is refused anywhere on this way, nothing has changed afterwards: what was published for the
canary is withdrawn, unless it was there before or a version refers to the same bytes. If the database goes away while
the version is registered, nobody knows whether there is one: its files stay. Pushes of the same bytes wait for one
another, so that none withdraws what another has just registered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from weakref import WeakValueDictionary

import anyio
from anyio import to_thread
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json
from starlette.requests import Request

from graftwork.adapters import names
from graftwork.adapters.errors import InvalidRequest, Unavailable
from graftwork.adapters.peft_format import tokenizer_files
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry import Version
from graftwork.adapters.registry.artifacts import ArtifactStore, StagedFile
from graftwork.adapters.storage.durable import disk_full_as_unavailable
from graftwork.server.bodies import StrictModel, Text, parse
from graftwork.server.http import multipart
from graftwork.server.http.multipart import Part
from graftwork.server.http.services import Services

log = logging.getLogger(__name__)

T = TypeVar("T")

_FORM_LIMITS = multipart.FormLimits(max_parts=16, max_field_bytes=128 << 10, hint="an adapter's files")
_UPLOAD_SLACK_BYTES = 4 << 20  # boundaries, headers, form fields, a README.md
_CONCURRENT_PUSHES = 4  # each one reads or writes gigabytes: more at once would be slower for all


class PushFields(StrictModel):
    """What a push may state about an adapter beside its files."""

    parent: Annotated[int, Field(ge=1)] | None = None
    data_digest: Text | None = None
    metadata: dict[str, Any] | None = None


class PushedPath(PushFields):
    """The body of a push that names a folder which the server can read."""

    path: Annotated[Text, Field(min_length=1)]


class PushForm(BaseModel):
    """The multipart form of an upload: a PEFT folder's files, and fields, of which those that are no text are JSON."""

    files: list[bytes]
    parent: int | None = None
    data_digest: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PushedAdapter:
    """What became of a push.

    Attributes:
        version: The version.
        is_new: Whether it was made by this push: the same bytes may be there already.
        warnings: What was taken and yet may not be what was meant.
    """

    version: Version
    is_new: bool
    warnings: list[str]


class Pushes:
    """Adds versions, for one server process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._workers = anyio.CapacityLimiter(_CONCURRENT_PUSHES)

    async def push(self, name: str, request: Request, *, alias: str | None, actor: str) -> PushedAdapter:
        """Add the version that a request uploads, or whose folder it names.

        Args:
            name: Of the adapter.
            request: Its body is not read yet.
            alias: Points to the new version afterwards.
            actor: For the history.

        Returns:
            The version, and what its sender should know.

        Raises:
            GraftworkError: Something in the request or the adapter is refused; see ``check_name``, ``read_spec`` and
                ``Registry.add_version``.
            InvalidAdapter: The adapter failed the canary.
            Unavailable: There is no engine to try the adapter, the disk is full, or the bucket does not answer.
        """
        services = self._services
        services.registry.check_visible(name)
        if not names.is_trial(name):
            names.check_name(name, base_id=services.base.id)
        if alias is not None:
            names.check_alias(alias)
        if services.engine.state != "ready":
            raise Unavailable(f"the engine is {services.engine.state} and cannot try an adapter: push again shortly")
        with disk_full_as_unavailable("adapter"):
            staged, fields = await self._receive(request)
            try:
                spec = await self._in_thread(read_spec, staged, services.base, services.limits)
                warnings = await self._in_thread(tokenizer_files.differences, staged, services.base)
                if spec.head is None:
                    services.engine.takes(spec)
                async with self._lock(spec.digest):
                    add = partial(self._register, name, spec, fields, alias, actor)
                    version, new = await self._publish(staged, spec, add)
                return PushedAdapter(version, new, [*spec.warnings, *warnings])
            finally:
                await self._clean_up(services.store.discard, staged)

    async def _receive(self, request: Request) -> tuple[Path, PushFields]:
        """The adapter's files in a staging folder of their own, and the fields."""
        store = self._services.store
        is_form, boundary = multipart.boundary_of(request.headers.get("content-type"))
        if not is_form:
            body = parse(PushedPath, await request.body())
            return await self._in_thread(store.stage_folder, Path(body.path), self._services.allowed_roots), body
        limits = self._services.limits
        request.state.max_body_bytes = limits.max_folder_bytes + _UPLOAD_SLACK_BYTES
        staged = await self._in_thread(store.stage)
        try:
            return staged, await _receive_form(request, boundary, store, staged, self._in_thread)
        except BaseException:
            await self._clean_up(store.discard, staged)
            raise

    async def _publish(
        self, staged: Path, spec: AdapterSpec, register: Callable[[], tuple[Version, bool]]
    ) -> tuple[Version, bool]:
        services, cache = self._services, self._services.artifact_cache
        with nullcontext() if cache is None else cache.pushing(spec.digest):
            tried = await to_thread.run_sync(self._was_tried, spec.digest)
            was_there = await self._in_thread(services.store.holds, spec.digest)
            await self._in_thread(services.store.publish, staged, spec.digest)
            registering = False
            try:
                if not tried and spec.head is None:  # a reward model is not served
                    await services.engine.canary(spec.digest)
                if cache is not None:  # before the row: other servers fetch what has one
                    await cache.upload(spec.digest)
                registering = True
                return await to_thread.run_sync(register)
            except BaseException as error:
                may_have_a_version = registering and isinstance(error, Unavailable)
                if not was_there and not may_have_a_version:
                    with anyio.CancelScope(shield=True):
                        await self._withdraw(spec.digest)
                raise

    def _register(
        self, name: str, spec: AdapterSpec, fields: PushFields, alias: str | None, actor: str
    ) -> tuple[Version, bool]:
        version, new = self._services.registry.add_version(
            name,
            spec,
            base=self._services.base,
            alias=alias,
            parent=fields.parent,
            data_digest=fields.data_digest,
            metadata=fields.metadata,
            actor=actor,
        )
        log.info("%s pushed %s (%s)%s", actor, version.id, spec.digest, "" if new else ", which was there already")
        return version, new

    def _was_tried(self, digest: str) -> bool:
        """Whether these bytes passed the canary before, on this base."""
        versions = self._services.registry.with_digest(digest)
        return any(version.base_digest == self._services.base.digest for version in versions)

    async def _withdraw(self, digest: str) -> None:
        """Remove a published artifact, unless a version refers to it, or an engine may still look for it."""
        try:
            # Not what is in memory: that may be of before the version.
            if await to_thread.run_sync(self._services.registry.is_registered, digest):
                return
            await self._services.engine.release(digest)
        except Unavailable as unavailable:
            log.warning("the files of %s stay: %s", digest, unavailable.message)
        else:
            await self._in_thread(self._services.store.withdraw, digest)

    def _lock(self, digest: str) -> asyncio.Lock:
        # A lock that nobody holds is garbage-collected.
        return self._locks.setdefault(digest, asyncio.Lock())

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function in one of a few threads."""
        return await to_thread.run_sync(function, *arguments, limiter=self._workers)

    async def _clean_up(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function even when the request is cancelled: no half push may be left behind."""
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(function, *arguments)


# ---------------------------------------------------------------------------------------------------------- uploads


async def _receive_form(
    request: Request,
    boundary: bytes,
    store: ArtifactStore,
    staged: Path,
    work: Callable[..., Awaitable[Any]],
) -> PushFields:
    """Write the form's files to ``staged`` as they arrive, and parse its fields."""
    if not boundary:
        raise InvalidRequest("the multipart body has no boundary in its Content-Type: let your client set the header")
    files: list[StagedFile] = []

    def open_part(part: Part) -> StagedFile | None:
        encoding = part.headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("binary", "7bit", "8bit"):
            raise InvalidRequest(f"Content-Transfer-Encoding {names.quoted(encoding)}: send the bytes as they are")
        if (part.field == "files") != (part.filename is not None):
            raise InvalidRequest(
                f"form field {names.quoted(part.field)}: send each file as 'files', with its file name",
                param=part.field[:64],
            )
        if part.filename is not None:
            files.append(store.open_staged(staged, part.filename))
            return files[-1]
        if part.field not in PushFields.model_fields:
            raise InvalidRequest(
                f"{names.quoted(part.field)} is no field of this form: it takes files, "
                f"{', '.join(PushFields.model_fields)}",
                param=part.field[:64],
                code="unknown_parameter",
            )
        return None

    try:
        fields = await multipart.receive_form(request.stream(), boundary, open_part, limits=_FORM_LIMITS, work=work)
    finally:
        for file in files:
            file.close()
    return _parse_fields(fields)


def _parse_fields(fields: Mapping[str, str]) -> PushFields:
    """Form fields are text; all but the digest contain JSON."""
    values: dict[str, Any] = {}
    for field, text in fields.items():
        try:
            values[field] = text if field == "data_digest" else from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise InvalidRequest(f"form field {field} is not valid JSON: {error}", param=field) from None
    return parse(PushFields, to_json(values))
