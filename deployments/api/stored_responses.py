"""Stored responses: kept at the end of a request, read, cancelled, deleted, and gone on from by
`previous_response_id`."""

import codecs
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.settings import ResponseSettings
from deployments.api.http import json_response
from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.api.response_keeper import ResponseKeeper, away, items_of, not_in_background
from deployments.cache.response_store import ResponseStore, StoredResponse
from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.auth import Authenticator, Caller

RESPONSES = "/v1/responses"
_PATH = f"{RESPONSES}/{{id}}"
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_LOST = "The router that generated the response has ended before it was complete. Send the request again."
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Head(msgspec.Struct, frozen=True):
    """What of a body says from which response it goes on."""

    previous_response_id: str | None = None


_head_of = msgspec.json.Decoder(_Head).decode


class _State(msgspec.Struct, frozen=True):
    """How far a stored response is."""

    status: str
    background: bool = False

    @property
    def runs(self) -> bool:
        return self.status in ("queued", "in_progress")


_state_of = msgspec.json.Decoder(_State).decode


class StoredResponses:
    """One router's stored responses, and their routes. store: None if none are stored."""

    def __init__(self, settings: ResponseSettings, authenticator: Authenticator, store: ResponseStore | None) -> None:
        self.on_cancel: Callable[[str], None] = lambda response_id: None
        """Called with the id of each response that is cancelled or deleted, in case it is still generated."""
        self._settings = settings
        self._authenticator = authenticator
        self._store = store

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(_PATH, self.retrieve, methods=["GET"]),
            Route(_PATH, self.delete, methods=["DELETE"]),
            Route(f"{_PATH}/cancel", self.cancel, methods=["POST"]),
            Route(f"{_PATH}/input_items", self.input_items, methods=["GET"]),
        ]

    async def retrieve(self, http: HttpRequest) -> Response:
        """GET /v1/responses/ID"""
        if http.query_params.get("stream", "false") not in ("false", "0"):
            raise invalid_request("stream", "A stored response is not streamed; leave stream out.")
        stored = await self._find(self._caller(http), http.path_params["id"])
        return Response(stored.response, media_type="application/json")

    async def cancel(self, http: HttpRequest) -> Response:
        """POST /v1/responses/ID/cancel"""
        response_id, caller = http.path_params["id"], self._caller(http)
        stored = await self._settled(caller, response_id, _cancelled, cancel=True)
        if not _state_of(stored.response).background:
            message = "Only a response that is generated in the background (background: true) can be cancelled."
            raise ApiError(400, message, code="response_not_in_background")
        self.on_cancel(response_id)
        return Response(stored.response, media_type="application/json")

    async def delete(self, http: HttpRequest) -> Response:
        """DELETE /v1/responses/ID"""
        response_id, caller = http.path_params["id"], self._caller(http)
        store = self._available()
        try:
            if not await store.delete(caller.owner, response_id):
                raise _not_found(response_id)
        except RedisUnavailable:
            raise away() from None
        self.on_cancel(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, http: HttpRequest) -> Response:
        """GET /v1/responses/ID/input_items"""
        stored = await self._find(self._caller(http), http.path_params["id"])
        query = http.query_params
        limit, order = query.get("limit", str(_DEFAULT_PAGE)), query.get("order", "desc")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= _MAX_PAGE):
            raise invalid_request("limit", f"limit must be a number from 1 to {_MAX_PAGE}.")
        if order not in ("asc", "desc"):
            raise invalid_request("order", "order must be asc or desc.")
        items = [msgspec.json.decode(item) for item in stored.items]
        if order == "desc":
            items.reverse()
        ids = [item["id"] for item in items]
        after = query.get("after")
        if after is not None and after not in ids:
            raise invalid_request("after", f"after is '{shortened(after)}', which is the id of no item.")
        start = 0 if after is None else ids.index(after) + 1
        page = items[start : start + int(limit)]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        has_more = start + len(page) < len(items)
        return json_response({"object": "list", "data": page, **ends, "has_more": has_more})

    async def with_history(self, body: bytes, caller: Caller) -> bytes:
        """The body with the whole conversation as its input, if it goes on from a stored response.

        Raises ApiError 400 for a response that is not stored, 503 while Redis is away.
        """
        body = body.removeprefix(codecs.BOM_UTF8)
        try:
            previous = _head_of(body).previous_response_id
            fields = _fields_of(body) if previous is not None else {}
            given = items_of(fields["input"]) if "input" in fields else []
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return body  # the parser names the fault
        if previous is None:
            return body
        stored = await self._find(caller, previous, status=400)
        if (status := _state_of(stored.response).status) not in ("completed", "incomplete"):
            message = f"The response '{previous}' has no answer to go on from: its status is {status}."
            raise invalid_request("previous_response_id", message, code="previous_response_not_completed")
        if isinstance(given, str):
            given = [msgspec.Raw(msgspec.json.encode({"role": "user", "content": given}))]
        items = [*map(msgspec.Raw, stored.items), *_output(stored), *given]
        return msgspec.json.encode({**fields, "input": items})

    def keeper_of(self, caller: Caller, writer: ResponseWriter, body: bytes) -> ResponseKeeper | None:
        """What stores the response to a body; None if it is not to be stored. Raises ApiError 400 for one that is to be
        generated in the background and cannot be stored."""
        wants, fits = writer.stores, len(body) <= self._settings.max_bytes
        writer.stores = self._store is not None and wants and fits
        if self._store is not None and writer.stores:
            return ResponseKeeper(writer, self._store, caller.owner, _fields_of(body)["input"])
        if writer.request.background:
            reason = "the request is larger than responses.max_bytes" if wants else "the request says store: false"
            raise not_in_background(reason if self._store else "none are stored here (responses.store, cache.enabled)")
        return None

    async def _find(self, caller: Caller, response_id: str, status: int = 404) -> StoredResponse:
        return await self._settled(caller, response_id, _lost, status=status)

    async def _settled(
        self,
        caller: Caller,
        response_id: str,
        change: Callable[[StoredResponse], StoredResponse | None],
        *,
        cancel: bool = False,
        status: int = 404,
    ) -> StoredResponse:
        """The response, changed if it runs: to be cancelled, or as its router has died. Raises ApiError."""
        try:
            stored = await self._available().settle(caller.owner, response_id, change, cancel=cancel)
        except RedisUnavailable:
            raise away() from None
        if stored is None:
            raise _not_found(response_id, status)
        return stored

    def _available(self) -> ResponseStore:
        if self._store is None:
            message = "Responses are not stored here (responses.store, cache.enabled); send the conversation as input."
            raise ApiError(400, message, code="unsupported_parameter", param="previous_response_id")
        return self._store

    def _caller(self, http: HttpRequest) -> Caller:
        caller = self._authenticator.authenticate(http.headers)
        if caller.admin and caller.team is None:
            raise ApiError(403, "An admin key has no responses; use a team's key.", code="not_a_teams_key")
        return caller


def _cancelled(stored: StoredResponse) -> StoredResponse | None:
    """A response that runs, cancelled; None for any other."""
    return _ended(stored, {"status": "cancelled"})


def _lost(stored: StoredResponse) -> StoredResponse | None:
    """A response that runs, as its router has died; None for any other."""
    return _ended(stored, {"status": "failed", "error": {"code": "server_error", "message": _LOST}})


def _ended(stored: StoredResponse, fields: dict[str, Any]) -> StoredResponse | None:
    if not _state_of(stored.response).runs:
        return None
    return StoredResponse(msgspec.json.encode(_fields_of(stored.response) | fields), stored.items, stored.user)


def _output(stored: StoredResponse) -> list[msgspec.Raw]:
    output: list[msgspec.Raw] = msgspec.json.decode(_fields_of(stored.response)["output"], type=list[msgspec.Raw])
    return output


def _not_found(response_id: str, status: int = 404) -> ApiError:
    message = f"No response with the id '{shortened(response_id)}' is stored; it may have expired, or been deleted."
    if status == 404:
        return ApiError(404, message, code="response_not_found")
    return ApiError(status, message, code="previous_response_not_found", param="previous_response_id")
