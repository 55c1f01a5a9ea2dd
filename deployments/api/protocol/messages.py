"""POST /v1/messages: Anthropic's API, for clients that know no other."""

from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.chat_messages import answer_to_continue, check_continuation
from deployments.api.protocol.common import (
    Count,
    Effort,
    Probability,
    check_count,
    check_stop,
    check_tool_name,
    sampling_for,
    schema_text,
    template_arguments,
    thinking_limit,
)
from deployments.api.protocol.message_blocks import MessageParam, TextBlock, check_blocks, messages_of, text_of
from deployments.api.protocol.parsing import OfManyTypes, parse
from deployments.common.errors import ApiError, PromptTooLong, invalid_request
from deployments.common.types import GenerationRequest, Message, Tool, ToolChoice

ToolName = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
"""Twice as long as OpenAI's: agents put the names of servers in front."""
_CUSTOM = (None, "custom")
"""Types of tools that the client describes."""


class MessagesTool(OfManyTypes, frozen=True, forbid_unknown_fields=True):
    """A tool that the model may call. strict: its arguments are constrained to the schema. Tools of other types than
    `custom` are those that only Anthropic describes or runs, and are left out."""

    name: ToolName | None = None
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    # Accepted without effect.
    cache_control: Any = None
    eager_input_streaming: bool | None = None
    input_examples: list[dict[str, Any]] | None = None

    @staticmethod
    def has_own_fields(kind: str | None) -> bool:
        return kind not in _CUSTOM


class OutputFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer's format, and how much the model may think."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class ToolChoiceParam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the model thinks. budget_tokens: maximum thinking tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class MessagesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages."""

    model: str
    messages: Annotated[list[MessageParam], msgspec.Meta(min_length=1)]
    max_tokens: Count
    system: str | list[TextBlock] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    # Accepted without effect on the answer.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None
    container: str | dict[str, Any] | None = None
    inference_geo: str | None = None
    speed: str | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Tools that cannot be called here and are left out, by their types."""
        return tuple(dict.fromkeys(f"tools.{tool.type}" for tool in self.tools or () if not _is_custom(tool)))

    @property
    def asks_thinking(self) -> bool:
        """Whether the client asks for thinking."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def shows_thinking(self) -> bool:
        """Whether the client asks for blocks of thinking, as older clients fail on blocks that they did not ask for."""
        return self.asks_thinking and self.thinking is not None and self.thinking.display != "omitted"


class MessagesCountRequest(MessagesRequest, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages/count_tokens: that of a message, in which max_tokens may be missing."""

    max_tokens: Count = 1


class MessagesCount(msgspec.Struct, frozen=True):
    """input_tokens: tokens of the prompt."""

    input_tokens: int


decode = msgspec.json.Decoder(MessagesRequest)
decode_count = msgspec.json.Decoder(MessagesCountRequest)


def read_messages(body: bytes, limits: LimitSettings) -> MessagesRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    return _checked(parse(decode, body), limits)


def read_messages_count(body: bytes, limits: LimitSettings) -> MessagesRequest:
    """The same for a body whose tokens are counted."""
    return _checked(parse(decode_count, body), limits)


def _checked(request: MessagesRequest, limits: LimitSettings) -> MessagesRequest:
    check_count(len(request.messages), limits.messages, "messages")
    check_count(len(request.tools or ()), limits.tools, "tools")
    check_stop(request.stop_sequences, limits, "stop_sequences")
    return request


def messages_generation(request: MessagesRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """The request in the form that all APIs share. Raises ApiError 400 that names the field."""
    messages = [Message("system", text_of(request.system, "\n\n"))] if request.system else []
    for index, message in enumerate(request.messages):
        check_blocks(message, f"messages[{index}]", request.model)
        messages += messages_of(message, limits)
    messages, continued = answer_to_continue(messages)
    if continued and messages[-1].content[-1:].isspace():
        reason = "The last message begins the answer, so its text must not end with white space. Remove that."
        raise invalid_request("messages", reason)
    if not any(message.content.strip() for message in messages):
        raise invalid_request("messages", "All messages are empty; at least one needs text.", code="empty_prompt")
    tools = tuple(_tool(tool, limits) for tool in request.tools or () if _is_custom(tool))
    config = request.output_config or OutputConfig()
    answer_format = config.format or request.output_format
    off = request.thinking is not None and request.thinking.type == "disabled"
    budget = request.thinking.budget_tokens if request.thinking and not off else None
    generation = GenerationRequest(
        messages=tuple(messages),
        sampling=sampling_for(model, limits, request.max_tokens, request),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        schema=schema_text(answer_format.schema, "output_config.format", limits) if answer_format else "",
        template_args=template_arguments(None, "none" if off else config.effort, limits),
        stop=tuple(request.stop_sequences or ()),
        max_thinking_tokens=thinking_limit("none" if off else config.effort, budget),
        continue_final_message=continued,
    )
    check_continuation(generation)
    return generation


def _is_custom(tool: MessagesTool) -> bool:
    return tool.type in _CUSTOM


def _tool(tool: MessagesTool, limits: LimitSettings) -> Tool:
    if tool.name is None or tool.input_schema is None:
        message = "A tool needs a name and an input_schema."
        raise invalid_request("tools", message, code="missing_required_parameter")
    return Tool(tool.name, tool.description or "", schema_text(tool.input_schema, "tools", limits), bool(tool.strict))


def _tool_choice(request: MessagesRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    choice = request.tool_choice
    if choice is None or not tools:
        return ToolChoice("auto" if tools else "none")
    parallel = choice.disable_parallel_tool_use is not True
    if choice.type == "tool":
        check_tool_name(choice.name, tools)
        return ToolChoice("required", choice.name or "", parallel=False)
    return ToolChoice("required" if choice.type == "any" else choice.type, parallel=parallel)


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """The body of an error in Anthropic's shape."""
    types = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
    types |= {408: "timeout_error", 429: "rate_limit_error", 500: "api_error", 503: "overloaded_error"}
    error_type, message = types.get(error.status, "invalid_request_error"), error.message
    if isinstance(error, PromptTooLong):
        # As Anthropic says it: agents find these words and numbers, and shorten their conversation.
        message = f"prompt is too long: {error.tokens} tokens > {error.context_tokens - 1} maximum. {message}"
    return {"type": "error", "error": {"type": error_type, "message": message}}
