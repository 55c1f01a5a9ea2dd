"""What is asked and what is answered, in one form for every API."""

from typing import Any, Literal

import msgspec

from deployments.common.messages import Sampling

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class ToolCall(msgspec.Struct, frozen=True, array_like=True):
    """A call of a tool by the model. arguments: JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message of a conversation. reasoning: an earlier answer's thinking, which most templates drop."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class Tool(msgspec.Struct, frozen=True, array_like=True):
    """A function that the model may call. parameters: JSON Schema as JSON text; strict: calls are held to it."""

    name: str
    description: str
    parameters: str
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, array_like=True):
    """Whether tools may or must be called; `name` is the one that must be. parallel: several in one answer."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str = ""
    parallel: bool = True


class GenerationRequest(msgspec.Struct, frozen=True, array_like=True):
    """All that an answer depends on, beside the exact model. Equal questions are equal bytes when encoded.

    turns: the conversation; or prompt: text or token ids to go on from, as they are.
    schema: JSON Schema as JSON text that the answer is held to; empty: none.
    template: further arguments of the chat template, as JSON text. choices: answers wanted.
    thinking_tokens: after so many the answer must begin; None: no bound.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    prompt: str | tuple[int, ...] = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    schema: str = ""
    template_args: str = "{}"
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    max_thinking_tokens: int | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer. logprob: natural logarithm. text: empty where the token is a part of a character."""

    bytes: tuple[int, ...]
    logprob: float

    @property
    def text(self) -> str:
        return bytes(self.bytes).decode(errors="replace")


class ToolDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: the first of each has its id and name, and all have a piece of the arguments."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


class Delta(msgspec.Struct, frozen=True):
    """What is new of one choice. finish: why it ended; empty while it goes on."""

    choice: int = 0
    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str = ""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of a request. reasoning: of the completion, thinking. cached: of the prompt, not computed."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """One complete answer."""

    reasoning: str
    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class GenerationResult(msgspec.Struct, frozen=True, array_like=True):
    """All choices of a question, as they are stored. made: Unix time in seconds. replica: that made it, the last one
    where several did."""

    choices: tuple[Choice, ...]
    usage: Usage
    created: float
    replica: str = ""

    def deltas(self) -> list[Delta]:
        """The whole answer as a stream gives it: a piece for each choice."""
        return [
            Delta(
                place,
                one.reasoning,
                one.text,
                tuple(ToolDelta(n, call.arguments, call.id, call.name) for n, call in enumerate(one.tool_calls)),
                one.logprobs,
                one.finish_reason,
            )
            for place, one in enumerate(self.choices)
        ]


def canonical(value: Any) -> str:
    """A JSON value as text, in one form: keys sorted, no spaces."""
    return msgspec.json.encode(value, order="sorted").decode()
