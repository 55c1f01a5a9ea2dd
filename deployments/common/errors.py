"""Errors in OpenAI's shape, server-sent events and ids: what all APIs share."""

import random
from typing import Any

import msgspec

_MAX_MESSAGE, _MAX_PARAM = 1000, 200


class ErrorDetail(msgspec.Struct, frozen=True):
    """OpenAI's error object. param: the field of the request at fault. code: a stable name for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(Exception):
    """An error response: its HTTP status, headers and body."""

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
        """kind: OpenAI's `error.type`. retry_after_s: value of the Retry-After header, in seconds."""
        # Whatever the client sent may be part of both.
        message, param = shortened(message, _MAX_MESSAGE), param and shortened(param, _MAX_PARAM)
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.body = ErrorBody(ErrorDetail(message, kind, param, code))
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def rename_param(self, old: str, new: str) -> None:
        """Names another field as the one at fault, if it named `old`."""
        if self.body.error.param == old:
            self.body = ErrorBody(msgspec.structs.replace(self.body.error, param=new))


class PromptTooLong(ApiError):
    """400: a prompt does not fit the context. tokens: how many it has, or at least has. context_tokens: the model's."""

    def __init__(self, message: str, param: str, tokens: int, context_tokens: int) -> None:
        super().__init__(400, message, code="context_length_exceeded", param=param)
        self.tokens = tokens
        self.context_tokens = context_tokens


def invalid_request(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """400 that names the parameter at fault."""
    return ApiError(400, message, code=code, param=param)


def overloaded(message: str, retry_after_s: int = 1) -> ApiError:
    """503: the request is fine, and a later attempt may succeed."""
    return ApiError(503, message, code="overloaded", kind="server_error", retry_after_s=retry_after_s)


def sse_event(body: dict[str, Any] | msgspec.Struct) -> bytes:
    """A server-sent event with this body as JSON."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def new_id(prefix: str) -> str:
    """A new random id. Ids are not secrets, so a fast generator is enough."""
    return f"{prefix}{random.getrandbits(128):032x}"


def shortened(text: str, max_characters: int = 64) -> str:
    """The text, cut if it is longer: for what a client sent and gets back in an error, or what a log shows of it."""
    return text if len(text) <= max_characters else f"{text[:max_characters]}…"
