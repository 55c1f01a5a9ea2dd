"""POST /v1/responses: OpenAI's newer API, without stored responses: every request has its whole conversation."""

from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.answer_format import JsonObjectFormat, TextFormat
from deployments.api.protocol.common import (
    Count,
    Effort,
    Name,
    Probability,
    TopLogprobs,
    check_count,
    check_tool_name,
    sampling_for,
    schema_text,
    template_arguments,
    thinking_limit,
    with_logprobs,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, ErrorBody, invalid_request
from deployments.common.types import GenerationRequest, Message, Tool, ToolCall, ToolChoice


class InputPart(msgspec.Struct, frozen=True):
    """A part of a message or of earlier thinking. Only text is supported."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str = ""
    refusal: str = ""


class InputItem(msgspec.Struct, frozen=True):
    """A message, a function call, its output, or earlier thinking. The type determines which fields are required."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(msgspec.Struct, frozen=True, tag="function", tag_field="type"):
    """A function that the model may call. strict: its arguments are constrained to the parameters' schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(msgspec.Struct, frozen=True):
    """The function that must be called."""

    name: str
    type: Literal["function"] = "function"


class ResponseSchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON that a schema allows. strict: a schema that cannot be enforced as a whole is refused."""

    name: Name
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    """The answer's format."""

    format: TextFormat | JsonObjectFormat | ResponseSchemaFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True):
    """How much the model may think. Responses have the thinking itself, and no summaries."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/responses. Unknown fields are refused by name."""

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
    include: list[str] | None = None
    top_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    # Accepted without effect.
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    max_tool_calls: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Not supported: accepted only with the value that requests nothing.
    background: Literal[False] | None = None
    conversation: None = None
    previous_response_id: str | None = None
    prompt: None = None

    @property
    def reported_logprobs(self) -> int | None:
        """How many alternatives to report for each token; None: no log probabilities."""
        if self.top_logprobs or _LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        return None


decode = msgspec.json.Decoder(ResponseRequest)
_LOGPROBS = "message.output_text.logprobs"
"""What `include` lists for log probabilities; anything else in it has no effect."""
_PARAMS = {"messages": "input", "response_format": "text.format"}
"""This API's names of fields, by those that errors of the shared parts have."""


def read_response(body: bytes, limits: LimitSettings) -> ResponseRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    if request.previous_response_id is not None:
        raise invalid_request(
            "previous_response_id",
            "Responses are not stored here; send the whole conversation as input.",
            code="unsupported_parameter",
        )
    if not isinstance(request.input, str):
        check_count(len(request.input), limits.messages, "input")
    check_count(len(request.tools or ()), limits.tools, "tools")
    return request


def response_generation(request: ResponseRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """The request in the form that all APIs share. Raises ApiError 400 that names the field."""
    messages = _messages(request)
    if not any(message.content.strip() for message in messages):
        raise invalid_request("input", "The input is empty; it needs text.", code="empty_prompt")
    tools = tuple(_tool(tool, limits) for tool in request.tools or ())
    effort = request.reasoning.effort if request.reasoning else None
    answer_format = request.text.format if request.text else None
    return GenerationRequest(
        messages=messages,
        sampling=with_logprobs(
            sampling_for(model, limits, request.max_output_tokens, request), request.reported_logprobs
        ),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        schema=_schema(request, limits),
        template_args=template_arguments(None, effort, limits),
        max_thinking_tokens=thinking_limit(effort, None),
        strict_schema=isinstance(answer_format, ResponseSchemaFormat) and answer_format.strict is True,
    )


def response_error(error: ApiError) -> ErrorBody:
    """The body of an error, with this API's names of fields."""
    detail = error.body.error
    return ErrorBody(msgspec.structs.replace(detail, param=_PARAMS.get(detail.param or "", detail.param)))


def _messages(request: ResponseRequest) -> tuple[Message, ...]:
    messages = [Message("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return (*messages, Message("user", request.input))
    thinking = ""
    for index, item in enumerate(request.input):
        where = f"input[{index}]"
        if item.type == "reasoning":
            thinking = _text(item.content)
        elif item.type == "function_call":
            _add_call(messages, _call(item, where), thinking)
            thinking = ""
        elif item.type == "function_call_output":
            call_id = _required(item.call_id, f"{where}.call_id")
            messages.append(Message("tool", _text(item.output), tool_call_id=call_id))
        else:
            messages.append(_message(item, where, thinking))
            if item.role == "assistant":
                thinking = ""
    return tuple(messages)


def _call(item: InputItem, where: str) -> ToolCall:
    return ToolCall(
        _required(item.call_id, f"{where}.call_id"),
        _required(item.name, f"{where}.name"),
        _required(item.arguments, f"{where}.arguments"),
    )


def _add_call(messages: list[Message], call: ToolCall, thinking: str) -> None:
    """Adds a call to the answer that precedes it, or as a new answer."""
    if messages and messages[-1].role == "assistant":
        answer = messages.pop()
        calls = (*answer.tool_calls, call)
        messages.append(Message("assistant", answer.content, answer.reasoning or thinking, calls))
    else:
        messages.append(Message("assistant", "", thinking, (call,)))


def _message(item: InputItem, where: str, thinking: str) -> Message:
    role = _required(item.role, f"{where}.role")
    if item.content is None:
        raise _missing(f"{where}.content")
    if role == "assistant":
        return Message("assistant", _text(item.content), thinking)
    return Message("user" if role == "user" else "system", _text(item.content))


def _text(content: str | list[InputPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal for part in content)


def _required(value: str | None, param: str) -> str:
    if value is None:
        raise _missing(param)
    return value


def _missing(param: str) -> ApiError:
    return invalid_request(param, f"Missing required parameter: '{param}'.", code="missing_required_parameter")


def _tool(tool: FunctionTool, limits: LimitSettings) -> Tool:
    parameters = schema_text(tool.parameters or {"type": "object", "properties": {}}, "tools", limits)
    # OpenAI's default here is strict; but a schema that no grammar can enforce is refused then, so it must be explicit.
    return Tool(tool.name, tool.description or "", parameters, tool.strict is True)


def _tool_choice(request: ResponseRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    choice, parallel = request.tool_choice, request.parallel_tool_calls is not False
    if choice is None:
        return ToolChoice("auto" if tools else "none", parallel=parallel)
    if not tools and choice not in ("none", "auto"):
        raise invalid_request("tool_choice", "tool_choice requires tools.")
    if isinstance(choice, str):
        return ToolChoice(choice if tools else "none", parallel=parallel)
    check_tool_name(choice.name, tools)
    return ToolChoice("required", choice.name, parallel=False)


def _schema(request: ResponseRequest, limits: LimitSettings) -> str:
    answer_format = request.text.format if request.text else None
    if isinstance(answer_format, JsonObjectFormat):
        return schema_text(answer_format.schema or {"type": "object"}, "text.format", limits)
    if isinstance(answer_format, ResponseSchemaFormat):
        return schema_text(answer_format.schema, "text.format", limits)
    return ""
