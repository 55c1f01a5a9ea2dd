"""The messages of a chat completions request, in OpenAI's shapes and with DeepSeek's `reasoning_content`."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from deployments.common.errors import invalid_request
from deployments.common.types import GenerationRequest, Message, ToolCall


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="type"):
    """A part of a message. Only text is supported."""

    text: str


class RefusalPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refusal", tag_field="type"):
    """A part of an earlier answer in which the model refused."""

    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Content = str | list[TextPart]


class FunctionCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that an answer calls. arguments: JSON text."""

    name: str
    arguments: str


class ToolCallParam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call of an answer."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class SystemMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="system", tag_field="role"):
    """Instructions."""

    content: Content
    name: str | None = None

    def to_message(self) -> Message:
        return Message("system", text_of(self.content), name=self.name or "")


class DeveloperMessage(SystemMessage, frozen=True, forbid_unknown_fields=True, tag="developer"):
    """Instructions, by OpenAI's newer name."""


class UserMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="user", tag_field="role"):
    """A message of the user."""

    content: Content
    name: str | None = None

    def to_message(self) -> Message:
        return Message("user", text_of(self.content), name=self.name or "")


class AssistantMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="assistant", tag_field="role"):
    """An earlier answer. Its thinking is accepted; most chat templates drop it."""

    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: None = None
    function_call: None = None

    def to_message(self) -> Message:
        return Message(
            "assistant",
            text_of(self.content) or self.refusal or "",
            self.reasoning_content or self.reasoning or "",
            tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ()),
            name=self.name or "",
        )


class ToolMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tool", tag_field="role"):
    """What a tool returned."""

    content: Content
    tool_call_id: str

    def to_message(self) -> Message:
        return Message("tool", text_of(self.content), tool_call_id=self.tool_call_id)


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


def answer_to_continue(messages: list[Message]) -> tuple[list[Message], bool]:
    """The messages, and whether the last one is an answer that is to be continued. An empty one is left out.

    Raises ApiError 400 for an answer that is over, as it calls tools.
    """
    last = messages[-1]
    if last.role != "assistant":
        return messages, False
    if last.tool_calls:
        message = "The last message calls tools, so it cannot be continued. Send the results of the calls after it."
        raise invalid_request("messages", message)
    return (messages, True) if last.content else (messages[:-1], False)


def check_continuation(request: GenerationRequest) -> None:
    """Raises ApiError 400 if the answer continues a message and must also be JSON or calls of tools: what a grammar
    constrains begins at the answer's start."""
    if not request.continue_final_message:
        return
    if request.schema or request.constraint is not None:
        raise invalid_request("response_format", "An answer in a format cannot continue the last message.")
    if request.tool_choice.mode == "required":
        raise invalid_request("tool_choice", "An answer that must call tools cannot continue the last message.")


def text_of(content: str | Sequence[TextPart | RefusalPart] | None) -> str:
    """The text of a message's content, all parts joined."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)
