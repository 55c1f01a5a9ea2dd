"""A generation request and its result, in one form for every API."""

from functools import lru_cache
from typing import Any, Literal

import msgspec

from deployments.common.messages import Sampling

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class ToolCall(msgspec.Struct, frozen=True, array_like=True):
    """A tool call by the model. arguments: JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message of a conversation. reasoning: the thinking of an earlier answer, which most templates drop."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class Tool(msgspec.Struct, frozen=True, array_like=True):
    """A function that the model may call. parameters: JSON Schema as JSON text. strict: arguments must follow it."""

    name: str
    description: str
    parameters: str
    strict: bool = False


class ToolChoice(msgspec.Struct, frozen=True, array_like=True):
    """Whether tools may or must be called. name: the only tool that may be called. parallel: allows several calls."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str = ""
    parallel: bool = True


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    """What an answer must be that is no JSON. texts: one regular expression, which it matches as a whole; the texts of
    which it is one; or one grammar, in Lark or GBNF."""

    kind: Literal["regex", "choice", "grammar"]
    texts: tuple[str, ...]


class GenerationRequest(msgspec.Struct, frozen=True, array_like=True):
    """Everything that determines an answer, apart from the model. Equal requests encode to equal bytes.

    messages: the conversation. prompt: instead of messages, text or token ids to continue.
    schema: JSON Schema as JSON text that the answer must follow; empty for none. strict_schema: it is refused where it
    cannot be enforced as a whole.
    template_args: further arguments of the chat template, as JSON text. num_choices: number of answers.
    max_thinking_tokens: the answer must begin after this many; None for no limit.
    constraint: what the answer must be, in place of a schema. include_stop: the stop string or stop token that ends an
    answer belongs to it. report_ids: choices have their token ids and those of the prompt. ids_as_text: tokens of log
    probabilities have `token_id:ID` for their text. prompt_alternatives: how many likely tokens to report in the place
    of each of the prompt; None: nothing is reported of the prompt.
    prompt_logprobs: whether each choice's log probabilities begin with those of the prompt. With it,
    `sampling.max_tokens` may be 0: then nothing follows them.
    continue_final_message: the answer goes on from the last message, which is an answer that has begun.
    add_generation_prompt: otherwise, whether the template opens an answer after the last message.
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
    strict_schema: bool = False
    prompt_logprobs: bool = False
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    constraint: Constraint | None = None
    include_stop: bool = False
    report_ids: bool = False
    ids_as_text: bool = False
    prompt_alternatives: int | None = None


class LikelyToken(msgspec.Struct, frozen=True, array_like=True):
    """A token with its probability. bytes: its UTF-8 bytes, maybe part of a character. logprob: natural logarithm."""

    bytes: tuple[int, ...]
    logprob: float

    @property
    def text(self) -> str:
        return _decoded(self.bytes)


class TokenLogprob(LikelyToken, frozen=True, array_like=True):
    """A token of the answer, or of the prompt before it. top: the most likely tokens in its place, the most likely
    first. The first token of a prompt has the log probability 0: nothing is before it."""

    top: tuple[LikelyToken, ...] = ()


class ToolDelta(msgspec.Struct, frozen=True):
    """Part of a tool call. The first part carries the id and the name; every part carries some of the arguments."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts. reasoning_tokens: thinking in the completion. cached_tokens: prompt tokens found in a cache."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cached_tokens: int


class PromptToken(msgspec.Struct, frozen=True, array_like=True):
    """A token in some place of a prompt, or one that is likely there. rank: 1 for the likeliest; None: unknown."""

    id: int
    text: str
    logprob: float
    rank: int | None


class Delta(msgspec.Struct, frozen=True):
    """New output of one choice. finish_reason: empty while the choice continues.

    stop: what ended it, as Choice has it. usage: of the whole request so far. ids: of the new tokens, and in the first
    delta prompt_ids, where the request asks for them.
    """

    choice: int = 0
    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[ToolDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str = ""
    stop: str | int | None = None
    usage: Usage | None = None
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """One complete answer. stop: the stop string that ended it, if one did; stop_token: the token of the request's own
    stop tokens. ids, prompt_ids: of all its tokens and of the prompt's, where the request asks for them. prompt: for
    each token of the prompt itself and the likely ones in its place; nothing is known of the first.
    """

    reasoning: str
    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stop: str = ""
    stop_token: int | None = None
    ids: tuple[int, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    prompt: tuple[tuple[PromptToken, ...], ...] = ()

    @property
    def stopped_by(self) -> str | int | None:
        """The stop string or stop token of the request that ended it."""
        return self.stop or self.stop_token


class GenerationResult(msgspec.Struct, frozen=True, array_like=True):
    """All choices of a request, as stored in the cache. created: Unix time in seconds. replica: the last replica that
    generated part of it. question, user: in the cache, what was asked, if the answer can be pinned, and the tag of who
    asked (cluster.records.forget)."""

    choices: tuple[Choice, ...]
    usage: Usage
    created: float
    replica: str = ""
    question: str = ""
    user: str = ""

    def deltas(self) -> list[Delta]:
        """The result as a stream: one delta for each choice."""
        return [
            Delta(
                index,
                choice.reasoning,
                choice.text,
                tuple(ToolDelta(n, call.arguments, call.id, call.name) for n, call in enumerate(choice.tool_calls)),
                choice.logprobs,
                choice.finish_reason,
                choice.stopped_by,
                self.usage,
                choice.ids,
                choice.prompt_ids,
            )
            for index, choice in enumerate(self.choices)
        ]


# Answers with alternatives have the same few tokens thousands of times.
@lru_cache(8192)
def _decoded(utf8: tuple[int, ...]) -> str:
    return bytes(utf8).decode(errors="replace")


def canonical(value: Any) -> str:
    """A JSON value as canonical text: sorted keys, no spaces."""
    return msgspec.json.encode(value, order="sorted").decode()
