"""``/v1/files``: OpenAI's files, as far as fine-tuning needs them. They take an operator's key: they hold users' texts.

A response means that the file is durable. Rows are checked by the job that trains on them, which reports the lines.
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
from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.learning.files import MAX_PAGE, PURPOSES, File
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
    purpose: Literal["fine-tune"]


class FilesParameters(Parameters):
    """The filter and page of a list of files."""

    purpose: Label | None = None
    after: Label | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = MAX_PAGE
    order: Literal["asc", "desc"] = "desc"


def add(routes: APIRouter, services: Services) -> None:
    """Add the routes of files."""
    files, jobs = services.files, services.jobs
    operator = Depends(services.authenticator.require(Role.OPERATOR))

    @routes.post("/v1/files", response_model=FileObject, openapi_extra=form_body(FileForm))
    async def create_file(request: Request, who: Principal = operator) -> Response:
        request.state.max_body_bytes = files.max_bytes + SLACK_BYTES
        upload = await in_thread(files.upload)
        with upload:
            filename, fields = await receive_file(request, upload, file="file", fields=("purpose",))
            if "purpose" not in fields:
                raise InvalidRequest(
                    "purpose is required: send fine-tune", param="purpose", code="missing_required_parameter"
                )
            if fields["purpose"] == PURPOSES[1]:
                raise InvalidRequest(
                    "results are written by jobs: upload files with the purpose fine-tune", param="purpose"
                )
            file = await to_thread.run_sync(
                lambda: files.keep(upload, filename=filename, purpose=fields["purpose"], key_id=who.key_id)
            )
        log.info("%s uploaded %s (%d bytes)", who.name, file.id, file.num_bytes)
        return JSONResponse(show(file))

    @routes.get("/v1/files", dependencies=[operator], response_model=ListObject[FileObject])
    async def list_files(page: Annotated[FilesParameters, Query()]) -> Response:
        found = await in_thread(
            files.find, purpose=page.purpose, after=page.after, limit=page.limit, ascending=page.order == "asc"
        )
        return JSONResponse(page_body(found, show))

    @routes.get("/v1/files/{file_id}", dependencies=[operator], response_model=FileObject)
    async def get_file(file_id: str) -> Response:
        return JSONResponse(show(await in_thread(files.get, file_id)))

    @routes.get(
        "/v1/files/{file_id}/content",
        dependencies=[operator],
        response_class=OctetStream,
    )
    async def get_content(file_id: str) -> Response:
        file = await in_thread(files.get, file_id)
        return OctetStream(files.path(file), media_type=OctetStream.media_type, filename=file.filename)

    @routes.delete("/v1/files/{file_id}", response_model=DeletedFileObject)
    async def delete_file(file_id: str, who: Principal = operator) -> Response:
        in_use = await in_thread(jobs.unfinished_job_using, file_id)
        file = await in_thread(files.delete, file_id, in_use=in_use)
        log.info("%s deleted %s", who.name, file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})


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
