"""Bodies become requests, and what is wrong with them becomes an error that names the field."""

import re
from typing import Any, TypeVar

import msgspec

from deployments.common.errors import ApiError

_FIELD = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"missing required field `(.*)`")

T = TypeVar("T")


def parse(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """The request in a body. Raises ApiError 400 that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None


def depth_of(value: Any, most: int) -> int:
    """How deep lists and mappings are nested in a decoded JSON value; no deeper than `most` + 1 is looked."""
    level, deep = [value], 0
    while level and deep <= most:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
            else:
                continue
        if not any(isinstance(one, dict | list) for one in level):
            break
        level, deep = inner, deep + 1
    return deep


def _refusal(said: str) -> ApiError:
    where = _FIELD.search(said)
    path = where.group(1) if where else ""
    message = _FIELD.sub("", said)
    if unknown := _UNKNOWN.search(message):
        name = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        return ApiError(400, f"Unrecognized request argument supplied: {name}", code="unknown_parameter", param=name)
    if missing := _MISSING.search(message):
        name = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return ApiError(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    code = "invalid_type" if message.startswith("Expected") and "got" in message else "invalid_value"
    return ApiError(
        400,
        f"Invalid '{path}': {message}." if path else f"Invalid body: {message}.",
        code=code,
        param=path or None,
    )
