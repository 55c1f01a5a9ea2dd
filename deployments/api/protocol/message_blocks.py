"""The messages of the messages API, and the blocks that they consist of."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cluster.settings import LimitSettings
from deployments.api.protocol.common import check_json
from deployments.common.errors import invalid_request, shortened
from deployments.common.types import Message, ToolCall, canonical


class TextBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="type"):
    """Text."""

    text: str
    citations: Any = None
    cache_control: Any = None


class ThinkingBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="thinking", tag_field="type"):
    """The thinking of an earlier answer."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="redacted_thinking", tag_field="type"
):
    """Thinking of another model, encrypted: accepted and not used."""

    data: str


class TextSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="type"):
    """A document that is a text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class ContentSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="content", tag_field="type"):
    """A document that is a text, or several."""

    content: str | list[TextBlock]

    @property
    def data(self) -> str:
        return text_of(self.content)


class DocumentBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="document", tag_field="type"):
    """A document beside the question. Only text is supported."""

    source: TextSource | ContentSource
    title: str | None = None
    context: str | None = None
    citations: Any = None
    cache_control: Any = None

    @property
    def text(self) -> str:
        """The document with its title, apart from the text around it."""
        head = "\n".join(line for line in (self.title, self.context) if line)
        return f"\n\n{head}\n{self.source.data}\n\n" if head else f"\n\n{self.source.data}\n\n"


class SearchResultBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="search_result", tag_field="type"):
    """What a search has found."""

    title: str
    source: str
    content: list[TextBlock]
    citations: Any = None
    cache_control: Any = None

    @property
    def text(self) -> str:
        return f"\n\n{self.title}\n{self.source}\n{text_of(self.content)}\n\n"


class ImageBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="image", tag_field="type"):
    """An image. No model can see it: a message with one is refused, and in a tool's result it is left out."""

    source: Any = None
    cache_control: Any = None

    @property
    def text(self) -> str:
        return "(image)"


class ToolReferenceBlock(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tool_reference", tag_field="type"
):
    """The name of a tool that a search for tools found."""

    tool_name: str
    cache_control: Any = None

    @property
    def text(self) -> str:
        return self.tool_name


class ToolUseBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tool_use", tag_field="type"):
    """A tool call of an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    caller: Any = None
    cache_control: Any = None


class ToolResultBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tool_result", tag_field="type"):
    """What a tool returned."""

    tool_use_id: str
    content: str | list[TextBlock | DocumentBlock | SearchResultBlock | ImageBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None
    cache_control: Any = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | DocumentBlock
    | SearchResultBlock
    | ImageBlock
    | ToolUseBlock
    | ToolResultBlock
)


class MessageParam(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


def messages_of(message: MessageParam, limits: LimitSettings) -> list[Message]:
    """A message in the form that all APIs share: the results of tools become messages of their own."""
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    results = [
        Message("tool", text_of(block.content), tool_call_id=block.tool_use_id)
        for block in message.content
        if isinstance(block, ToolResultBlock)
    ]
    texts = TextBlock | DocumentBlock | SearchResultBlock
    text = "".join(block.text for block in message.content if isinstance(block, texts))
    thinking = "".join(block.thinking for block in message.content if isinstance(block, ThinkingBlock))
    calls = tuple(_call(block, limits) for block in message.content if isinstance(block, ToolUseBlock))
    if results and not (text or calls):
        return results
    return [*results, Message(message.role, text, thinking, calls)]


def check_blocks(message: MessageParam, where: str, model: str) -> None:
    """Raises ApiError 400 for an image. where: the message's place in the request. model: for the error."""
    for index, block in enumerate(message.content):
        if isinstance(block, ImageBlock):
            place = f"{where}.content[{index}]"
            reason = (
                f"{place} is an image, but the model {shortened(model)} reads text only. Leave it out, or describe it."
            )
            raise invalid_request(place, reason, code="unsupported_content")


def _call(block: ToolUseBlock, limits: LimitSettings) -> ToolCall:
    check_json(block.input, "messages", limits)
    return ToolCall(block.id, block.name, canonical(block.input))


def text_of(
    content: str | Sequence[TextBlock | DocumentBlock | SearchResultBlock | ImageBlock | ToolReferenceBlock] | None,
    between: str = "",
) -> str:
    """The text of all blocks. between: separates blocks that are each complete by itself, as instructions are."""
    if content is None or isinstance(content, str):
        return content or ""
    return between.join(block.text for block in content)
