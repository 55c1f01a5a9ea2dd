"""Errors in OpenAI's shape, and what every API says alike."""

import random
from typing import Any

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong. param: the field of the request; code: for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every refusal."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error: HTTP status, and what OpenAI puts in its `error` object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.body = ErrorBody(ErrorDetail(message, kind, param, code))
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


def invalid_request(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """400 that names the parameter."""
    return ApiError(400, message, code=code, param=param)


def overloaded(message: str, retry_after_s: int = 1) -> ApiError:
    """503: nothing is wrong with the request, and a later try may be served."""
    return ApiError(503, message, code="overloaded", kind="server_error", retry_after_s=retry_after_s)


def sse_event(body: dict[str, Any] | msgspec.Struct) -> bytes:
    """A server-sent event with this JSON."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def new_id(prefix: str) -> str:
    """A new id of this kind. Nobody is to guess nothing by it, so it costs no system call."""
    return f"{prefix}{random.getrandbits(128):032x}"
