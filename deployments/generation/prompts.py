"""Renders requests to prompts, with the model's own chat template and tokenizer."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cluster.models.folder import ServedModel
from deployments.common.errors import ApiError, invalid_request, shortened
from deployments.common.text_encoder import TextEncoder
from deployments.common.types import GenerationRequest, Message, Tool
from deployments.generation.chat_template import ChatTemplate
from deployments.generation.output_parser import END_THINK, THINK, OutputParser, Vocabulary
from deployments.generation.tool_formats import tool_format_of
from deployments.generation.tool_parser import ToolCallParser

_TEMPLATE_ERRORS = TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
"""What a template can raise on messages and arguments that it does not expect."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as token ids.

    starts_in_thinking: the prompt ends with an open <think>, as R1's template writes it. may_think: the completion may
    open it.
    """

    ids: list[int]
    starts_in_thinking: bool = False
    may_think: bool = False


class PromptRenderer:
    """A model's chat template and tokenizer."""

    def __init__(self, model: ServedModel) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            str(model.folder),
            local_files_only=True,
            trust_remote_code=False,  # unset, transformers asks on the terminal
        )
        self._backend: Tokenizer = self._tokenizer.backend_tokenizer
        self._context_tokens = model.context_tokens
        self._encoder = TextEncoder(self._backend, model.context_tokens)
        self._template = self._tokenizer.chat_template or ""
        self._compiled: dict[str, ChatTemplate] = {}
        self.vocabulary = Vocabulary(self._backend)
        self.tool_format = tool_format_of(self._template)

    @property
    def cache_subject(self) -> str:
        """What prompts depend on beside the request: today's date if the template uses it, else nothing."""
        return datetime.date.today().isoformat() if "strftime_now" in self._template else ""

    def accepts(self, argument: str) -> bool:
        """Whether the chat template mentions this argument."""
        return argument in self._template

    def characters(self, request: GenerationRequest) -> int:
        """Characters of all that may become text of the prompt; of token ids, how many there are.

        Raises ApiError 400 where they cannot fit the context, before anything is rendered.
        """
        tools = request.tools if request.tool_choice.mode != "none" else ()
        tool_characters = sum(len(tool.name) + len(tool.description) + len(tool.parameters) for tool in tools)
        if isinstance(request.prompt, tuple):
            self.check_ids(request.prompt, "prompt")
        elif not request.messages:
            self._encoder.check_characters(len(request.prompt), "prompt")
        # Templates drop the thinking of earlier answers.
        shown = sum(len(message.content.rpartition(END_THINK)[2]) for message in request.messages)
        self._encoder.check_characters(shown + tool_characters, "messages")
        written = sum(map(_characters, request.messages))
        return written + tool_characters + len(request.prompt) + len(request.template_args)

    def render(self, request: GenerationRequest) -> RenderedPrompt:
        """The prompt for a request.

        Raises ApiError 400 for messages that the chat template rejects, and a prompt that does not fit the context.
        """
        if not request.messages:
            ids = self.encode(request.prompt) if isinstance(request.prompt, str) else list(request.prompt)
            self.check_ids(ids, "prompt")
            return RenderedPrompt(ids)
        text = self.text(request)
        end = text.rstrip()
        may_think = self.vocabulary.thinks and not end.endswith((THINK, END_THINK))
        self._encoder.check_characters(len(text), "messages")
        ids = self.encode(text)
        self.check_ids(ids, "messages")
        return RenderedPrompt(ids, end.endswith(THINK), may_think)

    def text(self, request: GenerationRequest) -> str:
        """The request's messages and tools as text, by the chat template. Raises ApiError 400 if it rejects them."""
        tools = request.tools if request.tool_choice.mode != "none" else ()
        messages, template_tools = request.messages, None
        if tools and self.accepts("tools"):
            template_tools = [_function(tool) for tool in tools]
        elif tools:
            messages = _with_instruction(messages, self.tool_format.instruct(tools))
        try:
            text = self._chat_template(template_tools).render(
                **{**self._tokenizer.special_tokens_map, **json.loads(request.template_args)},
                messages=[self._message(message) for message in messages],
                tools=template_tools,
                documents=None,
                add_generation_prompt=True,
            )
        except _TEMPLATE_ERRORS as error:
            raise invalid_request(
                "messages", f"The model's chat template rejects these messages: {shortened(str(error), 300)}"
            ) from None
        return text

    def _chat_template(self, tools: list[dict[str, Any]] | None) -> ChatTemplate:
        """The model's template; some have another one for tools. Raises ValueError where it has none."""
        source: str = self._tokenizer.get_chat_template(tools=tools)
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source)
        return self._compiled[source]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. special: with the tokens that the tokenizer adds around a text."""
        [ids] = self._encoder.encode([text], special=special)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids. special: with the texts of special tokens."""
        # `decode` holds the GIL until it ends, `decode_batch` does not (tokenizers 0.22).
        [text] = self._backend.decode_batch([list(ids)], skip_special_tokens=not special)
        return str(text)

    def parser(self, request: GenerationRequest, prompt: RenderedPrompt) -> OutputParser:
        """A parser for one completion of the request's prompt."""
        calls = ToolCallParser(self.tool_format) if request.tools and request.tool_choice.mode != "none" else None
        thinking = prompt.starts_in_thinking if request.messages else None
        return OutputParser(self.vocabulary, thinking=thinking, stop=request.stop, calls=calls)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError 400 for a prompt that does not fit the context, and for ids that no token has."""
        if len(ids) >= self._context_tokens:
            message = (
                f"The prompt has {len(ids)} tokens, which leaves no room in this model's context of "
                f"{self._context_tokens}. Send a shorter one."
            )
            raise ApiError(400, message, code="context_length_exceeded", param=param)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary.size:
            raise invalid_request(param, "A token id is outside the model's vocabulary.")

    def _message(self, message: Message) -> dict[str, Any]:
        """A message as the chat template expects it. What the template does not support is written into the text."""
        if message.role == "tool" and not (self.accepts("'tool'") or self.accepts('"tool"')):
            return {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"}
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_call_id:
            fields["tool_call_id"] = message.tool_call_id
        if message.name:
            fields["name"] = message.name
        if message.reasoning and self.accepts("reasoning_content"):
            fields["reasoning_content"] = message.reasoning
        if message.tool_calls and not self.accepts("tool_calls"):
            fields["content"] += self.tool_format.write(message.tool_calls)
        elif message.tool_calls:
            fields["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _json(call.arguments)}}
                for call in message.tool_calls
            ]
        return fields


def _characters(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls + len(message.name) + len(message.tool_call_id)


def _with_instruction(messages: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    """The messages with an instruction at the end of the system prompt, or as one if there is none."""
    if messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{instruction}"), *messages[1:])
    return (Message("system", instruction), *messages)


def _function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def _json(arguments: str) -> Any:
    # Templates write arguments as JSON themselves. Text that is not JSON is passed as it is, and so is JSON that no
    # prompt can contain, such as half of a surrogate pair.
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
