"""POST /v1/messages: Anthropic's API, for clients that speak no other."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.chat import Count, Name
from deployments.api.protocol.common import (
    Probability,
    check_json,
    check_stop,
    sampling_for,
    schema_text,
    template_arguments,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, invalid_request, new_id
from deployments.common.types import (
    Choice,
    Delta,
    GenerationRequest,
    GenerationResult,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
    canonical,
)
from deployments.common.types import (
    Message as Message,
)


class TextBlock(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Text."""

    text: str
    cache_control: Any = None


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking", tag_field="type"):
    """An earlier thought."""

    thinking: str
    signature: str | None = None


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use", tag_field="type"):
    """A call in an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: Any = None


class ToolResultBlock(msgspec.Struct, frozen=True, tag="tool_result", tag_field="type"):
    """What a tool gave back."""

    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


class MessageParam(msgspec.Struct, frozen=True):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock]


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool that may be called."""

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
    """Whether it thinks, and how long at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None
    display: str | None = None


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
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingOptions | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


decode = msgspec.json.Decoder(MessagesRequest)


def read_messages(body: bytes, limits: LimitSettings) -> MessagesRequest:
    """The request in a body, within the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    if len(request.messages) > limits.messages:
        message = f"{len(request.messages)} messages; at most {limits.messages} are taken."
        raise invalid_request("messages", message, code="array_above_max_length")
    if len(request.tools or ()) > limits.tools:
        raise invalid_request("tools", f"At most {limits.tools} tools are taken.", code="array_above_max_length")
    check_stop(request.stop_sequences, limits, "stop_sequences")
    return request


def messages_generation(request: MessagesRequest, model: ServedModel, limits: LimitSettings) -> GenerationRequest:
    """What the request asks. Raises ApiError 400 that names the field."""
    turns = [Message("system", _text(request.system))] if request.system else []
    for message in request.messages:
        turns += _turns(message, limits)
    if not any(turn.content.strip() for turn in turns):
        raise invalid_request("messages", "The messages are empty: at least one needs text.", code="empty_prompt")
    tools = tuple(
        Tool(tool.name, tool.description or "", schema_text(tool.input_schema, "tools", limits), bool(tool.strict))
        for tool in request.tools or ()
    )
    off = request.thinking is not None and request.thinking.type == "disabled"
    return GenerationRequest(
        messages=tuple(turns),
        sampling=sampling_for(model, limits, request.max_tokens, request),
        tools=tools,
        tool_choice=_tool_choice(request, tools),
        template_args=template_arguments(None, "none" if off else None, limits),
        stop=tuple(request.stop_sequences or ()),
        max_thinking_tokens=0 if off else request.thinking.budget_tokens if request.thinking else None,
    )


def _turns(message: MessageParam, limits: LimitSettings) -> list[Message]:
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    results = [
        Message("tool", _text(part.content), tool_call_id=part.tool_use_id)
        for part in message.content
        if isinstance(part, ToolResultBlock)
    ]
    text = "".join(part.text for part in message.content if isinstance(part, TextBlock))
    thought = "".join(part.thinking for part in message.content if isinstance(part, ThinkingBlock))
    calls = tuple(
        ToolCall(part.id, part.name, _arguments(part.input, limits))
        for part in message.content
        if isinstance(part, ToolUseBlock)
    )
    rest = [Message(message.role, text, thought, calls)] if text or calls or not results else []
    return [*results, *rest]


def _arguments(given: dict[str, Any], limits: LimitSettings) -> str:
    check_json(given, "messages", limits)
    return canonical(given)


def _text(content: str | list[TextBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _tool_choice(request: MessagesRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    chosen = request.tool_choice
    if chosen is None or not tools:
        return ToolChoice("auto" if tools else "none")
    parallel = chosen.disable_parallel_tool_use is not True
    if chosen.type == "tool":
        if chosen.name not in {tool.name for tool in tools}:
            raise invalid_request("tool_choice", f"No tool is named '{chosen.name}'.")
        return ToolChoice("required", chosen.name or "", parallel=False)
    return ToolChoice("required" if chosen.type == "any" else chosen.type, parallel=parallel)


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """The body of an error in Anthropic's shape."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
    kinds |= {408: "timeout_error", 429: "rate_limit_error", 500: "api_error", 503: "overloaded_error"}
    kind = kinds.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


@dataclass(slots=True)
class MessagesWriter:
    """Says an answer in the shapes of messages."""

    request: MessagesRequest
    _id: str = field(default_factory=lambda: new_id("msg_"))
    _blocks: int = 0
    _open: str = ""

    def complete(self, answer: GenerationResult) -> dict[str, Any]:
        [choice] = answer.choices
        blocks: list[dict[str, Any]] = []
        if choice.reasoning:
            blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
        if choice.text:
            blocks.append({"type": "text", "text": choice.text})
        for call in choice.tool_calls:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
        return self._message(blocks, _stop_reason(choice), answer.usage)

    def start(self) -> bytes:
        return _event("message_start", message=self._message([], None, Usage(0, 0, 0, 0)))

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning:
            block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            events += self._more("thinking", block, {"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            events += self._more("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": delta.text})
        for tool in delta.tool_calls:
            if tool.id:
                events += self._close()
            block = {"type": "tool_use", "id": tool.id, "name": tool.name, "input": {}}
            events += self._more("tool_use", block, {"type": "input_json_delta", "partial_json": tool.arguments})
        return events

    def end(self, answer: GenerationResult) -> bytes:
        [choice] = answer.choices
        told = {"stop_reason": _stop_reason(choice), "stop_sequence": None}
        usage = _usage(answer.usage)
        return self._close() + _event("message_delta", delta=told, usage=usage) + _event("message_stop")

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode(anthropic_error(error)) + b"\n\n"

    def _more(self, kind: str, block: dict[str, Any], delta: dict[str, Any]) -> bytes:
        events = b""
        if self._open != kind:
            events += self._close() + _event("content_block_start", index=self._blocks, content_block=block)
            self._open = kind
        return events + _event("content_block_delta", index=self._blocks, delta=delta)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        self._blocks += 1
        return _event("content_block_stop", index=self._blocks - 1)

    def _message(self, blocks: list[dict[str, Any]], stop: str | None, usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.request.model,
            "content": blocks,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": _usage(usage),
        }


def _stop_reason(choice: Choice) -> str:
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(choice.finish_reason, "end_turn")


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _input(arguments: str) -> msgspec.Raw:
    """A call's arguments as they are, or an empty object where the model's text is not JSON."""
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.Raw("{}")
    return msgspec.Raw(arguments)


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"
