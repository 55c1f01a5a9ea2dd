"""POST /v1/messages: Anthropic's API, for clients that know no other."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.chat_messages import answer_to_continue, check_continuation
from deployments.api.protocol.common import (
    Count,
    Name,
    Probability,
    check_count,
    check_json,
    check_stop,
    check_tool_name,
    sampling_for,
    schema_text,
    template_arguments,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, invalid_request
from deployments.common.types import GenerationRequest, Message, Tool, ToolCall, ToolChoice, canonical


class TextBlock(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Text."""

    text: str
    cache_control: Any = None


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking", tag_field="type"):
    """The thinking of an earlier answer."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(msgspec.Struct, frozen=True, tag="redacted_thinking", tag_field="type"):
    """Thinking of another model, encrypted: accepted and not used."""

    data: str


class TextSource(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """A document that is a text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class DocumentBlock(msgspec.Struct, frozen=True, tag="document", tag_field="type"):
    """A document beside the question. Only text is supported."""

    source: TextSource
    title: str | None = None
    context: str | None = None
    citations: Any = None
    cache_control: Any = None

    @property
    def text(self) -> str:
        """The document with its title, apart from the text around it."""
        head = "\n".join(line for line in (self.title, self.context) if line)
        return f"\n\n{head}\n{self.source.data}\n\n" if head else f"\n\n{self.source.data}\n\n"


class ToolReferenceBlock(msgspec.Struct, frozen=True, tag="tool_reference", tag_field="type"):
    """The name of a tool that a search for tools found."""

    tool_name: str
    cache_control: Any = None

    @property
    def text(self) -> str:
        return self.tool_name


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use", tag_field="type"):
    """A tool call of an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: Any = None


class ToolResultBlock(msgspec.Struct, frozen=True, tag="tool_result", tag_field="type"):
    """What a tool returned."""

    tool_use_id: str
    content: str | list[TextBlock | DocumentBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


class MessageParam(msgspec.Struct, frozen=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: (
        str | list[TextBlock | ThinkingBlock | RedactedThinkingBlock | DocumentBlock | ToolUseBlock | ToolResultBlock]
    )


class MessagesTool(msgspec.Struct, frozen=True):
    """A tool that the model may call. strict: its arguments are constrained to the schema."""

    name: Name
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Any = None


class ToolChoiceParam(msgspec.Struct, frozen=True):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOptions(msgspec.Struct, frozen=True):
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
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    @property
    def shows_thinking(self) -> bool:
        """Whether the client asks for blocks of thinking, as older clients fail on blocks that they did not ask for."""
        thinking = self.thinking
        return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"


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
    messages = [Message("system", _text(request.system))] if request.system else []
    for message in request.messages:
        messages += _messages(message, limits)
    messages, continued = answer_to_continue(messages)
    if continued and messages[-1].content[-1:].isspace():
        message = "The last message begins the answer, so its text must not end with white space. Remove that."
        raise invalid_request("messages", message)
    if not any(message.content.strip() for message in messages):
        raise invalid_request("messages", "All messages are empty; at least one needs text.", code="empty_prompt")
    tools = tuple(
        Tool(tool.name, tool.description or "", schema_text(tool.input_schema, "tools", limits), bool(tool.strict))
        for tool in request.tools or ()
    )
    off = request.thinking is not None and request.thinking.type == "disabled"
    generation = GenerationRequest(
        messages=tuple(messages),
        sampling=sampling_for(model, limits, request.max_tokens, request),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        template_args=template_arguments(None, "none" if off else None, limits),
        stop=tuple(request.stop_sequences or ()),
        max_thinking_tokens=0 if off else request.thinking.budget_tokens if request.thinking else None,
        continue_final_message=continued,
    )
    check_continuation(generation)
    return generation


def _messages(message: MessageParam, limits: LimitSettings) -> list[Message]:
    """A message in the form that all APIs share: the results of tools become messages of their own."""
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    results = [
        Message("tool", _text(block.content), tool_call_id=block.tool_use_id)
        for block in message.content
        if isinstance(block, ToolResultBlock)
    ]
    text = "".join(block.text for block in message.content if isinstance(block, TextBlock | DocumentBlock))
    thinking = "".join(block.thinking for block in message.content if isinstance(block, ThinkingBlock))
    calls = tuple(_call(block, limits) for block in message.content if isinstance(block, ToolUseBlock))
    if results and not (text or calls):
        return results
    return [*results, Message(message.role, text, thinking, calls)]


def _call(block: ToolUseBlock, limits: LimitSettings) -> ToolCall:
    check_json(block.input, "messages", limits)
    return ToolCall(block.id, block.name, canonical(block.input))


def _text(content: str | Sequence[TextBlock | DocumentBlock | ToolReferenceBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.text for block in content)


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
    error_type = types.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": error_type, "message": error.message}}
