"""Stores one response of /v1/responses with its conversation: at its end, or from its beginning in the background."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.cache.response_store import ResponseStore, StoredResponse
from deployments.common.errors import ApiError, invalid_request, new_id
from deployments.common.redis import RedisUnavailable
from deployments.common.types import GenerationResult

_RETRY_S = 5
items_of = msgspec.json.Decoder(str | list[msgspec.Raw]).decode
"""Decodes the input of a request."""


@dataclass(frozen=True)
class ResponseKeeper:
    """Stores one response with its conversation. given: the request's input."""

    writer: ResponseWriter
    _store: ResponseStore
    _owner: str
    _given: msgspec.Raw

    async def __call__(self, answer: GenerationResult) -> None:
        """Stores the response with this answer; its `store` then says whether that worked."""
        response = self.writer.finish(answer)
        stored = self._record(response)
        response["store"] = stored is not None and await self._store.put(self._owner, self.writer.id, stored)

    @property
    def lease_s(self) -> float:
        """Seconds for which the router of a response in the background may be silent."""
        return self._store.lease_s

    async def begin(self) -> None:
        """Stores a response that is only queued, with a lease. Raises ApiError 429 for too many, 503 without Redis."""
        try:
            stored = self._record(self.writer.unfinished("queued"))
            if stored is None or not self._store.fits(stored):
                raise not_in_background("the request is larger than responses.max_bytes")
            if not await self._store.begin(self._owner, self.writer.id, stored):
                message = (
                    "Too many of your responses are generated in the background (responses.max_background). Wait for "
                    "one to end, or cancel one."
                )
                raise ApiError(429, message, code="rate_limit_exceeded", kind="requests", retry_after_s=_RETRY_S)
        except RedisUnavailable:
            raise away() from None

    async def renew(self, response: dict[str, Any] | None = None) -> bool:
        """Renews the lease; False if it is gone. response: as it is by now. Raises RedisUnavailable."""
        return await self._store.renew(self._owner, self.writer.id, self._record(response) if response else None)

    async def end(self, response: dict[str, Any]) -> bool:
        """Stores a response that has ended, if it still has its lease; False if it is too large.

        Raises RedisUnavailable.
        """
        stored = self._record(response)
        if stored is None or not self._store.fits(stored):
            return False
        await self._store.end(self._owner, self.writer.id, stored)
        return True

    async def forget(self) -> None:
        """Removes a response whose request failed."""
        with suppress(RedisUnavailable):
            await self._store.delete(self._owner, self.writer.id)

    def _record(self, response: dict[str, Any]) -> StoredResponse | None:
        """None if the conversation is nested too deeply, in a field that nothing else reads."""
        try:
            return StoredResponse(msgspec.json.encode(response), self._items, self.writer.user)
        except RecursionError:
            return None

    @cached_property
    def _items(self) -> tuple[bytes, ...]:
        """The input's items, with the ids by which clients read them."""
        items = items_of(self._given)
        if isinstance(items, str):
            items = [msgspec.Raw(msgspec.json.encode({"role": "user", "content": items}))]
        return tuple(map(_identified, items))


def not_in_background(reason: str) -> ApiError:
    """400: a response cannot be generated in the background."""
    message = f"background requires that the response is stored, but {reason}."
    return invalid_request("background", message, code="unsupported_parameter")


def away() -> ApiError:
    """503: Redis is away."""
    message = "Stored responses cannot be read at the moment. Try again, or send the whole conversation as input."
    return ApiError(503, message, code="responses_unavailable", kind="server_error", retry_after_s=1)


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
