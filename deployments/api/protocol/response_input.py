"""The input items of the Responses API, and the conversation that they add up to."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from cluster.settings import LimitSettings
from deployments.api.protocol.common import check_json
from deployments.api.protocol.parsing import OfManyTypes
from deployments.api.protocol.response_tools import ResponseTool
from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.types import Message, ToolCall, canonical

_TEXTS = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"})
"""Types of parts that are text."""
_CLIENTS_CALLS = frozenset(
    {"function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call", "computer_call"}
    | {"tool_search_call"}
)
"""Types of calls that the client has run, whose results are items of their own."""
_DESCRIBED = ("message", "function_call", "function_call_output", "reasoning")
"""Types of items all of whose fields are known. Of others the conversation shows what it can."""
_OUTPUT = "_output"

T = TypeVar("T")


class InputPart(OfManyTypes, frozen=True, forbid_unknown_fields=True):
    """A part of a message, of earlier thinking, or of a tool's result. Only text is supported."""

    type: str
    text: str = ""
    refusal: str = ""
    # Of earlier answers; accepted without effect.
    annotations: Any = None
    logprobs: Any = None

    @staticmethod
    def has_own_fields(kind: str | None) -> bool:
        return kind not in _TEXTS


class InputItem(OfManyTypes, frozen=True, forbid_unknown_fields=True):
    """A message, a call, its output, or earlier thinking. The type determines which fields are required.

    Items of other types, such as those of tools that only OpenAI runs, are left out. input, action, operation: what
    calls have that are not functions. tools: those that an item adds.
    """

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | dict[str, Any] | None = None
    input: Any = None
    action: Any = None
    operation: Any = None
    output: Any = None
    error: Any = None
    tools: list[ResponseTool] | None = None
    # Of earlier answers; accepted without effect.
    status: Any = None
    phase: Any = None
    caller: Any = None
    encrypted_content: Any = None

    @staticmethod
    def has_own_fields(kind: str | None) -> bool:
        return (kind or "message") not in _DESCRIBED

    @property
    def is_used(self) -> bool:
        """Whether the conversation shows it."""
        kinds = {"message", "agent_message", "additional_tools", "reasoning", "mcp_call"} | _CLIENTS_CALLS
        return self.type in kinds or (self.type.endswith(_OUTPUT) and bool(self.call_id or self.id))


def conversation_of(
    items: Iterable[InputItem], names: Mapping[tuple[str, str], str], model: str, limits: LimitSettings
) -> list[Message]:
    """The conversation in these items.

    names: those of functions in the prompt, by namespace and name. model: for errors.
    Raises ApiError 400 for what is missing or nested too deeply, and for a message with more than text.
    """
    messages: list[Message] = []
    thinking = ""
    for index, item in enumerate(items):
        where = f"input[{index}]"
        check_json([item.arguments, item.input, item.action, item.operation, item.output, item.error], where, limits)
        if item.type == "message":
            messages.append(_message(item, where, thinking, model))
            thinking = "" if item.role == "assistant" else thinking
        elif item.type == "agent_message":  # of another agent
            messages.append(Message("user", _text(item.content)))
        elif item.type == "reasoning":
            thinking = _text(item.content) or _text(item.summary)
        elif item.type in _CLIENTS_CALLS or item.type == "mcp_call":
            _add_call(messages, _call(item, where, names), thinking)
            thinking = ""
            if item.type == "mcp_call":  # which has its result
                messages.append(Message("tool", _shown(item.output or item.error), tool_call_id=item.id or where))
        elif item.type.endswith(_OUTPUT) and item.is_used:
            shown = _shown(item.output) or ", ".join(tool.name or tool.type for tool in item.tools or ())
            messages.append(Message("tool", shown, tool_call_id=item.call_id or item.id or ""))
    return messages


def _call(item: InputItem, where: str, names: Mapping[tuple[str, str], str]) -> ToolCall:
    call_id = item.call_id or item.id or where
    if item.type == "function_call":
        _required(item.call_id, f"{where}.call_id")
        _required(item.arguments, f"{where}.arguments")
        _required(item.name, f"{where}.name")
    name = item.name or item.type.removesuffix("_call")
    name = names.get((item.namespace or "", name), name)
    if isinstance(item.arguments, str):
        return ToolCall(call_id, name, item.arguments)
    others = {"input": item.input, "action": item.action, "operation": item.operation}
    return ToolCall(call_id, name, canonical(item.arguments or {key: value for key, value in others.items() if value}))


def _add_call(messages: list[Message], call: ToolCall, thinking: str) -> None:
    """Adds a call to the answer that precedes it, or as a new answer."""
    if messages and messages[-1].role == "assistant":
        answer = messages.pop()
        calls = (*answer.tool_calls, call)
        messages.append(Message("assistant", answer.content, answer.reasoning or thinking, calls))
    else:
        messages.append(Message("assistant", "", thinking, (call,)))


def _message(item: InputItem, where: str, thinking: str, model: str) -> Message:
    role = _required(item.role, f"{where}.role")
    if (content := item.content) is None:
        raise _missing(f"{where}.content")
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if part.type not in _TEXTS:
            place, kind = f"{where}.content[{index}]", shortened(part.type)
            message = (
                f"{place} is of type {kind}, but the model {shortened(model)} reads text only. Leave it out, or "
                "describe it."
            )
            raise invalid_request(place, message, code="unsupported_content")
    if role == "assistant":
        return Message("assistant", _text(content), thinking)
    # Agents write instructions in several parts, each complete by itself.
    return Message("user", _text(content)) if role == "user" else Message("system", _text(content, "\n\n"))


def _shown(output: Any) -> str:
    """A tool's result as text: its texts, and the types of what is none."""
    if output is None or isinstance(output, str):
        return output or ""
    if not (isinstance(output, list) and all(isinstance(part, dict) and "type" in part for part in output)):
        return canonical(output)
    texts = [part.get("text") if part["type"] in _TEXTS else f"({shortened(str(part['type']))})" for part in output]
    return "".join(map(str, texts))


def _text(content: str | list[InputPart] | None, between: str = "") -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return between.join(part.text or part.refusal for part in content if part.type in _TEXTS)


def _required(value: T | None, param: str) -> T:
    if value is None:
        raise _missing(param)
    return value


def _missing(param: str) -> ApiError:
    return invalid_request(param, f"Missing required parameter: '{param}'.", code="missing_required_parameter")
