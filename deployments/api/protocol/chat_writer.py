"""The answers of POST /v1/chat/completions, whole and streamed."""

import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal, TypeVar

import msgspec

from deployments.api.protocol.chat import ChatRequest
from deployments.api.protocol.chat_messages import FunctionCall, ToolCallParam
from deployments.api.protocol.token_reports import PromptLogprobs, prompt_logprobs_of
from deployments.common.errors import ApiError, new_id, sse_event
from deployments.common.types import Choice, Delta, GenerationResult, TokenLogprob, ToolDelta, Usage


class PromptDetails(msgspec.Struct, frozen=True):
    """cached_tokens: tokens of the prompt that an engine's prefix cache held."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """reasoning_tokens: tokens of the completion that are thinking."""

    reasoning_tokens: int


class ChatUsage(msgspec.Struct, frozen=True):
    """Tokens of a request. completion_tokens includes the thinking."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class FunctionCallDelta(msgspec.Struct, frozen=True):
    """A piece of a function call: first its name with empty arguments, then the arguments piece by piece."""

    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the tool call with this index."""

    index: int
    function: FunctionCallDelta
    id: str | None = None
    type: Literal["function"] | None = None


class AnswerMessage(msgspec.Struct, frozen=True):
    """An answer."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning: str | msgspec.UnsetType | None = msgspec.UNSET
    refusal: None = None
    tool_calls: list[ToolCallParam] | msgspec.UnsetType = msgspec.UNSET


class AnswerDelta(msgspec.Struct, frozen=True):
    """A piece of an answer. Its thinking is null where it has none: clients of DeepSeek's API read it in each."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning: str | msgspec.UnsetType | None = msgspec.UNSET
    tool_calls: list[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens in this position. logprob: natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token of the answer. logprob: natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The tokens of the answer, without its thinking."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the answers to a request.

    stop_reason, matched_stop: the request's stop string or stop token that ended it, under the names of vLLM and
    SGLang. token_ids: where the request asks for them.
    """

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None
    token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of a response that is not streamed. replica: the engine replica that generated it. prompt_token_ids,
    prompt_logprobs: where the request asks for them."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: ChatUsage
    object: Literal["chat.completion"] = "chat.completion"
    replica: str | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """A piece of one of the answers. The last one of each says by which stop string or stop token it ended."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    matched_stop: str | int | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET


class ChatChunk(msgspec.Struct, frozen=True):
    """An event of a stream. replica: the engine replica that generated the answer, in the chunk with the usage."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    replica: str | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET


def usage_of(usage: Usage) -> ChatUsage:
    """Usage in the shape of chat completions and completions."""
    return ChatUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens),
    )


def logprobs_of(tokens: Iterable[TokenLogprob]) -> list[ChatLogprob]:
    """Tokens in the shape of chat completions and responses."""
    return [
        ChatLogprob(
            token.text,
            token.logprob,
            token.bytes,
            [TopLogprob(other.text, other.logprob, other.bytes) for other in token.top],
        )
        for token in tokens
    ]


Message = TypeVar("Message", AnswerMessage, AnswerDelta)


