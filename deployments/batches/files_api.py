"""The routes of files: OpenAI's /v1/files."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cluster.objects.sealed import new_name
from cluster.objects.store import DamagedObject
from cluster.records.batches import FileRecord, object_name, sealed_filename
from cluster.settings import Settings
from deployments.api.http import json_response
from deployments.api.protocol.batches import FileDeleted, FileList, FileObject
from deployments.batches.access import Page, file_not_found, not_kept, reachable, team_of
from deployments.batches.batch_store import BatchStore
from deployments.batches.file_store import FileStore, new_file_id
from deployments.batches.upload import Upload, read_upload
from deployments.common.errors import ApiError
from deployments.tenancy.auth import Authenticator, Caller

_MAX_PAGE = 10_000
_UPLOADS_AT_A_TIME = 2
"""Of a team, through one router."""
_BLOCK_BYTES = 1 << 18
_LINE_FIELDS_BYTES = 4096
"""Of a line, besides its body."""


class FilesApi:
    """The routes of files, for one router. files: None where there is no place for them."""

    def __init__(
        self, settings: Settings, authenticator: Authenticator, files: FileStore | None, batches: BatchStore
    ) -> None:
        self._settings = settings.batches
        self._max_line_bytes = settings.limits.body_bytes + _LINE_FIELDS_BYTES
        self._authenticator = authenticator
        self._files = files
        self._batches = batches
        self._uploading: Counter[str] = Counter()

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.list, methods=["GET"]),
            Route("/v1/files/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
        ]

    async def upload(self, http: HttpRequest) -> Response:
        """POST /v1/files"""
        caller, files = self._caller(http)
        if not files.takes_files:
            raise not_kept()
        if self._uploading[caller.owner] >= _UPLOADS_AT_A_TIME:
            message = f"Your team is uploading {_UPLOADS_AT_A_TIME} files already. Wait for one of them."
            raise ApiError(429, message, code="rate_limit_exceeded", kind="requests", retry_after_s=5)
        self._uploading[caller.owner] += 1
        try:
            with closing(await read_upload(http, self._settings, self._max_line_bytes)) as upload:
                async with reachable():
                    return json_response(_object(await self._keep(caller, files, upload)))
        finally:
            self._uploading[caller.owner] -= 1
            if not self._uploading[caller.owner]:
                del self._uploading[caller.owner]

    async def _keep(self, caller: Caller, files: FileStore, upload: Upload) -> FileRecord:
        now, file_id = int(time.time()), new_file_id()
        record = FileRecord(
            file_id,
            upload.size,
            now,
            sealed_filename(file_id, upload.filename),
            "batch",
            now + upload.ttl_s,
            upload.lines,
            new_name(object_name(file_id)),
        )
        await files.write(record.object_name, upload.content())
        refused = None
        try:
            refused = await files.add(caller.owner, record)
        except BaseException:
            await files.discard(record.object_name)
            raise
        if refused is not None:
            await files.discard(record.object_name)
            what = "files" if refused == "files" else "bytes in files"
            message = f"Your team has too many {what} (batches.{refused}_per_team). Delete some of them first."
            raise ApiError(400, message, code="file_quota_exceeded", param="file")
        return record

    async def list(self, http: HttpRequest) -> Response:
        """GET /v1/files"""
        (caller, files), page = self._caller(http), Page.of(http, _MAX_PAGE, _MAX_PAGE)
        async with reachable():
            records = [record for record in await files.of(caller.owner) if caller.existed(record.created_at)]
        if (purpose := http.query_params.get("purpose")) is not None:
            records = [record for record in records if record.purpose == purpose]
        if not page.ascending:
            records.reverse()
        start = page.start([record.id for record in records])
        found = records[start : start + page.limit]
        return json_response(FileList(list(map(_object, found)), **page.fields(found, len(records), start)))

    async def retrieve(self, http: HttpRequest) -> Response:
        """GET /v1/files/ID"""
        return json_response(_object((await self._find(http))[2]))

    async def delete(self, http: HttpRequest) -> Response:
        """DELETE /v1/files/ID"""
        caller, files, record = await self._find(http)
        async with reachable():
            if using := next((b for b in await self._batches.open() if b.input_file_id == record.id), None):
                message = f"The batch {using.id} reads this file. Cancel the batch first, or wait for its end."
                raise ApiError(409, message, code="file_in_use")
            await files.remove(caller.owner, record.id)
        return json_response(FileDeleted(record.id))

    async def content(self, http: HttpRequest) -> Response:
        """GET /v1/files/ID/content"""
        caller, files, record = await self._find(http)
        async with reachable():
            try:
                first = await self._block(files, record, 0)
            except DamagedObject:
                now = await files.get(caller.owner, record.id)
                if now is None or now.object_name == record.object_name:
                    raise
                # It has got another object at this moment.
                record, first = now, await self._block(files, now, 0)
        headers = {"Content-Length": str(record.bytes), "X-Content-Type-Options": "nosniff"}
        return StreamingResponse(self._blocks(files, record, first), headers=headers, media_type="application/jsonl")

    async def _blocks(self, files: FileStore, record: FileRecord, block: bytes) -> AsyncIterator[bytes]:
        place = 0
        while block:
            yield block
            place += len(block)
            async with reachable():
                block = await self._block(files, record, place)

    async def _block(self, files: FileStore, record: FileRecord, place: int) -> bytes:
        """Raises DamagedObject where the bytes are not there, and no other router could have them."""
        end = min(place + _BLOCK_BYTES, record.bytes)
        try:
            block = await asyncio.to_thread(files.objects.read, record.object_name, place, end)
        except FileNotFoundError:
            if files.takes_files:
                raise DamagedObject(f"object {record.object_name} is gone") from None
            raise
        if len(block) < end - place:
            raise DamagedObject(f"object {record.object_name} is cut off before byte {end}")
        return block

    async def _find(self, http: HttpRequest) -> tuple[Caller, FileStore, FileRecord]:
        caller, files = self._caller(http)
        file_id = http.path_params["id"]
        async with reachable():
            record = await files.get(caller.owner, file_id)
        if record is None or not caller.existed(record.created_at):
            raise file_not_found(file_id)
        return caller, files, record

    def _caller(self, http: HttpRequest) -> tuple[Caller, FileStore]:
        caller = team_of(self._authenticator, http)
        if self._files is None:
            raise not_kept()
        return caller, self._files


def _object(record: FileRecord) -> FileObject:
    fields = {name: getattr(record, name) for name in ("id", "bytes", "created_at", "purpose", "expires_at")}
    return FileObject(**fields, filename=record.shown_filename)
