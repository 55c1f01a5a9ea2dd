"""A request's messages and tools as a chat template takes them. What a template cannot show is written into texts."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from deployments.common.types import GenerationRequest, Message, Tool, ToolCall
from deployments.generation.control_tokens import END_THINK, THINK, Guard
from deployments.generation.template_features import CallFeatures, TemplateFeatures
from deployments.generation.tool_formats import ToolFormat

_USUAL_CALLS = CallFeatures(as_objects=True, null_content=False, several=True, beside_text=True)


class Conversation:
    """Knows what a model's chat templates can show."""

    def __init__(self, templates: Sequence[str], tool_format: ToolFormat, features: TemplateFeatures | None) -> None:
        """templates: their sources. features: None where they could not be found out: the sources decide then."""
        self._templates = templates
        self._format = tool_format
        if features is not None:
            self._tools, self._results, self._calls = features.tools, features.results, features.calls
            self._system, self._several_systems = features.system, features.several_systems
        else:
            self._tools = self._mentions("tools")
            self._results = self._mentions("'tool'") or self._mentions('"tool"')
            self._calls = _USUAL_CALLS if self._mentions("tool_calls") else None
            self._system = self._several_systems = True

    def parts(
        self, request: GenerationRequest, guard: Guard
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages and tools, all texts of the client marked. Raises MarkInUse."""
        tools = request.tools if request.tool_choice.mode != "none" else ()
        messages = [_marked(self._with_reasoning(message), guard) for message in request.messages]
        instruction = ""
        if tools and not self._tools:
            instruction = self._format.instruct([_marked_tool(tool, guard) for tool in tools])
        written = [self._message(message, guard) for message in self._with_system(messages, instruction)]
        shown = [_function(tool, guard) for tool in tools] if tools and self._tools else None
        return written, shown

    def _mentions(self, text: str) -> bool:
        return any(text in template for template in self._templates)

    def _with_system(self, messages: list[Message], instruction: str) -> list[Message]:
        """The messages with an instruction at the end of the system prompt, or as one if there is none."""
        systems = [message for message in messages if message.role == "system"]
        if (len(systems) > 1 and not self._several_systems) or (systems and not self._system):
            text = "\n\n".join(message.content for message in systems)
            messages = [Message("system", text), *(message for message in messages if message.role != "system")]
        if instruction and messages[0].role == "system":
            messages = [Message("system", f"{messages[0].content}\n\n{instruction}"), *messages[1:]]
        elif instruction:
            messages = [Message("system", instruction), *messages]
        if self._system or messages[0].role != "system":
            return messages
        first = messages[1] if len(messages) > 1 else Message("user", "")
        if first.role != "user":
            return [Message("user", messages[0].content), *messages[1:]]
        return [Message("user", f"{messages[0].content}\n\n{first.content}", name=first.name), *messages[2:]]

    def _with_reasoning(self, message: Message) -> Message:
        """An answer that clients sent back with its thinking in it, taken apart as Qwen3's template does it."""
        if message.role != "assistant" or message.reasoning or not self._mentions("reasoning_content"):
            return message
        if END_THINK not in message.content:
            return message
        before, after = message.content.split(END_THINK)[0], message.content.split(END_THINK)[-1]
        reasoning = before.rstrip("\n").split(THINK)[-1].lstrip("\n")
        return msgspec.structs.replace(message, content=after.lstrip("\n"), reasoning=reasoning)

    def _message(self, message: Message, guard: Guard) -> dict[str, Any]:
        if message.role == "tool" and not self._results:
            return {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"}
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_call_id:
            fields["tool_call_id"] = message.tool_call_id
        if message.name:
            fields["name"] = message.name
        if message.reasoning and self._mentions("reasoning_content"):
            fields["reasoning_content"] = message.reasoning
        if calls := self._shown_calls(message):
            shown = message.content if calls.beside_text or _visible(message) else ""
            fields["content"] = shown or (None if calls.null_content else "")
            fields["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _arguments(call.arguments, calls, guard)},
                }
                for call in message.tool_calls
            ]
        elif message.tool_calls:
            fields["content"] += self._format.write(
                msgspec.structs.replace(call, arguments=guard.text(call.arguments) or "{}")
                for call in message.tool_calls
            )
        return fields

    def _shown_calls(self, message: Message) -> CallFeatures | None:
        """How the template shows the calls of this message. None: it would show less than all of it, or there are
        none."""
        calls = self._calls
        if calls is None or not message.tool_calls:
            return None
        whole = (calls.several or len(message.tool_calls) == 1) and (calls.beside_text or not _visible(message))
        return calls if whole else None


def _visible(message: Message) -> bool:
    """Whether it has text beside its thinking, which templates drop."""
    return bool(message.content.rpartition(END_THINK)[2].strip())


def _marked(message: Message, guard: Guard) -> Message:
    """The message with marked texts. A call's arguments are marked once it is known how they are passed."""
    return Message(
        message.role,
        guard.text(message.content),
        guard.text(message.reasoning),
        tuple(ToolCall(guard.text(call.id), guard.text(call.name), call.arguments) for call in message.tool_calls),
        guard.text(message.tool_call_id),
        guard.text(message.name),
    )


def _marked_tool(tool: Tool, guard: Guard) -> Tool:
    return Tool(guard.text(tool.name), guard.text(tool.description), guard.text(tool.parameters))


def _function(tool: Tool, guard: Guard) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": guard.value(function)}


def _arguments(text: str, calls: CallFeatures, guard: Guard) -> Any:
    """A call's arguments for the template: JSON text or the value that it stands for.

    Text that is not JSON is passed as it is, and so is JSON that no prompt can contain, such as half of a surrogate
    pair. No text at all is a call without arguments.
    """
    if not calls.as_objects:
        return guard.text(text)
    try:
        return guard.value(msgspec.json.decode(text) if text.strip() else {})
    except (msgspec.DecodeError, RecursionError):
        return guard.text(text)
