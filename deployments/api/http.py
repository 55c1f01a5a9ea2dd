"""What all routes share: bodies, headers, JSON responses, and errors in the shape of the API that was asked."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive

from deployments.api.compression import decompress
from deployments.api.protocol.messages import anthropic_error
from deployments.api.protocol.responses import response_error
from deployments.api.request_state import REQUEST_STATE, RequestState
from deployments.common.errors import ApiError, shortened

log = logging.getLogger("dray.router")

CLIENT_DISCONNECTED = 499
"""Status of a request whose client disconnected before its response was complete. Only metrics and logs show it."""
_JSON = "application/json"
_MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
_TIMEOUT_MARGIN_S = 0.1
_MIN_TIMEOUT_S = 0.001


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with this body as JSON."""
    return Response(msgspec.json.encode(body), status, headers, media_type=_JSON)


def headers_of(http: HttpRequest) -> dict[str, str]:
    """The request's headers by their names in lower case; of several with one name, the first.

    Starlette's own headers search the list for each name: for half a dozen of them a twentieth of a cache hit.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(http.scope["headers"])}


async def read_body(http: HttpRequest, headers: Mapping[str, str], max_bytes: int, timeout_s: float) -> bytes:
    """The request's body, decompressed and not parsed. timeout_s: for the whole body to arrive.

    Raises ApiError 415 if it is not JSON, 413 as soon as it exceeds max_bytes, 408 if it takes too long, and what
    `decompress` raises; ClientDisconnect if it ends early.
    """
    check_json(headers.get("content-type", _JSON))
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(http.receive, max_bytes)
    except TimeoutError:
        raise _too_slow(timeout_s) from None
    return decompress(body, headers.get("content-encoding", ""), max_bytes)


def receive_within(receive: Receive, timeout_s: float) -> Receive:
    """Receives the messages of a request whose body must arrive within timeout_s. Then the client counts as gone."""
    loop = asyncio.get_running_loop()
    deadline, complete = loop.time() + timeout_s, False

    async def receive_or_give_up() -> Message:
        nonlocal complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        complete = not message.get("more_body", False)
        return message

    return receive_or_give_up


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message["body"], message["more_body"]
        size += len(part)
        if size > max_bytes:
            raise ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


def check_json(content_type: str) -> None:
    """Raises ApiError 415 if a body of this content type is not JSON."""
    if content_type == _JSON:
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != _JSON and not media_type.endswith("+json"):
        message = (
            f"Send the body as {_JSON}, not {shortened(media_type) or 'without a content type'}: add the header "
            f"Content-Type: {_JSON} (curl: -H 'Content-Type: {_JSON}')."
        )
        raise ApiError(415, message, code="unsupported_media_type")


def _too_slow(timeout_s: float) -> ApiError:
    error = ApiError(408, f"The body did not arrive within {timeout_s:g} s.", code="request_timeout")
    error.headers["Connection"] = "close"  # the rest of the body may still come
    return error


def request_timeout_s(headers: Mapping[str, str], max_s: float) -> float:
    """Seconds that a request may take: its x-request-timeout-seconds, up to max_s; raises ApiError 400.

    Serve enforces the same header, with an error in its own shape (ray 2.60); so Dray's time is a little shorter.
    """
    if (text := headers.get("x-request-timeout-seconds")) is None:
        return max_s
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not _MIN_TIMEOUT_S <= timeout_s < math.inf:
        message = f"x-request-timeout-seconds: {text[:20]!r} is not a number of seconds of at least {_MIN_TIMEOUT_S}."
        raise ApiError(400, message, code="invalid_header", param="x-request-timeout-seconds")
    return min(timeout_s - min(_TIMEOUT_MARGIN_S, timeout_s / 4), max_s)


def idempotency_key(headers: Mapping[str, str]) -> str:
    """The Idempotency-Key, by which a repeated request is recognized; empty if there is none. Raises ApiError 400."""
    key = headers.get("idempotency-key", "")
    if len(key) > _MAX_IDEMPOTENCY_KEY_CHARACTERS:
        message = f"An idempotency key has at most {_MAX_IDEMPOTENCY_KEY_CHARACTERS} characters."
        raise ApiError(400, message, code="invalid_header", param="idempotency-key")
    return key


def api_error(http: HttpRequest, error: Exception) -> Response:
    """The response to a request that is refused."""
    assert isinstance(error, ApiError)
    state: RequestState | None = http.scope.get(REQUEST_STATE)
    if state is not None:
        state.progress.code = error.body.error.code or ""
    path = http.url.path
    body = error.body if not path.startswith("/v1/responses") else response_error(error)
    shape = anthropic_error(error) if path.startswith("/v1/messages") else body
    return json_response(shape, error.status, error.headers)


def http_error(http: HttpRequest, error: Exception) -> Response:
    """The response to what Starlette refuses: an unknown route, or a method that the route does not accept."""
    assert isinstance(error, HTTPException)
    what = f"{shortened(http.method)} {shortened(http.url.path)}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    messages = {404: f"Unknown request URL: {what}.", 405: f"Not allowed to {what}."}
    refusal = ApiError(error.status_code, messages.get(error.status_code, error.detail), code=code)
    refusal.headers.update(error.headers or {})
    return api_error(http, refusal)


def client_disconnected(http: HttpRequest, error: Exception) -> Response:
    """Ends a request whose client disconnected before its body was complete. Nobody receives this response."""
    return Response(status_code=CLIENT_DISCONNECTED)


def internal_error(http: HttpRequest, error: Exception) -> Response:
    """The response to a request on which the server failed."""
    log.error("request failed", exc_info=error)
    message = "The server failed on this request."
    return api_error(http, ApiError(500, message, code="internal_error", kind="server_error"))


ERROR_RESPONSES: dict[type[Exception], Callable[[HttpRequest, Exception], Response]] = {
    ApiError: api_error,
    HTTPException: http_error,
    ClientDisconnect: client_disconnected,
    Exception: internal_error,
}
"""Turns an exception of a handler into its response; the first class that matches."""


def error_response(http: HttpRequest, error: Exception) -> Response:
    """The response to a request whose handler raised this."""
    return next(respond for kind, respond in ERROR_RESPONSES.items() if isinstance(error, kind))(http, error)
