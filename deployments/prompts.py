"""Between text and token ids: messages become a prompt, token ids become thinking and answer."""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from cluster.models.folder import ServedModel
from deployments.protocol import ApiError, Message

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to complete. thinking: the template has opened the thinking already, as R1's does."""

    ids: list[int]
    thinking: bool


class Prompts:
    """A model's chat template and tokenizer."""

    def __init__(self, model: ServedModel) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model.folder), local_files_only=True)
        self._backend: Tokenizer = self._tokenizer.backend_tokenizer
        self._context_tokens = model.context_tokens
        self._think, self._end_think = self._backend.token_to_id(THINK), self._backend.token_to_id(END_THINK)
        self.reads_clock = "strftime_now" in (self._tokenizer.chat_template or "")

    def render(self, messages: list[Message]) -> Prompt:
        """The prompt for a conversation, by the model's own template.

        Raises ApiError 400 where the template refuses the conversation or the prompt fills the context.
        """
        turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text()} for m in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ApiError(
                400,
                f"The model's chat template refuses these messages: {error}",
                code="invalid_value",
                param="messages",
            ) from None
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if len(ids) >= self._context_tokens:
            raise ApiError(
                400,
                f"This model's context is {self._context_tokens} tokens, and the messages alone are {len(ids)}. "
                "Shorten them.",
                code="context_length_exceeded",
                param="messages",
            )
        return Prompt(ids, text.rstrip().endswith(THINK))

    def reader(self, prompt: Prompt, stop: list[str]) -> "CompletionReader":
        """Reads one completion of `prompt`."""
        return CompletionReader(self._backend, self._think, self._end_think, thinking=prompt.thinking, stop=stop)


class CompletionReader:
    """Turns a completion's token ids, as they come, into thinking and answer.

    Text comes out in whole characters, however tokens cut them. White space around the thinking and before the
    answer is dropped. Stop strings end the answer (they do not look into the thinking) and are not part of it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        think: int | None,
        end_think: int | None,
        *,
        thinking: bool,
        stop: list[str],
    ) -> None:
        self._tokenizer = tokenizer
        self._think, self._end_think = think, end_think
        self._thinking = thinking
        self._stop = stop
        self._stream = DecodeStream(skip_special_tokens=True)
        self._reasoning: list[str] = []
        self._answer: list[str] = []
        self._held = ""
        self.reasoning_tokens = 0
        self.tokens = 0
        self.stopped = False

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def answer(self) -> str:
        return "".join(self._answer)

    def feed(self, ids: list[int]) -> tuple[str, str]:
        """Takes new ids; gives the thinking and the answer text that they complete. After a stop string, nothing."""
        reasoning, answer = "", ""
        for token in ids:
            if self.stopped:
                break
            self.tokens += 1
            if self._thinking:
                self.reasoning_tokens += 1
                if token == self._end_think:
                    self._turn(thinking=False)
                else:
                    reasoning += self._think_on(self._stream.step(self._tokenizer, token) or "")
            elif token == self._think and not self._answer and not self._reasoning:
                self.reasoning_tokens += 1
                self._turn(thinking=True)
            else:
                answer += self._answer_on(self._stream.step(self._tokenizer, token) or "")
        return reasoning, answer

    def finish(self) -> str:
        """The end of the answer that was held back because a stop string might have begun there."""
        if self._thinking or self.stopped:
            return ""
        rest, self._held = self._held, ""
        self._answer.append(rest)
        return rest

    def _turn(self, *, thinking: bool) -> None:
        self._thinking = thinking
        self._held = ""  # white space between thinking and answer
        self._stream = DecodeStream(skip_special_tokens=True)

    def _think_on(self, text: str) -> str:
        text = self._held + text
        if not self._reasoning:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        if kept:
            self._reasoning.append(kept)
        return kept

    def _answer_on(self, text: str) -> str:
        text = self._held + text
        if not self._answer:
            text = text.lstrip()
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            kept, self._held, self.stopped = text[: min(found)], "", True
        else:
            hold = max((_overlap(text, stop) for stop in self._stop), default=0)
            kept, self._held = text[: len(text) - hold], text[len(text) - hold :]
        if kept:
            self._answer.append(kept)
        return kept


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
