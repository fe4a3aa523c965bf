"""``/v1/files``: OpenAI's files, as far as fine-tuning and batches need them.

Files of batches take an app's key, which sees its own; all others take an operator's: they hold users' texts. An
answer means that the file is durable. Its lines are checked by the job or batch that uses it, which reports them.
"""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import FileResponse, JSONResponse, Response

from graftwork.adapters.access.keys import Role
from graftwork.adapters.access.principal import Principal
from graftwork.adapters.batches.batches import unfinished_batch_using
from graftwork.adapters.errors import Forbidden, InvalidRequest
from graftwork.adapters.learning.files import MAX_PAGE, UPLOAD_PURPOSES, File, UploadPurpose
from graftwork.adapters.learning.jobs import unfinished_job_using
from graftwork.adapters.names import quoted
from graftwork.server.bodies import Label
from graftwork.server.http.lists import Parameters, in_thread, page_body
from graftwork.server.http.openapi import form_body
from graftwork.server.http.schemas.files import DeletedFileObject, FileObject
from graftwork.server.http.schemas.lists import ListObject
from graftwork.server.http.services import Services
from graftwork.server.http.uploads import SLACK_BYTES, receive_file

log = logging.getLogger(__name__)


class OctetStream(FileResponse):
    """A file's content as a response."""

    media_type = "application/octet-stream"


class FileForm(BaseModel):
    """The multipart form of an upload."""

    file: bytes
    purpose: UploadPurpose


class FilesParameters(Parameters):
    """The filter and page of a list of files."""

    purpose: Label | None = None
    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE
    order: Literal["asc", "desc"] = "desc"


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of files."""
    files = services.files
    caller = Depends(services.authenticator.require(Role.APP))

    @routes.post("/v1/files", response_model=FileObject, openapi_extra=form_body(FileForm))
    async def create_file(request: Request, who: Principal = caller) -> Response:
        request.state.max_body_bytes = files.max_bytes + SLACK_BYTES
        upload = await in_thread(files.upload)
        with upload:
            filename, fields = await receive_file(request, upload, file="file", fields=("purpose",))
            purpose = _purpose(fields.get("purpose"), who)
            file = await to_thread.run_sync(
                lambda: files.keep(upload, filename=filename, purpose=purpose, key_id=who.key_id)
            )
        log.info("%s uploaded %s (%d bytes)", who.name, file.id, file.num_bytes)
        return JSONResponse(show(file))

    @routes.get("/v1/files", response_model=ListObject[FileObject])
    async def list_files(page: Annotated[FilesParameters, Query()], who: Principal = caller) -> Response:
        found = await in_thread(
            files.find,
            purpose=page.purpose,
            after=page.after,
            limit=page.limit,
            ascending=page.order == "asc",
            owner=who.owner,
        )
        return JSONResponse(page_body(found, show))

    @routes.get("/v1/files/{file_id}", response_model=FileObject)
    async def get_file(file_id: str, who: Principal = caller) -> Response:
        return JSONResponse(show(await in_thread(files.get, file_id, owner=who.owner)))

    @routes.get("/v1/files/{file_id}/content", response_class=OctetStream)
    async def get_content(file_id: str, who: Principal = caller) -> Response:
        file = await in_thread(files.get, file_id, owner=who.owner)
        path = await in_thread(files.fetch, file)
        return OctetStream(path, media_type=OctetStream.media_type, filename=file.filename)

    @routes.delete("/v1/files/{file_id}", response_model=DeletedFileObject)
    async def delete_file(file_id: str, who: Principal = caller) -> Response:
        users = (unfinished_job_using, unfinished_batch_using)
        file = await in_thread(files.delete, file_id, users=users, owner=who.owner)
        log.info("%s deleted %s", who.name, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})


def _purpose(given: str | None, who: Principal) -> UploadPurpose:
    """What a file is uploaded for.

    Raises:
        InvalidRequest: The form does not say it, or it is not supported.
        Forbidden: The caller may not upload files for it.
    """
    choices = "send fine-tune for rows to learn from, batch for the requests of a batch"
    if given is None:
        raise InvalidRequest(f"purpose is required: {choices}", param="purpose", code="missing_required_parameter")
    for purpose in UPLOAD_PURPOSES:
        if given == purpose:
            if purpose != "batch" and who.role < Role.OPERATOR:
                raise Forbidden(
                    f"files of the purpose {purpose} take a key of role {Role.OPERATOR.value} or above, and yours is "
                    f"{who.role.value}: ask an admin for one, or send batch"
                )
            return purpose
    raise InvalidRequest(
        f"the purpose {quoted(given)} is not supported for uploads: {choices}; results are written by the server",
        param="purpose",
    )


def show(file: File) -> FileObject:
    """The JSON of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
