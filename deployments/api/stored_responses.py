"""Stored responses: kept at the end of a request, read, deleted, and gone on from by `previous_response_id`."""

import codecs
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.settings import ResponseSettings
from deployments.api.http import json_response
from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.api.responses import Keep
from deployments.cache.response_store import ResponseStore, StoredResponse
from deployments.common.errors import ApiError, invalid_request, new_id, shortened
from deployments.common.redis import RedisUnavailable
from deployments.common.types import GenerationResult
from deployments.tenancy.auth import Authenticator, Caller

RESPONSES = "/v1/responses"
_PATH = f"{RESPONSES}/{{id}}"
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items_of = msgspec.json.Decoder(str | list[msgspec.Raw]).decode


class _Head(msgspec.Struct, frozen=True):
    """What of a body says from which response it goes on."""

    previous_response_id: str | None = None


_head_of = msgspec.json.Decoder(_Head).decode


class StoredResponses:
    """One router's stored responses, and their routes. store: None if none are stored."""

    def __init__(self, settings: ResponseSettings, authenticator: Authenticator, store: ResponseStore | None) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._store = store

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(_PATH, self.retrieve, methods=["GET"]),
            Route(_PATH, self.delete, methods=["DELETE"]),
            Route(f"{_PATH}/input_items", self.input_items, methods=["GET"]),
        ]

    async def retrieve(self, http: HttpRequest) -> Response:
        """GET /v1/responses/ID"""
        if http.query_params.get("stream", "false") not in ("false", "0"):
            raise invalid_request("stream", "A stored response is not streamed; leave stream out.")
        stored = await self._find(self._caller(http), http.path_params["id"])
        return Response(stored.response, media_type="application/json")

    async def delete(self, http: HttpRequest) -> Response:
        """DELETE /v1/responses/ID"""
        response_id, caller = http.path_params["id"], self._caller(http)
        store = self._available()
        try:
            if not await store.delete(caller.owner, response_id):
                raise _not_found(response_id)
        except RedisUnavailable:
            raise _away() from None
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
            given = _items_of(fields["input"]) if "input" in fields else []
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return body  # the parser names the fault
        if previous is None:
            return body
        stored = await self._find(caller, previous, status=400)
        if isinstance(given, str):
            given = [msgspec.Raw(msgspec.json.encode({"role": "user", "content": given}))]
        items = [*map(msgspec.Raw, stored.items), *_output(stored), *given]
        return msgspec.json.encode({**fields, "input": items})

    def keep_of(self, caller: Caller, writer: ResponseWriter, body: bytes) -> Keep | None:
        """What stores the response to a body, with its conversation; None if it is not to be stored."""
        if self._store is None or len(body) > self._settings.max_bytes:
            writer.stores = False
        if self._store is None or not writer.stores:
            return None
        return partial(self._keep, self._store, caller.owner, writer, _fields_of(body)["input"])

    async def _keep(
        self, store: ResponseStore, owner: str, writer: ResponseWriter, given: msgspec.Raw, answer: GenerationResult
    ) -> None:
        response, items = writer.finish(answer), _items_of(given)
        if isinstance(items, str):
            items = [msgspec.Raw(msgspec.json.encode({"role": "user", "content": items}))]
        try:
            stored = StoredResponse(msgspec.json.encode(response), tuple(map(_identified, items)), writer.user)
        except RecursionError:  # in a field that nothing else reads
            response["store"] = False
        else:
            response["store"] = await store.put(owner, response["id"], stored)

    async def _find(self, caller: Caller, response_id: str, status: int = 404) -> StoredResponse:
        try:
            stored = await self._available().get(caller.owner, response_id)
        except RedisUnavailable:
            raise _away() from None
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
        if caller.admin:
            raise ApiError(403, "An admin key has no responses; use a team's key.", code="not_a_teams_key")
        return caller


def _identified(item: msgspec.Raw) -> bytes:
    """An item of the input with an id, and in the shape that items of responses have."""
    fields: dict[str, Any] = msgspec.json.decode(item)
    kind = fields.setdefault("type", "message")
    if not isinstance(fields.get("id"), str):
        fields["id"] = new_id({"message": "msg_", "function_call": "fc_", "reasoning": "rs_"}.get(kind, "item_"))
    if kind == "message":
        fields.setdefault("status", "completed")
        if isinstance(text := fields.get("content"), str):
            answer = fields.get("role") == "assistant"
            part = {"type": "output_text", "annotations": []} if answer else {"type": "input_text"}
            fields["content"] = [part | {"text": text}]
    return msgspec.json.encode(fields)


def _output(stored: StoredResponse) -> list[msgspec.Raw]:
    output: list[msgspec.Raw] = msgspec.json.decode(_fields_of(stored.response)["output"], type=list[msgspec.Raw])
    return output


def _not_found(response_id: str, status: int = 404) -> ApiError:
    message = f"No response with the id '{shortened(response_id)}' is stored; it may have expired, or been deleted."
    if status == 404:
        return ApiError(404, message, code="response_not_found")
    return ApiError(status, message, code="previous_response_not_found", param="previous_response_id")


def _away() -> ApiError:
    message = "Stored responses cannot be read at the moment. Try again, or send the whole conversation as input."
    return ApiError(503, message, code="responses_unavailable", kind="server_error", retry_after_s=1)