class ChatWriter:
    """Writes the answer to one request."""

    def __init__(self, request: ChatRequest, fingerprint: str, fields: tuple[str, ...]) -> None:
        """fingerprint: identifies the exact model. fields: names of the fields that carry the thinking."""
        self.id = new_id("chatcmpl-")
        self._head = (int(time.time()), request.model, fingerprint)
        self._fields = () if request.include_reasoning is False else fields
        # As in OpenAI's chunks: null if the last chunk will report the usage, otherwise absent.
        self._usage = (
            None if request.stream_options is not None and request.stream_options.include_usage else msgspec.UNSET
        )
        self._usage_in_all = self._usage is None and request.stream_options.continuous_usage_stats  # type: ignore[union-attr]
        self._num_choices = request.n or 1
        self._logprobs = bool(request.logprobs)

    def complete(self, answer: GenerationResult) -> ChatCompletion:
        choices = [self._choice(index, choice) for index, choice in enumerate(answer.choices)]
        return ChatCompletion(
            self.id,
            *self._head,
            choices,
            usage_of(answer.usage),
            replica=answer.replica or msgspec.UNSET,
            prompt_token_ids=answer.choices[0].prompt_ids or msgspec.UNSET,
            prompt_logprobs=prompt_logprobs_of(answer.choices[0]),
        )

    def start(self, usage: Usage) -> bytes:
        first = self._with_thinking(AnswerDelta("assistant", ""), None)
        choices = [ChunkChoice(index, first) for index in range(self._num_choices)]
        return b"".join(sse_event(ChatChunk(self.id, *self._head, [choice], self._usage)) for choice in choices)

    def delta(self, delta: Delta) -> bytes:
        choices = self._pieces(delta)
        if delta.ids:
            # With the first chunk; one without text where the tokens have none yet.
            first = choices[0] if choices else ChunkChoice(delta.choice, self._with_thinking(AnswerDelta(), None))
            choices[:1] = [msgspec.structs.replace(first, token_ids=delta.ids)]
        prompts = [delta.prompt_ids or msgspec.UNSET, *[msgspec.UNSET] * len(choices)]
        usage = usage_of(delta.usage) if self._usage_in_all and delta.usage else self._usage
        return b"".join(
            sse_event(ChatChunk(self.id, *self._head, [choice], usage, prompt_token_ids=ids))
            for choice, ids in zip(choices, prompts, strict=False)
        )

    def end(self, answer: GenerationResult) -> bytes:
        if self._usage is None:
            last = ChatChunk(self.id, *self._head, [], usage_of(answer.usage), replica=answer.replica or msgspec.UNSET)
            return sse_event(last) + b"data: [DONE]\n\n"
        return b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse_event(error.body)

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        calls = [ToolCallParam(call.id, FunctionCall(call.name, call.arguments)) for call in choice.tool_calls]
        content = choice.text if choice.text or not calls else None
        message = AnswerMessage("assistant", content, tool_calls=calls or msgspec.UNSET)
        message = self._with_thinking(message, choice.reasoning or None)
        logprobs, stop = self._logprobs_of(choice.logprobs), choice.stopped_by
        return ChatChoice(
            index, message, logprobs, choice.finish_reason, stop, stop, token_ids=choice.ids or msgspec.UNSET
        )

    def _with_thinking(self, message: Message, thinking: str | None) -> Message:
        return msgspec.structs.replace(message, **dict.fromkeys(self._fields, thinking))

    def _pieces(self, delta: Delta) -> list[ChunkChoice]:
        """A delta as one choice for each chunk."""
        index, rest = delta.choice, self._with_thinking(AnswerDelta(), None)
        pieces: list[ChunkChoice] = []
        if delta.reasoning and self._fields:
            pieces.append(ChunkChoice(index, self._with_thinking(AnswerDelta(content=None), delta.reasoning)))
        if delta.text or (delta.logprobs and self._logprobs):
            logprobs = self._logprobs_of(delta.logprobs) if delta.logprobs else None
            pieces.append(ChunkChoice(index, msgspec.structs.replace(rest, content=delta.text), logprobs))
        for call in _call_deltas(delta.tool_calls):
            pieces.append(ChunkChoice(index, msgspec.structs.replace(rest, content=None, tool_calls=[call])))
        if delta.finish_reason:
            pieces.append(ChunkChoice(index, rest, None, delta.finish_reason, delta.stop, delta.stop))  # type: ignore[arg-type]
        return pieces

    def _logprobs_of(self, tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return ChatLogprobs(logprobs_of(tokens))


def _call_deltas(calls: Iterable[ToolDelta]) -> Iterator[ToolCallDelta]:
    """One piece for each chunk, as OpenAI sends them: some clients take two in one chunk for two calls."""
    for index, pieces in groupby(calls, key=lambda call: call.index):
        arguments = ""
        for piece in pieces:
            arguments += piece.arguments
            if piece.id:
                yield ToolCallDelta(index, FunctionCallDelta("", piece.name), piece.id, "function")
        if arguments:
            yield ToolCallDelta(index, FunctionCallDelta(arguments))
