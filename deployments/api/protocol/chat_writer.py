"""Answers of POST /v1/chat/completions, whole and streamed."""

import time
from typing import Literal, TypeVar

import msgspec

from deployments.api.protocol.chat import ChatRequest, FunctionCall, ToolCallParam
from deployments.common.errors import ApiError, new_id, sse_event
from deployments.common.types import Choice, Delta, GenerationResult, TokenLogprob, ToolDelta, Usage


class PromptDetails(msgspec.Struct, frozen=True):
    """cached_tokens: of the prompt, found in an engine's prefix cache."""

    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    """reasoning_tokens: of the completion, thinking."""

    reasoning_tokens: int


class ChatUsage(msgspec.Struct, frozen=True):
    """Tokens of a request. completion_tokens holds the thinking."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class FunctionCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a call: its name comes first, then its arguments in pieces."""

    name: str | None = None
    arguments: str = ""


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the call with this index."""

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
    """A piece of an answer: only what is new is there."""

    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that might have come; the engine knows of the one that did."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Those of the answer; thinking has none."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(msgspec.Struct, frozen=True):
    """The body of an answer that is not streamed. replica: the engine replica that made it."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: ChatUsage
    object: Literal["chat.completion"] = "chat.completion"
    replica: str | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """What is new of one answer."""

    index: int
    delta: AnswerDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """An event of a stream. replica: the engine replica that made the answer; with its usage."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    replica: str | msgspec.UnsetType = msgspec.UNSET


def usage_of(usage: Usage) -> ChatUsage:
    """Usage as OpenAI's chat and completions APIs say it."""
    return ChatUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        PromptDetails(usage.cached_tokens),
        CompletionDetails(usage.reasoning_tokens),
    )


Message = TypeVar("Message", AnswerMessage, AnswerDelta)


class ChatWriter:
    """Says an answer in the shapes of chat completions."""

    def __init__(self, request: ChatRequest, fingerprint: str, fields: tuple[str, ...]) -> None:
        """fingerprint: names the exact model. fields: names under which thinking is told."""
        self._head = (new_id("chatcmpl-"), int(time.time()), request.model, fingerprint)
        self._fields = () if request.include_reasoning is False else fields
        self._usage = (
            None if request.stream_options is not None and request.stream_options.include_usage else msgspec.UNSET
        )
        self._choices = request.n or 1
        self._logprobs = bool(request.logprobs)
        self._top = bool(request.top_logprobs)

    def complete(self, answer: GenerationResult) -> ChatCompletion:
        choices = [self._choice(place, one) for place, one in enumerate(answer.choices)]
        return ChatCompletion(*self._head, choices, usage_of(answer.usage), replica=answer.replica or msgspec.UNSET)

    def start(self) -> bytes:
        return b"".join(self._chunk(place, AnswerDelta("assistant", "")) for place in range(self._choices))

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning and self._fields:
            events += self._chunk(delta.choice, self._thought(AnswerDelta(), delta.reasoning))
        if delta.text or (delta.logprobs and self._logprobs):
            told = self._logprobs_of(delta.logprobs) if delta.logprobs else None
            events += self._chunk(delta.choice, AnswerDelta(content=delta.text), told)
        if delta.tool_calls:
            events += self._chunk(delta.choice, AnswerDelta(tool_calls=[_call_delta(one) for one in delta.tool_calls]))
        return (
            events + self._chunk(delta.choice, AnswerDelta(), None, delta.finish_reason)
            if delta.finish_reason
            else events
        )

    def end(self, answer: GenerationResult) -> bytes:
        if self._usage is None:
            last = ChatChunk(*self._head, [], usage_of(answer.usage), replica=answer.replica or msgspec.UNSET)
            return sse_event(last) + b"data: [DONE]\n\n"
        return b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse_event(error.body)

    def _choice(self, place: int, one: Choice) -> ChatChoice:
        calls = [ToolCallParam(call.id, FunctionCall(call.name, call.arguments)) for call in one.tool_calls]
        content = one.text if one.text or not calls else None
        message = AnswerMessage("assistant", content, tool_calls=calls or msgspec.UNSET)
        if one.reasoning:
            message = self._thought(message, one.reasoning)
        return ChatChoice(place, message, self._logprobs_of(one.logprobs), one.finish_reason)

    def _thought(self, message: Message, text: str) -> Message:
        return msgspec.structs.replace(message, **dict.fromkeys(self._fields, text))

    def _chunk(
        self, place: int, delta: AnswerDelta, logprobs: ChatLogprobs | None = None, finish: str | None = None
    ) -> bytes:
        choice = ChunkChoice(place, delta, logprobs, finish)  # type: ignore[arg-type]  # one of its three
        return sse_event(ChatChunk(*self._head, [choice], self._usage))

    def _logprobs_of(self, logprobs: tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        content = []
        for one in logprobs:
            told = (one.text, one.logprob, list(one.bytes))
            content.append(ChatLogprob(*told, [TopLogprob(*told)] if self._top else []))
        return ChatLogprobs(content)


def _call_delta(tool: ToolDelta) -> ToolCallDelta:
    if not tool.id:
        return ToolCallDelta(tool.index, FunctionCallDelta(arguments=tool.arguments))
    return ToolCallDelta(tool.index, FunctionCallDelta(tool.name, tool.arguments), tool.id, "function")
