"""The answers of POST /v1/chat/completions, whole and streamed."""

import time
from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from deployments.api.protocol.chat import ChatRequest
from deployments.api.protocol.chat_messages import FunctionCall, ToolCallParam
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


class FunctionCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a function call: first its name, then its arguments piece by piece."""

    name: str | None = None
    arguments: str = ""


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
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    refusal: None = None
    tool_calls: list[ToolCallParam] | msgspec.UnsetType = msgspec.UNSET


class AnswerDelta(msgspec.Struct, frozen=True):
    """A piece of an answer. It has only the fields that are new."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
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
    """One of the answers to a request."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of a response that is not streamed. replica: the engine replica that generated it."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: ChatUsage
    object: Literal["chat.completion"] = "chat.completion"
    replica: str | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """A piece of one of the answers."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


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
        self._head = (new_id("chatcmpl-"), int(time.time()), request.model, fingerprint)
        self._fields = () if request.include_reasoning is False else fields
        # As in OpenAI's chunks: null if the last chunk will report the usage, otherwise absent.
        self._usage = (
            None if request.stream_options is not None and request.stream_options.include_usage else msgspec.UNSET
        )
        self._num_choices = request.n or 1
        self._logprobs = bool(request.logprobs)

    def complete(self, answer: GenerationResult) -> ChatCompletion:
        choices = [self._choice(index, choice) for index, choice in enumerate(answer.choices)]
        return ChatCompletion(*self._head, choices, usage_of(answer.usage), replica=answer.replica or msgspec.UNSET)

    def start(self) -> bytes:
        return b"".join(self._chunk(index, AnswerDelta("assistant", "")) for index in range(self._num_choices))

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning and self._fields:
            events += self._chunk(delta.choice, self._with_thinking(AnswerDelta(), delta.reasoning))
        if delta.text or (delta.logprobs and self._logprobs):
            logprobs = self._logprobs_of(delta.logprobs) if delta.logprobs else None
            events += self._chunk(delta.choice, AnswerDelta(content=delta.text), logprobs)
        if delta.tool_calls:
            events += self._chunk(
                delta.choice, AnswerDelta(tool_calls=[_call_delta(call) for call in delta.tool_calls])
            )
        if delta.finish_reason:
            events += self._chunk(delta.choice, AnswerDelta(), None, delta.finish_reason)
        return events

    def end(self, answer: GenerationResult) -> bytes:
        if self._usage is None:
            last = ChatChunk(*self._head, [], usage_of(answer.usage), replica=answer.replica or msgspec.UNSET)
            return sse_event(last) + b"data: [DONE]\n\n"
        return b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse_event(error.body)

    def _choice(self, index: int, choice: Choice) -> ChatChoice:
        calls = [ToolCallParam(call.id, FunctionCall(call.name, call.arguments)) for call in choice.tool_calls]
        content = choice.text if choice.text or not calls else None
        message = AnswerMessage("assistant", content, tool_calls=calls or msgspec.UNSET)
        if choice.reasoning:
            message = self._with_thinking(message, choice.reasoning)
        return ChatChoice(index, message, self._logprobs_of(choice.logprobs), choice.finish_reason)

    def _with_thinking(self, message: Message, thinking: str) -> Message:
        return msgspec.structs.replace(message, **dict.fromkeys(self._fields, thinking))

    def _chunk(
        self, index: int, delta: AnswerDelta, logprobs: ChatLogprobs | None = None, finish: str | None = None
    ) -> bytes:
        choice = ChunkChoice(index, delta, logprobs, finish)  # type: ignore[arg-type]  # one of its three
        return sse_event(ChatChunk(*self._head, [choice], self._usage))

    def _logprobs_of(self, tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        return ChatLogprobs(logprobs_of(tokens))


def _call_delta(call: ToolDelta) -> ToolCallDelta:
    if not call.id:
        return ToolCallDelta(call.index, FunctionCallDelta(arguments=call.arguments))
    return ToolCallDelta(call.index, FunctionCallDelta(call.name, call.arguments), call.id, "function")
