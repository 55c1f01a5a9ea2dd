"""POST /v1/responses: OpenAI's newer API, without its store: every request brings its whole conversation."""

from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.chat import Count, Effort, Name
from deployments.api.protocol.common import (
    Probability,
    reasoning_bound,
    sampling_for,
    schema_text,
    template_arguments,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, ErrorBody, invalid_request
from deployments.common.types import GenerationRequest, Message, Tool, ToolCall, ToolChoice


class InputPart(msgspec.Struct, frozen=True):
    """A part of a message, or of an earlier thought. Only text is served."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str = ""
    refusal: str = ""


class InputItem(msgspec.Struct, frozen=True):
    """A message, a call, what a call gave back, or an earlier thought; which fields it has, its type says."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(msgspec.Struct, frozen=True, tag="function", tag_field="type"):
    """A function that may be called."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    """The one function that must be called."""

    name: str
    type: Literal["function"] = "function"


class PlainFormat(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Free text."""


class ObjectFormat(msgspec.Struct, frozen=True, tag="json_object", tag_field="type"):
    """Any JSON object."""


class SchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON that a schema allows."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    """The answer's format."""

    format: PlainFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """How long it may think. The thinking is given as it is; there are no summaries of it."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses. A name that is not here is refused by its name."""

    model: str
    input: str | Annotated[list[InputItem], msgspec.Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    # Taken and without effect.
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Taken at the value that asks for nothing.
    background: Literal[False] | None = None
    conversation: None = None
    previous_response_id: str | None = None
    prompt: None = None
    top_logprobs: Literal[0] | None = None


decode = msgspec.json.Decoder(ResponseRequest)
_PARAMS = {"messages": "input", "response_format": "text.format"}


def read_response(body: bytes, limits: LimitSettings) -> ResponseRequest:
    """The request in a body, within the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    if request.previous_response_id is not None:
        raise invalid_request(
            "previous_response_id",
            "Responses are not stored here; send the whole conversation as input.",
            code="unsupported_parameter",
        )
    if not isinstance(request.input, str) and len(request.input) > limits.messages:
        raise invalid_request(
            "input",
            f"{len(request.input)} items; at most {limits.messages} are taken.",
            code="array_above_max_length",
        )
    if len(request.tools or ()) > limits.tools:
        raise invalid_request("tools", f"At most {limits.tools} tools are taken.", code="array_above_max_length")
    return request


def response_generation(request: ResponseRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """What the request asks. Raises ApiError 400 that names the field."""
    turns = _turns(request)
    if not any(turn.content.strip() for turn in turns):
        raise invalid_request("input", "The input is empty: it needs text.", code="empty_prompt")
    tools = tuple(
        Tool(
            tool.name,
            tool.description or "",
            schema_text(tool.parameters or {"type": "object", "properties": {}}, "tools", limits),
            # Strict is this API's default, and a schema that cannot be held to is then refused.
            tool.strict is True,
        )
        for tool in request.tools or ()
    )
    effort = request.reasoning.effort if request.reasoning else None
    return GenerationRequest(
        messages=turns,
        sampling=sampling_for(model, limits, request.max_output_tokens, request),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        schema=_schema(request, limits),
        template_args=template_arguments(None, effort, limits),
        max_thinking_tokens=reasoning_bound(effort, None),
    )


def _turns(request: ResponseRequest) -> tuple[Message, ...]:
    turns = [Message("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return (*turns, Message("user", request.input))
    thought = ""
    for place, item in enumerate(request.input):
        where = f"input[{place}]"
        if item.type == "reasoning":
            thought = _text(item.content)
        elif item.type == "function_call":
            call = ToolCall(
                _needed(item.call_id, f"{where}.call_id"),
                _needed(item.name, f"{where}.name"),
                _needed(item.arguments, f"{where}.arguments"),
            )
            if turns and turns[-1].role == "assistant":  # calls of one answer are one turn
                before = turns.pop()
                calls = (*before.tool_calls, call)
                turns.append(Message("assistant", before.content, before.reasoning or thought, calls))
            else:
                turns.append(Message("assistant", "", thought, (call,)))
            thought = ""
        elif item.type == "function_call_output":
            turns.append(Message("tool", _text(item.output), tool_call_id=_needed(item.call_id, f"{where}.call_id")))
        else:
            role = _needed(item.role, f"{where}.role")
            if item.content is None:
                raise _missing(f"{where}.content")
            if role == "assistant":
                turns.append(Message("assistant", _text(item.content), thought))
                thought = ""
            else:
                turns.append(Message("user" if role == "user" else "system", _text(item.content)))
    return tuple(turns)


def _text(content: str | list[InputPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal for part in content)


def _needed(value: str | None, param: str) -> str:
    if value is None:
        raise _missing(param)
    return value


def response_error(error: ApiError) -> ErrorBody:
    """The body of an error, with this API's own names of the fields that every API has."""
    detail = error.body.error
    return ErrorBody(msgspec.structs.replace(detail, param=_PARAMS.get(detail.param or "", detail.param)))


def _missing(param: str) -> ApiError:
    return invalid_request(param, f"Missing required parameter: '{param}'.", code="missing_required_parameter")


def _tool_choice(request: ResponseRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    chosen, parallel = request.tool_choice, request.parallel_tool_calls is not False
    if chosen is None:
        return ToolChoice("auto" if tools else "none", parallel=parallel)
    if not tools and chosen not in ("none", "auto"):
        raise invalid_request("tool_choice", "tool_choice needs tools.")
    if isinstance(chosen, str):
        return ToolChoice(chosen if tools else "none", parallel=parallel)
    if chosen.name not in {tool.name for tool in tools}:
        raise invalid_request("tool_choice", f"No tool is named '{chosen.name}'.")
    return ToolChoice("required", chosen.name, parallel=False)


def _schema(request: ResponseRequest, limits: LimitSettings) -> str:
    form = request.text.format if request.text else None
    if isinstance(form, ObjectFormat):
        return '{"type":"object"}'
    return schema_text(form.schema, "text.format", limits) if isinstance(form, SchemaFormat) else ""
