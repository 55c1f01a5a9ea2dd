"""Fields of a body that Dray does not know, at any depth: ignored and named in a header, or refused."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import inspect

from deployments.api.protocol.parsing import OfManyTypes, parse, unknown_field
from deployments.common.errors import ApiError, shortened

T = TypeVar("T")

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_MAX_SHOWN = 16
"""Ignored fields that a header names."""
_ANY_OBJECT = msgspec.json.Decoder(dict[str, Any])
NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "documents": ([],),
    "early_stopping": (False,),
    "echo": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "priority": (0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Fields of other servers with the values that request nothing, as null does: clients send their defaults too."""


class UnknownFields:
    """What becomes of them, by the setting `api.unknown_fields`."""

    def __init__(self, *, ignore: bool) -> None:
        """ignore: whether they are ignored rather than refused."""
        self.ignore = ignore

    def read(self, body: bytes, request: type, read: Callable[[bytes], T]) -> tuple[T, tuple[str, ...]]:
        """What `read` makes of the body, and the paths of the fields that were ignored. request: the body's type.

        Raises what `read` raises.
        """
        try:
            return read(body), ()
        except ApiError as error:
            if error.body.error.code != "unknown_parameter":
                raise
            refusal = error
        # Read once more without them: few requests have any, and the others must not pay for these.
        fields = parse(_ANY_OBJECT, body)
        unknown = dict.fromkeys(_prune(fields, type_of(request), ""))
        if unknown and not self.ignore:
            # The decoder may have met one with a neutral value first.
            raise refusal if refusal.body.error.param not in NEUTRAL else unknown_field(next(iter(unknown)))
        return read(msgspec.json.encode(fields)), tuple(unknown)


def ignored_header(ignored: tuple[str, ...]) -> Mapping[str, str]:
    """The header that names them. The names are the client's own, of any length and with any characters."""
    if not ignored:
        return _NO_HEADERS
    shown = [quote(shortened(name), safe=" $@[]") for name in ignored[:_MAX_SHOWN]]
    more = [f"and {len(ignored) - len(shown)} more"] if len(ignored) > len(shown) else []
    return {"X-Dray-Ignored": ", ".join(shown + more)}


@cache
def type_of(request: type) -> inspect.Type:
    """What msgspec knows of a type."""
    return inspect.type_info(request)


def _prune(value: Any, kind: inspect.Type, path: str) -> Iterator[str]:
    """Removes the fields from a JSON value that the type of its object does not have; gives their paths, but not of
    those with a neutral value at the top, nor of those of an object that has its own."""
    kind = _without_metadata(kind)
    if isinstance(kind, inspect.UnionType):
        kind = _option(value, kind)
    if isinstance(value, list) and isinstance(kind, inspect.ListType):
        for item in value:
            yield from _prune(item, kind.item_type, f"{path}[]")
    elif isinstance(value, dict) and isinstance(kind, inspect.StructType):
        known = {field.encode_name: field.type for field in kind.fields}
        silent = _has_own_fields(value, kind.cls)
        for name in tuple(value):
            where = f"{path}.{name}" if path else name
            if name in known:
                yield from _prune(value[name], known[name], where)
            elif name != kind.tag_field:
                removed = value.pop(name)
                if not silent and (path or name not in NEUTRAL or not _is_neutral(removed, name)):
                    yield where


def _has_own_fields(value: dict[str, Any], kind: type) -> bool:
    name = value.get("type")
    return issubclass(kind, OfManyTypes) and isinstance(name, str | None) and kind.has_own_fields(name)


def _is_neutral(value: object, name: str) -> bool:
    # True equals 1 to Python, and not to JSON.
    return value is None or (type(value) is bool, value) in [(type(each) is bool, each) for each in NEUTRAL[name]]


def _without_metadata(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _option(value: Any, union: inspect.UnionType) -> inspect.Type:
    """The option of a union that the value is decoded as, if it can have unknown fields; else any other."""
    options = [_without_metadata(option) for option in union.types]
    structs = [option for option in options if isinstance(option, inspect.StructType)]
    if isinstance(value, list):
        return next((option for option in options if isinstance(option, inspect.ListType)), union)
    if isinstance(value, dict):
        tagged = (option for option in structs if option.tag_field and value.get(option.tag_field) == option.tag)
        return next(tagged, next((option for option in structs if not option.tag_field), union))
    return union
