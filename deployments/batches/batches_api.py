"""The routes of batches: OpenAI's /v1/batches, and those of an admin, who sees all teams' batches."""

import re
import secrets
import time
from collections.abc import Callable

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.settings import Settings
from deployments.api.admin_access import AdminAccess, integer
from deployments.api.http import json_response, read_body
from deployments.api.protocol.batches import (
    MAX_METADATA,
    AdminBatch,
    AdminBatchList,
    BatchError,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchRequest,
    RequestCounts,
)
from deployments.api.protocol.parsing import parse
from deployments.batches.access import Page, file_not_found, not_kept, reachable, team_of
from deployments.batches.batch_store import Batch, BatchStore
from deployments.batches.file_store import FileStore
from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.tenancy.auth import Authenticator, Caller

_ID = re.compile(r"batch_[0-9a-f]{32}")
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_MAX_BODY_BYTES = 65_536
_UNIT_S = {"m": 60, "h": 3600, "d": 86_400}
_MAX_SHOWN = 1000
_decode_request = msgspec.json.Decoder(BatchRequest)
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode
_decode_errors = msgspec.json.Decoder(list[BatchError]).decode


class BatchesApi:
    """The routes of batches, for one router. files: None where there is no place for them."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        admin: AdminAccess,
        files: FileStore | None,
        batches: BatchStore,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is something to do for a batch."""
        self._settings = settings.batches
        self._receive_timeout_s = settings.limits.receive_timeout_s
        self._authenticator = authenticator
        self._admin = admin
        self._files = files
        self._batches = batches

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list, methods=["GET"]),
            Route("/v1/batches/{id}", self.retrieve, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/admin/batches", self.list_all, methods=["GET"]),
            Route("/admin/batches/{id}", self.retrieve_any, methods=["GET"]),
            Route("/admin/batches/{id}/cancel", self.cancel_any, methods=["POST"]),
        ]

    async def create(self, http: HttpRequest) -> Response:
        """POST /v1/batches"""
        caller = team_of(self._authenticator, http)
        body = await read_body(http, http.headers, _MAX_BODY_BYTES, self._receive_timeout_s)
        request, now = parse(_decode_request, body), int(time.time())
        window_s = self._window_s(request)
        if self._files is None:
            raise not_kept()
        async with reachable():
            file = await self._files.get(caller.owner, request.input_file_id)
            if file is None or not caller.existed(file.created_at):
                raise file_not_found(request.input_file_id, "input_file_id")
            if file.purpose != "batch":
                message = f"Invalid 'input_file_id': the purpose of this file is {file.purpose}, not batch."
                raise invalid_request("input_file_id", message)
            batch = Batch(
                f"batch_{secrets.token_hex(16)}",
                caller.owner,
                file.id,
                request.endpoint,
                request.completion_window,
                "validating",
                now,
                now + window_s,
                request.output_expires_after.seconds if request.output_expires_after else self._settings.file_ttl_s,
                msgspec.json.encode(request.metadata).decode() if request.metadata else "",
            )
            if not await self._batches.create(batch):
                message = (
                    "Too many of your team's batches have not ended (batches.batches_per_team). Wait, or cancel one."
                )
                raise ApiError(429, message, code="rate_limit_exceeded", kind="requests", retry_after_s=60)
        self.on_change()
        return json_response(_object(batch))

    def _window_s(self, request: BatchRequest) -> int:
        window, metadata = request.completion_window, request.metadata or {}
        seconds = int(window[:-1]) * _UNIT_S[window[-1]]
        if seconds > self._settings.max_window_s:
            message = f"completion_window may be {self._settings.max_window_s} seconds at most (batches.max_window_s)."
            raise invalid_request("completion_window", message)
        if len(metadata) > MAX_METADATA:
            raise invalid_request("metadata", f"metadata may have {MAX_METADATA} keys at most.")
        return seconds

    async def list(self, http: HttpRequest) -> Response:
        """GET /v1/batches"""
        caller, page = team_of(self._authenticator, http), Page.of(http, _DEFAULT_PAGE, _MAX_PAGE)
        async with reachable():
            ids = await self._batches.of(caller.owner, caller.team.created if caller.team else 0.0)
            start = page.start(ids)
            batches = await self._batches.get_all(ids[start : start + page.limit])
        fields = page.fields(batches, len(ids), start)
        return json_response(BatchList([_object(batch) for batch in batches], **fields))

    async def retrieve(self, http: HttpRequest) -> Response:
        """GET /v1/batches/ID"""
        caller = team_of(self._authenticator, http)
        return json_response(_object(await self._find(http.path_params["id"], caller)))

    async def cancel(self, http: HttpRequest) -> Response:
        """POST /v1/batches/ID/cancel"""
        caller = team_of(self._authenticator, http)
        return json_response(_object(await self._cancel(http.path_params["id"], caller)))

    async def list_all(self, http: HttpRequest) -> Response:
        """GET /admin/batches"""
        self._admin.check(http)
        limit = integer(http, "limit", _MAX_PAGE, _MAX_SHOWN)
        async with reachable():
            ids = [batch_id for owner in await self._batches.owners() for batch_id in await self._batches.of(owner)]
            batches = await self._batches.get_all(ids)
        batches.sort(key=lambda batch: (batch.created_at, batch.id), reverse=True)
        return json_response(AdminBatchList([AdminBatch(batch.owner, _object(batch)) for batch in batches[:limit]]))

    async def retrieve_any(self, http: HttpRequest) -> Response:
        """GET /admin/batches/ID"""
        self._admin.check(http)
        batch = await self._find(http.path_params["id"])
        return json_response(AdminBatch(batch.owner, _object(batch)))

    async def cancel_any(self, http: HttpRequest) -> Response:
        """POST /admin/batches/ID/cancel"""
        caller = self._admin.check(http)
        batch = await self._cancel(http.path_params["id"])
        await self._admin.record(caller, "batch.cancel", batch.id, owner=batch.owner)
        return json_response(AdminBatch(batch.owner, _object(batch)))

    async def _cancel(self, batch_id: str, caller: Caller | None = None) -> Batch:
        batch = await self._find(batch_id, caller)
        async with reachable():
            status = await self._batches.cancel(batch.id)
        self.on_change()
        if status not in ("validating", "in_progress", "cancelling"):
            raise ApiError(409, f"Cannot cancel a batch with status '{status}'.", code="batch_not_cancellable")
        return await self._find(batch_id, caller)

    async def _find(self, batch_id: str, caller: Caller | None = None) -> Batch:
        """The batch of this caller's team, or of any. Raises ApiError 404."""
        async with reachable():
            batch = await self._batches.get(batch_id) if _ID.fullmatch(batch_id) else None
        if batch is None or not _is_of(batch, caller):
            raise ApiError(404, f"No batch found with id '{shortened(batch_id)}'.", code="batch_not_found", param="id")
        return batch


def _is_of(batch: Batch, caller: Caller | None) -> bool:
    """Whether a batch is this caller's team's; None may have any."""
    return caller is None or (batch.owner == caller.owner and caller.existed(batch.created_at))


def _object(batch: Batch) -> BatchObject:
    """A batch as its client sees it."""
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=BatchErrors(_decode_errors(batch.errors)) if batch.errors else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,  # type: ignore[arg-type]
        output_file_id=batch.output_file_id or None,
        error_file_id=batch.error_file_id or None,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        request_counts=RequestCounts(batch.total, batch.completed, batch.failed),
        metadata=_decode_metadata(batch.metadata) if batch.metadata else None,
        in_progress_at=batch.in_progress_at or None,
        finalizing_at=batch.finalizing_at or None,
        completed_at=batch.completed_at or None,
        failed_at=batch.failed_at or None,
        expired_at=batch.expired_at or None,
        cancelling_at=batch.cancelling_at or None,
        cancelled_at=batch.cancelled_at or None,
    )
