"""Decodes request bodies, and turns what is wrong with them into an error that names the field."""

import codecs
import json
import re
from typing import Any, TypeVar

import msgspec

from deployments.common.errors import ApiError, shortened

_UNKNOWN = "Object contains unknown field `"
_MISSING = "Object missing required field `"

_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
"""The range of integers in MessagePack, as which requests are sent to engines and hashed into cache keys."""
_LONG_NUMBER = b"0" * 19
"""An integer of fewer digits always fits."""
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_TOO_LARGE = object()
_LONE_SURROGATE = (
    "a text has half of a surrogate pair (\\ud800 to \\udfff alone), which is no character. It was probably cut in the "
    "middle of an emoji."
)

_MEDIA = re.compile(r"Invalid value '((?:input_)?(?:image|audio|video|file)(?:_url)?)' - at `\$\.([\w.\[\]]+)\.type`")
"""The decoder's message about a part of a message that is an image or the like."""

T = TypeVar("T")


class OfManyTypes(msgspec.Struct, frozen=True):
    """An object whose `type` says what it is. Those that Dray leaves out, or refuses as a whole, have fields of their
    own."""

    @staticmethod
    def has_own_fields(kind: str | None) -> bool:
        """Whether objects of this type do. None: without one."""
        raise NotImplementedError


def parse(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """The request in a body. Raises ApiError 400 that names the field."""
    # Windows programs write a byte order mark.
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        _check_integers(body)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _media_refusal(str(error), body) or _refusal(str(error)) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    except UnicodeDecodeError as error:
        message = f"The body is not valid UTF-8: {error.reason}. Encode it as UTF-8."
        raise ApiError(400, message, code="invalid_json") from None
    except msgspec.DecodeError as error:
        reason = _LONE_SURROGATE if _has_lone_surrogate(body) else str(error)
        raise ApiError(400, f"The body is not valid JSON: {reason}", code="invalid_json") from None


def depth_of(value: Any, max_depth: int) -> int:
    """How deep lists and mappings are nested in a decoded JSON value. Stops counting at `max_depth` + 1."""
    level, depth = [value], 0
    while depth <= max_depth:
        containers = [member for member in level if isinstance(member, dict | list)]
        if not containers:
            break
        level = [
            member
            for container in containers
            for member in (container.values() if isinstance(container, dict) else container)
        ]
        depth += 1
    return depth


def _check_integers(body: bytes) -> None:
    """Raises ApiError 400 for an integer beyond 64 bits in any field, and RecursionError for deep nesting."""
    if _LONG_NUMBER not in body.translate(_DIGITS_TO_ZERO):
        return  # almost every body; a microsecond for 1 kB
    try:
        value = json.loads(body, parse_int=_integer)
    except ValueError:
        return  # the decoder reports invalid JSON
    if (path := _path_to_large_integer(value)) is not None:
        raise _invalid(path, "integers must be between -2^63 and 2^64 - 1", "invalid_value")


def _has_lone_surrogate(body: bytes) -> bool:
    """Whether it is JSON but for half of a surrogate pair, which Python's own parser takes."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _integer(digits: str) -> object:
    # Length first: Python refuses to parse thousands of digits.
    if len(digits) <= 20 and _MIN_INTEGER <= (number := int(digits)) <= _MAX_INTEGER:
        return number
    return _TOO_LARGE


def _path_to_large_integer(value: object) -> str | None:
    """The path to an integer out of range, such as `messages[0].content`; None: there is none."""
    # A trail is (key, trail of the containing value): a text for every path could take gigabytes for hostile bodies.
    pending: list[tuple[object, tuple[Any, ...]]] = [(value, ())]
    while pending:
        member, trail = pending.pop()
        if member is _TOO_LARGE:
            return _path(trail)
        if isinstance(member, dict):
            pending.extend((inner, (key, trail)) for key, inner in member.items())
        elif isinstance(member, list):
            pending.extend((inner, (index, trail)) for index, inner in enumerate(member))
    return None


def _path(trail: tuple[Any, ...]) -> str:
    parts = []
    while trail:
        key, trail = trail
        parts.append(f"[{key}]" if isinstance(key, int) else f".{key}")
    return "".join(reversed(parts)).removeprefix(".")


def _media_refusal(reason: str, body: bytes) -> ApiError | None:
    """The error for a part of a message that is no text, which says which part; None for any other error."""
    if (found := _MEDIA.fullmatch(reason)) is None:
        return None
    kind, path = found.groups()
    model = shortened(str(json.loads(body).get("model")))
    message = f"it is of type {kind}, but the model {model} reads text only. Leave it out, or describe it."
    return ApiError(400, f"Invalid '{path}': {message}", code="invalid_value", param=f"{path}.type")


def _refusal(reason: str) -> ApiError:
    """The error for msgspec's message about a body, such as "Expected `int`, got `str` - at `$.n`"."""
    # Names in it are the client's own, of any length.
    message, _, path = (
        reason.rpartition(" - at `$") if reason.endswith("`") and " - at `$" in reason else (reason, "", "")
    )
    # msgspec's path does not name the keys of a mapping: `metadata[...]`.
    path = shortened(path.removesuffix("`").removeprefix(".").partition("[...]")[0])
    if message.startswith(_UNKNOWN):
        name = shortened(message.removeprefix(_UNKNOWN).removesuffix("`"))
        name = f"{path}.{name}" if path else name
        return unknown_field(name)
    if message.startswith(_MISSING):
        name = message.removeprefix(_MISSING).removesuffix("`")
        name = f"{path}.{name}" if path else name
        return ApiError(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    message = shortened(message, 200)
    return _invalid(
        path, message, "invalid_type" if message.startswith("Expected") and "got" in message else "invalid_value"
    )


def unknown_field(name: str) -> ApiError:
    """The error for a field that Dray does not know."""
    return ApiError(400, f"Unrecognized request argument supplied: {name}", code="unknown_parameter", param=name)


def _invalid(path: str, message: str, code: str) -> ApiError:
    return ApiError(
        400, f"Invalid '{path}': {message}." if path else f"Invalid body: {message}.", code=code, param=path or None
    )
