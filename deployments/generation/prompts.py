"""Renders requests to prompts, with the model's own chat template and tokenizer."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from cluster.models.folder import ServedModel
from cluster.models.tokenizer_files import TokenizerConfig, load_tokenizer
from deployments.common.errors import PromptTooLong, invalid_request, shortened
from deployments.common.text_encoder import TextEncoder
from deployments.common.types import GenerationRequest, Message
from deployments.generation.chat_template import MARKS, ChatTemplate
from deployments.generation.control_tokens import END_THINK, THINK, ControlTokens, Guard, GuardedPrompt, MarkInUse
from deployments.generation.conversation import Conversation
from deployments.generation.output_parser import OutputParser, Vocabulary
from deployments.generation.template_features import TEMPLATE_ERRORS, features_of
from deployments.generation.tool_formats import tool_format_of
from deployments.generation.tool_parser import ToolCallParser

_MAX_CHARACTER_TOKENS = 4
"""A character of UTF-8 has at most that many bytes, and a token at least one."""


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

    def __init__(self, model: ServedModel, *, control_in_prompts: bool = True) -> None:
        """control_in_prompts: whether control tokens' texts in a request's `prompt` are control tokens.

        Raises ModelFolderError for a tokenizer that cannot be read.
        """
        self.folder = model.folder
        self._backend = load_tokenizer(model.folder)
        self._config = TokenizerConfig(model.folder)
        self._context_tokens = model.context_tokens
        self._encoder = TextEncoder(self._backend, model.context_tokens)
        self._control_in_prompts = control_in_prompts
        self._template = self._config.template(tools=False)
        self._compiled: dict[str, ChatTemplate] = {}
        self.vocabulary = Vocabulary(self._backend)
        self.control = ControlTokens(self._backend, self._config.templates)
        self.tool_format = tool_format_of(self._template)
        self.features = features_of(self._render_template)
        self._conversation = Conversation(self._config.templates, self.tool_format, self.features)

    @property
    def cache_subject(self) -> str:
        """What prompts depend on beside the request: today's date if the template uses it, and whether prompts may
        contain control tokens."""
        date = datetime.date.today().isoformat() if "strftime_now" in self._template else ""
        return date if self._control_in_prompts else f"{date} text"

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
            ids = self.prompt_ids(request.prompt)
            self.check_ids(ids, "prompt")
            return RenderedPrompt(ids)
        prompt = self._guarded(request)
        in_thinking, closed = prompt.ends_with(THINK, self.control), prompt.ends_with(END_THINK, self.control)
        if request.continue_final_message:
            in_thinking, closed = False, True  # the answer has begun
        self._encoder.check_characters(len(prompt.text), "messages")
        ids = self.control.encode(prompt)
        self.check_ids(ids, "messages")
        return RenderedPrompt(ids, in_thinking, self.vocabulary.thinks and not (in_thinking or closed))

    def ids(self, request: GenerationRequest, *, special: bool = False) -> list[int]:
        """The prompt's token ids, however many they are. special: of a text, with the tokens that the tokenizer adds
        around it. Raises ApiError 400 for messages that the chat template rejects."""
        if request.messages:
            return self.control.encode(self._guarded(request))
        return self.prompt_ids(request.prompt, special=special)

    def prompt_ids(self, prompt: str | tuple[int, ...], *, special: bool = False) -> list[int]:
        """The token ids of a request's `prompt`. Raises ApiError 400 for control tokens where they are not allowed."""
        if isinstance(prompt, str):
            if self._control_in_prompts:
                return self.encode(prompt, special=special)
            return self.control.encode(self._marked(lambda guard: guard.text(prompt)))
        if not (self._control_in_prompts or self.control.token_ids.isdisjoint(prompt)):
            raise invalid_request("prompt", "The prompt contains control tokens, which this service does not accept.")
        return list(prompt)

    def text(self, request: GenerationRequest) -> str:
        """The request's messages and tools as text, by the chat template. Raises ApiError 400 if it rejects them."""
        return self._guarded(request).text

    def _guarded(self, request: GenerationRequest) -> GuardedPrompt:
        def rendered(guard: Guard) -> str:
            messages, tools = self._conversation.parts(request, guard)
            arguments = guard.value(json.loads(request.template_args))
            if request.continue_final_message:
                return self._render_open(messages, tools, arguments, guard.end)
            return self._render_template(messages, tools, arguments, open_answer=request.add_generation_prompt)

        try:
            return self._marked(rendered)
        except TEMPLATE_ERRORS as error:
            raise invalid_request(
                "messages", f"The model's chat template rejects these messages: {shortened(str(error), 300)}"
            ) from None

    def _marked(self, render: Callable[[Guard], str]) -> GuardedPrompt:
        for guard in self.control.guards():
            try:
                return guard.prompt(render(guard))
            except MarkInUse:
                continue
        raise invalid_request(
            "messages", f"The request contains each of the characters {' '.join(MARKS)}; leave one of them out."
        )

    def _render_open(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        arguments: Mapping[str, Any],
        end: str,
    ) -> str:
        """The conversation up to the end of the last message's text. end: a text that no message contains.

        What the template writes behind the text, mostly that the turn is over, is left out. The end marks the place,
        and keeps templates from trimming the text before it.
        """
        last = {**messages[-1], "content": f"{messages[-1]['content']}{end}"}
        text = self._render_template([*messages[:-1], last], tools, arguments, open_answer=False)
        if (at := text.rfind(end)) < 0:
            raise TemplateError("it does not show the last message, which is to be continued")
        return text[:at]

    def _render_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None,
        arguments: Mapping[str, Any] | None = None,
        *,
        open_answer: bool = True,
    ) -> str:
        source = self._config.template(tools=bool(tools))
        if not source:
            raise TemplateError("it has none; send a prompt to /v1/completions")
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source)
        return self._compiled[source].render(
            **{**self._config.special_tokens, **(arguments or {})},
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=open_answer,
        )

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. special: with the tokens that the tokenizer adds around a text."""
        [ids] = self._encoder.encode([text], special=special)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids. special: with the texts of special tokens."""
        # `decode` holds the GIL until it ends, `decode_batch` does not (tokenizers 0.22).
        [text] = self._backend.decode_batch([list(ids)], skip_special_tokens=not special)
        return str(text)

    def raw_tokens(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them, such as `\u0120the` for ` the`; some are parts of characters."""
        return [self._backend.id_to_token(token) or "" for token in ids]

    @property
    def tokenizer_info(self) -> dict[str, object]:
        """What the tokenizer's files declare, and the chat template."""
        config: dict[str, object] = json.loads((self.folder / "tokenizer_config.json").read_text())
        return config | {"tokenizer_class": self._config.tokenizer_class, "chat_template": self._template}

    def parser(self, request: GenerationRequest, prompt: RenderedPrompt) -> OutputParser:
        """A parser for one completion of the request's prompt."""
        calls = ToolCallParser(self.tool_format) if request.tools and request.tool_choice.mode != "none" else None
        thinking = prompt.starts_in_thinking if request.messages else None
        begun = request.continue_final_message
        return OutputParser(
            self.vocabulary,
            thinking=thinking,
            begun=begun,
            after=self._last_character(prompt.ids) if begun or not request.messages else (),
            stop=request.stop,
            calls=calls,
            stop_ids=request.sampling.stop_ids,
            include_stop=request.include_stop,
            ids_as_text=request.ids_as_text,
        )

    def _last_character(self, ids: Sequence[int]) -> Sequence[int]:
        """The last token ids that are whole characters; none if there are no such."""
        ends = (ids[-count:] for count in range(1, min(_MAX_CHARACTER_TOKENS, len(ids)) + 1))
        return next((end for end in ends if (text := self.decode(end)) and "\ufffd" not in text), ())

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError 400 for a prompt that does not fit the context, and for ids that no token has."""
        if len(ids) >= self._context_tokens:
            message = (
                f"The prompt has {len(ids)} tokens, which leaves no room in this model's context of "
                f"{self._context_tokens}. Send a shorter one."
            )
            raise PromptTooLong(message, param, len(ids), self._context_tokens)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary.size:
            raise invalid_request(param, "A token id is outside the model's vocabulary.")


def _characters(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls + len(message.name) + len(message.tool_call_id)
