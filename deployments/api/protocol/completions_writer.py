"""The answers of POST /v1/completions, whole and streamed."""

import codecs
import time
from typing import Literal

import msgspec

from deployments.api.protocol.chat_writer import ChatUsage, usage_of
from deployments.api.protocol.completions import CompletionRequest
from deployments.api.protocol.token_reports import PromptLogprobs, prompt_logprobs_of
from deployments.common.errors import ApiError, new_id, sse_event
from deployments.common.types import Delta, GenerationResult, TokenLogprob, Usage


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Tokens with the natural logarithms of their probabilities. top_logprobs: for each, the most likely tokens in its
    place and itself. text_offset: where each begins in the choice's text, in characters. With `echo`, the prompt's
    tokens come first; nothing is known of the very first."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True):
    """One of the answers to a request, or a piece of it.

    stop_reason, matched_stop: where it ends, the request's stop string or stop token that ended it, under the names of
    vLLM and SGLang. token_ids, prompt_token_ids, prompt_logprobs: where the request asks for them.
    """

    index: int
    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    matched_stop: str | int | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class TextCompletion(msgspec.Struct, frozen=True):
    """The body of a response, and of an event of a stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"


class TextCursor:
    """Where the next token of a choice begins in its text, in characters.

    A token that is a part of a character begins where the character does.
    """

    def __init__(self, start: int) -> None:
        self.at_start = True
        """Whether no token has been passed yet."""
        self._position = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self, token: TokenLogprob) -> int:
        """Moves past the token and returns where it begins."""
        start, self.at_start = self._position, False
        self._position += len(self._utf8.decode(bytes(token.bytes)))
        return start


class CompletionWriter:
    """Writes the answers to one request: `n` choices for each prompt, prompt by prompt."""

    def __init__(self, request: CompletionRequest, fingerprint: str, echo: list[str]) -> None:
        """fingerprint: identifies the exact model. echo: for each prompt the text that its choices begin with."""
        self.id = new_id("cmpl-")
        self._head = (int(time.time()), request.model, fingerprint)
        # As in OpenAI's chunks: null if the last chunk will report the usage, otherwise absent.
        self._usage = (
            None if request.stream_options is not None and request.stream_options.include_usage else msgspec.UNSET
        )
        self._usage_in_all = self._usage is None and request.stream_options.continuous_usage_stats  # type: ignore[union-attr]
        self._num_choices = request.n or 1
        self._logprobs = request.logprobs
        self._echo = [text for text in echo for _ in range(request.n or 1)]
        self._reports_prompt = bool(request.echo) and request.logprobs is not None
        self._cursors = [TextCursor(0 if self._reports_prompt else len(text)) for text in self._echo]

    def complete(self, answer: GenerationResult) -> TextCompletion:
        choices = [
            TextChoice(
                index,
                self._echo[index] + choice.text,
                self._logprobs_of(index, choice.logprobs),
                _finish_reason(choice.finish_reason),
                choice.stopped_by,
                choice.stopped_by,
                choice.ids or msgspec.UNSET,
                choice.prompt_ids or msgspec.UNSET,
                prompt_logprobs_of(answer.choices[index - index % self._num_choices]),
            )
            for index, choice in enumerate(answer.choices)
        ]
        return TextCompletion(self.id, *self._head, choices, usage_of(answer.usage))

    def start(self, usage: Usage) -> bytes:
        return b"".join(self._chunk(TextChoice(index, text)) for index, text in enumerate(self._echo) if text)

    def delta(self, delta: Delta) -> bytes:
        if not (delta.text or delta.logprobs or delta.finish_reason or delta.ids):
            return b""
        stop = delta.stop if delta.finish_reason else msgspec.UNSET
        choice = TextChoice(
            delta.choice,
            delta.text,
            self._logprobs_of(delta.choice, delta.logprobs),
            _finish_reason(delta.finish_reason),
            stop,
            stop,
            delta.ids or msgspec.UNSET,
            delta.prompt_ids or msgspec.UNSET,
        )
        return self._chunk(choice, delta.usage if self._usage_in_all else None)

    def end(self, answer: GenerationResult) -> bytes:
        if self._usage is None:
            return sse_event(TextCompletion(self.id, *self._head, [], usage_of(answer.usage))) + b"data: [DONE]\n\n"
        return b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse_event(error.body)

    def _chunk(self, choice: TextChoice, usage: Usage | None = None) -> bytes:
        return sse_event(TextCompletion(self.id, *self._head, [choice], usage_of(usage) if usage else self._usage))

    def _logprobs_of(self, choice: int, tokens: tuple[TokenLogprob, ...]) -> TokenLogprobs | None:
        if self._logprobs is None:
            return None
        cursor = self._cursors[choice]
        begins = self._reports_prompt and cursor.at_start
        marked = [(begins and index == 0, token) for index, token in enumerate(tokens)]
        return TokenLogprobs(
            [token.text for token in tokens],
            [None if first else token.logprob for first, token in marked],
            [None if first else _most_likely(token) for first, token in marked] if self._logprobs else None,
            [cursor.advance(token) for token in tokens],
        )


def _most_likely(token: TokenLogprob) -> dict[str, float]:
    """The most likely tokens by their texts, and this one. Of several with the same text, the most likely: those that
    are parts of characters look alike."""
    likely: dict[str, float] = {}
    for other in (*token.top, token):
        likely.setdefault(other.text, other.logprob)
    return likely


def _finish_reason(reason: str) -> Literal["stop", "length"] | None:
    return ("length" if reason == "length" else "stop") if reason else None
