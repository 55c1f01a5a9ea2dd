"""What an answer must be, as OpenAI's `response_format` and vLLM's structured outputs say it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.common import Name, check_json, schema_text
from deployments.common.errors import invalid_request
from deployments.common.types import Constraint

SchemaParam = dict[str, Any] | str
"""A JSON Schema, or its JSON text."""
Choices = list[str]


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="type"):
    """Free text."""


class JsonObjectFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="json_object", tag_field="type"):
    """Any JSON object. schema: a JSON Schema that it must also fit, as llama-server takes it."""

    schema: dict[str, Any] | None = None


class SchemaSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON Schema, to which the answer is constrained. strict: a schema that cannot be enforced as a whole is
    refused; otherwise it is enforced as far as possible."""

    name: Name | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="json_schema", tag_field="type"):
    """JSON that a schema allows."""

    json_schema: SchemaSpec


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's name for the same: one of a JSON Schema, a regular expression, texts to choose from, a grammar in Lark or
    GBNF, and any JSON object."""

    json: SchemaParam | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class FormatFields(Protocol):
    """The fields of a request that say what its answer must be."""

    @property
    def response_format(self) -> ResponseFormat | None: ...
    @property
    def structured_outputs(self) -> StructuredOutputs | None: ...
    @property
    def guided_json(self) -> SchemaParam | None: ...
    @property
    def guided_regex(self) -> str | None: ...
    @property
    def guided_choice(self) -> Choices | None: ...
    @property
    def guided_grammar(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What an answer must be. field: of the request, that says so. schema: a JSON Schema as JSON text; empty for none.
    strict: it is refused where it cannot be enforced as a whole."""

    field: str = "response_format"
    schema: str = ""
    strict: bool = False
    constraint: Constraint | None = None


def format_field(request: FormatFields) -> str:
    """The field of a request that says what its answer must be."""
    return next((field for field, _, _ in _fields_with_values(request)), "response_format")


def answer_format(request: FormatFields, limits: LimitSettings) -> AnswerFormat:
    """What the answer to a request must be. Raises ApiError 400 for several fields that say so, and for a wrong one."""
    formats = [_read(field, kind, value, limits) for field, kind, value in _fields_with_values(request)]
    if len(formats) > 1:
        first, second = formats[0].field, formats[1].field
        raise invalid_request(second, f"{second} and {first} both say what the answer must be; send one of them.")
    return formats[0] if formats else AnswerFormat()


def _fields_with_values(request: FormatFields) -> Iterator[tuple[str, str, Any]]:
    """Each field that is set, with the kind of its value."""
    if not isinstance(request.response_format, TextFormat | None):
        yield "response_format", "format", request.response_format
    for kind in ("json", "regex", "choice", "grammar"):
        if (value := getattr(request, f"guided_{kind}")) is not None:
            yield f"guided_{kind}", kind, value
    if (outputs := request.structured_outputs) is not None:
        for kind in ("json", "regex", "choice", "grammar"):
            if (value := getattr(outputs, kind)) is not None:
                yield f"structured_outputs.{kind}", kind, value
        if outputs.json_object:
            yield "structured_outputs.json_object", "format", JsonObjectFormat()


def _read(field: str, kind: str, value: Any, limits: LimitSettings) -> AnswerFormat:
    if isinstance(value, JsonObjectFormat):
        return AnswerFormat(field, schema_text(value.schema or {"type": "object"}, field, limits))
    if isinstance(value, JsonSchemaFormat):
        spec = value.json_schema
        return AnswerFormat(field, schema_text(spec.schema, field, limits), spec.strict is True)
    if kind == "json":
        return AnswerFormat(field, schema_text(_decoded(value, field, limits), field, limits))
    texts = tuple(value) if kind == "choice" else (value,)
    if not texts or not all(texts):
        raise invalid_request(field, f"{field} is empty, or has an empty text; fill it in or leave it out.")
    return AnswerFormat(field, constraint=Constraint(kind, texts))  # type: ignore[arg-type]  # one of its kinds


def _decoded(schema: SchemaParam, field: str, limits: LimitSettings) -> dict[str, Any]:
    if isinstance(schema, dict):
        return schema
    try:
        decoded = msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise invalid_request(field, f"{field} is neither a JSON Schema nor the JSON text of one.") from None
    check_json(decoded, field, limits)
    return decoded
