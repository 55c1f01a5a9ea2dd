"""What every route does with HTTP: bodies, headers, JSON, and errors in the API's own shape."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deployments.api.protocol.messages import anthropic_error
from deployments.common.errors import ApiError

log = logging.getLogger("dray.router")

_JSON = "application/json"
_LONGEST_IDEMPOTENCY_KEY = 255
_EARLIER_S = 0.1


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A body as JSON."""
    return Response(msgspec.json.encode(body), status, headers, media_type=_JSON)


def headers_of(http: HttpRequest) -> dict[str, str]:
    """The request's headers by their names in lower case; of several with one name, the first.

    A search in Starlette's own for each of half a dozen headers takes a twentieth of a cache hit.
    """
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(http.scope["headers"])}


async def read_json(http: HttpRequest, headers: Mapping[str, str], most: int) -> bytes:
    """The request's body. Raises ApiError 415 where it is no JSON, 413 as soon as it is longer than `most` bytes."""
    kind = headers.get("content-type", _JSON)
    if kind != _JSON and (kind := kind.partition(";")[0].strip().lower()) != _JSON and not kind.endswith("+json"):
        raise ApiError(415, f"Send the body as application/json, not {kind}.", code="unsupported_media_type")
    parts, size, more = [], 0, True
    while more:
        message = await http.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message["body"], message["more_body"]
        size += len(part)
        if size > most:
            raise ApiError(413, f"The body is larger than {most} bytes.", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


def request_timeout_s(headers: Mapping[str, str], most_s: float) -> float:
    """Seconds that a request may take: what it says itself, up to what all may. Raises ApiError 400.

    Serve looks at the same header, and answers in its own shape (ray 2.60): Dray is to be a little earlier.
    """
    if (text := headers.get("x-request-timeout-seconds")) is None:
        return most_s
    try:
        wish = float(text)
    except ValueError:
        wish = math.nan
    if not 0 < wish < math.inf:
        message = f"x-request-timeout-seconds: {text[:20]!r} is no number of seconds above 0."
        raise ApiError(400, message, code="invalid_header", param="x-request-timeout-seconds")
    return min(wish - min(_EARLIER_S, wish / 4), most_s)


def idempotency_key(headers: Mapping[str, str]) -> str:
    """The key by which a request is known when it comes again; empty: none. Raises ApiError 400."""
    key = headers.get("idempotency-key", "")
    if len(key) > _LONGEST_IDEMPOTENCY_KEY:
        message = f"An idempotency key has at most {_LONGEST_IDEMPOTENCY_KEY} characters."
        raise ApiError(400, message, code="invalid_header", param="idempotency-key")
    return key


def api_error(http: HttpRequest, error: Exception) -> Response:
    """The answer to a request that is refused."""
    assert isinstance(error, ApiError)
    shape = anthropic_error(error) if http.url.path.startswith("/v1/messages") else error.body
    return json_response(shape, error.status, error.headers)


def http_error(http: HttpRequest, error: Exception) -> Response:
    """The same for what Starlette refuses: a route that is none, a method that it does not take."""
    assert isinstance(error, HTTPException)
    what = f"{http.method} {http.url.path}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    said = {404: f"Unknown request URL: {what}.", 405: f"Not allowed to {what}."}
    told = ApiError(error.status_code, said.get(error.status_code, error.detail), code=code)
    told.headers.update(error.headers or {})
    return api_error(http, told)


def internal_error(http: HttpRequest, error: Exception) -> Response:
    """The answer to a request on which the server has failed."""
    log.error("request failed", exc_info=error)
    message = "The server failed on this request."
    return api_error(http, ApiError(500, message, code="internal_error", kind="server_error"))
