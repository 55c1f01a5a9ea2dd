"""Questions become prompts: the model's own chat template, and its tokenizer."""

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
from deployments.common.errors import ApiError, invalid_request
from deployments.common.types import GenerationRequest, Message, Tool
from deployments.generation.output_parser import END_THINK, THINK, OutputParser, Vocabulary
from deployments.generation.tool_formats import tool_format_of
from deployments.generation.tool_parser import ToolCallParser

_TEMPLATE_ERRORS = TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
"""What a template can raise on messages and arguments that it does not expect."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Token ids to complete. thinking: they end inside the thinking, as R1's template leaves them. may_think: the
    completion may open it."""

    ids: list[int]
    starts_in_thinking: bool = False
    may_think: bool = False


class PromptRenderer:
    """A model's chat template and tokenizer."""

    def __init__(self, model: ServedModel) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model.folder), local_files_only=True)
        self._backend: Tokenizer = self._tokenizer.backend_tokenizer
        self._context_tokens = model.context_tokens
        self._template = self._tokenizer.chat_template or ""
        self.vocabulary = Vocabulary(self._backend)
        self.tool_format = tool_format_of(self._template)

    @property
    def cache_subject(self) -> str:
        """What the template reads beside the question: the date, where it tells it; else nothing."""
        return datetime.date.today().isoformat() if "strftime_now" in self._template else ""

    def accepts(self, argument: str) -> bool:
        """Whether the chat template knows an argument of this name."""
        return argument in self._template

    def render(self, question: GenerationRequest) -> RenderedPrompt:
        """The prompt for a question.

        Raises ApiError 400 where the template refuses the conversation or the prompt fills the context.
        """
        if not question.messages:
            ids = self.encode(question.prompt) if isinstance(question.prompt, str) else list(question.prompt)
            return RenderedPrompt(self._fitting(ids, "prompt"))
        text = self.text(question)
        end = text.rstrip()
        may_think = self.vocabulary.thinks and not end.endswith((THINK, END_THINK))
        return RenderedPrompt(self._fitting(self.encode(text), "messages"), end.endswith(THINK), may_think)

    def text(self, question: GenerationRequest) -> str:
        """The conversation as text, by the model's own template."""
        tools = question.tools if question.tool_choice.mode != "none" else ()
        given = bool(tools) and self.accepts("tools")
        turns = (
            question.messages
            if given or not tools
            else _instructed(question.messages, self.tool_format.instruct(tools))
        )
        try:
            text: str = self._tokenizer.apply_chat_template(
                [self._message(turn) for turn in turns],
                tools=[_described(tool) for tool in tools] if given else None,
                tokenize=False,
                add_generation_prompt=True,
                **json.loads(question.template_args),
            )
        except _TEMPLATE_ERRORS as error:
            raise invalid_request("messages", f"The model's chat template refuses these messages: {error}") from None
        return text

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. special: with what the tokenizer puts around one."""
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids. special: with that of special ones."""
        return str(self._backend.decode(list(ids), skip_special_tokens=not special))

    def parser(self, question: GenerationRequest, prompt: RenderedPrompt) -> OutputParser:
        """Reads one completion of `prompt`."""
        calls = ToolCallParser(self.tool_format) if question.tools and question.tool_choice.mode != "none" else None
        thinking = prompt.starts_in_thinking if question.messages else None
        return OutputParser(self.vocabulary, thinking=thinking, stop=question.stop, calls=calls)

    def _fitting(self, ids: list[int], param: str) -> list[int]:
        if len(ids) >= self._context_tokens:
            message = (
                f"This model's context is {self._context_tokens} tokens, and the {param} alone "
                f"{'is' if param == 'prompt' else 'are'} {len(ids)}. Shorten {'it' if param == 'prompt' else 'them'}."
            )
            raise ApiError(400, message, code="context_length_exceeded", param=param)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary.size:
            raise invalid_request(param, "A token id is outside the model's vocabulary.")
        return ids

    def _message(self, turn: Message) -> dict[str, Any]:
        """A turn as the template takes it; what it knows nothing of is written into the text."""
        if turn.role == "tool" and not (self.accepts("'tool'") or self.accepts('"tool"')):
            return {"role": "user", "content": f"<tool_response>\n{turn.content}\n</tool_response>"}
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_call_id:
            message["tool_call_id"] = turn.tool_call_id
        if turn.name:
            message["name"] = turn.name
        if turn.reasoning and self.accepts("reasoning_content"):
            message["reasoning_content"] = turn.reasoning
        if turn.tool_calls and not self.accepts("tool_calls"):
            message["content"] += self.tool_format.write(turn.tool_calls)
        elif turn.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _read(call.arguments)}}
                for call in turn.tool_calls
            ]
        return message


def _instructed(turns: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    """The conversation with an instruction in its system prompt, at the end of one that is there."""
    if turns[0].role == "system":
        return (Message("system", f"{turns[0].content}\n\n{instruction}"), *turns[1:])
    return (Message("system", instruction), *turns)


def _described(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def _read(arguments: str) -> Any:
    # Templates write arguments as JSON themselves. Text that is not JSON is passed on as it is, and so is JSON that
    # no prompt can hold, such as half of a surrogate pair.
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
