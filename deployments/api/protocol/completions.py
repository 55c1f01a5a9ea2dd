"""POST /v1/completions: OpenAI's older API, which continues a text as it is."""

import codecs
import time
from typing import Annotated, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.answer_format import (
    Choices,
    ResponseFormat,
    SchemaParam,
    StructuredOutputs,
    answer_format,
)
from deployments.api.protocol.chat_writer import ChatUsage, usage_of
from deployments.api.protocol.common import (
    Count,
    LogitBias,
    Natural,
    Penalty,
    Probability,
    Seed,
    StreamOptions,
    TopLogprobs,
    check_logit_bias,
    check_stop,
    sampling_for,
    stop_strings,
    with_logprobs,
)
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, invalid_request, new_id, sse_event
from deployments.common.types import Delta, GenerationRequest, GenerationResult, TokenLogprob

_DEFAULT_MAX_TOKENS = 16
_MAX_PROMPT_ALTERNATIVES = 5
Prompt = str | list[str | int | list[int]]


class CompletionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. prompt: a text, a list of token ids, or a list of either."""

    model: str
    prompt: Prompt
    max_tokens: Natural | None = None
    min_tokens: Natural | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=2)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    n: Count | None = None
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    logit_bias: LogitBias | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaParam | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None


decode = msgspec.json.Decoder(CompletionRequest)


def read_completion(body: bytes, limits: LimitSettings) -> CompletionRequest:
    """Decodes a body and checks it against the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    if request.suffix:
        raise invalid_request("suffix", "suffix is not supported; leave it out.", code="unsupported_parameter")
    if request.best_of not in (None, request.n or 1):
        raise invalid_request("best_of", "best_of must equal n: all choices that are generated are returned.")
    if request.echo and (request.logprobs or 0) > _MAX_PROMPT_ALTERNATIVES:
        message = f"logprobs must be at most {_MAX_PROMPT_ALTERNATIVES} with echo: prompts are long."
        raise invalid_request("logprobs", message)
    check_logit_bias(request.logit_bias)
    if request.stream_options is not None and not request.stream:
        raise invalid_request("stream_options", "stream_options requires stream: true.")
    check_stop(request.stop, limits, "stop")
    choices = (request.n or 1) * len(prompts_of(request))
    if choices > limits.choices:
        message = f"The request has {choices} choices, n for each prompt; the maximum is {limits.choices}."
        raise invalid_request("n", message)
    return request


def prompts_of(request: CompletionRequest) -> list[str | tuple[int, ...]]:
    """Each prompt, as text or token ids. Raises ApiError 400 if there are none, if one is empty, and for a mixture."""
    prompt = request.prompt
    if isinstance(prompt, str):
        prompts: list[str | tuple[int, ...]] = [prompt]
    elif prompt and all(isinstance(item, int) for item in prompt):
        prompts = [tuple(item for item in prompt if isinstance(item, int))]
    elif all(isinstance(item, str | list) for item in prompt):
        prompts = [item if isinstance(item, str) else tuple(item) for item in prompt if not isinstance(item, int)]
    else:
        message = "prompt must be a string, a list of token ids, or a list of strings and lists of token ids."
        raise invalid_request("prompt", message, code="invalid_type")
    if not prompts or not all(prompts):
        raise invalid_request("prompt", "A prompt is empty; it needs text or token ids.", code="empty_prompt")
    return prompts


def completion_generations(
    request: CompletionRequest, model: ServedModel, limits: LimitSettings
) -> list[GenerationRequest]:
    """The request in the form that all APIs share, for each prompt. Raises ApiError 400 that names the field."""
    max_tokens = _DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and not request.echo:
        raise invalid_request("max_tokens", "max_tokens must be at least 1, or 0 with echo: true to score the prompt.")
    sampling = with_logprobs(sampling_for(model, limits, max_tokens, request), request.logprobs)
    stop, choices = stop_strings(request.stop), request.n or 1
    prompt_logprobs = bool(request.echo) and request.logprobs is not None
    answer = answer_format(request, limits)
    return [
        GenerationRequest(
            (),
            sampling,
            prompt,
            schema=answer.schema,
            stop=stop,
            num_choices=choices,
            strict_schema=answer.strict,
            prompt_logprobs=prompt_logprobs,
            constraint=answer.constraint,
        )
        for prompt in prompts_of(request)
    ]


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Tokens with the natural logarithms of their probabilities. top_logprobs: for each, the most likely tokens in its
    place and itself. text_offset: where each begins in the choice's text, in characters. With `echo`, the prompt's
    tokens come first; nothing is known of the very first."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True):
    """One of the answers to a request, or a piece of it."""

    index: int
    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


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
        self._head = (new_id("cmpl-"), int(time.time()), request.model, fingerprint)
        # As in OpenAI's chunks: null if the last chunk will report the usage, otherwise absent.
        self._usage = (
            None if request.stream_options is not None and request.stream_options.include_usage else msgspec.UNSET
        )
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
            )
            for index, choice in enumerate(answer.choices)
        ]
        return TextCompletion(*self._head, choices, usage_of(answer.usage))

    def start(self) -> bytes:
        return b"".join(self._chunk(TextChoice(index, text)) for index, text in enumerate(self._echo) if text)

    def delta(self, delta: Delta) -> bytes:
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        logprobs = self._logprobs_of(delta.choice, delta.logprobs)
        return self._chunk(TextChoice(delta.choice, delta.text, logprobs, _finish_reason(delta.finish_reason)))

    def end(self, answer: GenerationResult) -> bytes:
        if self._usage is None:
            return sse_event(TextCompletion(*self._head, [], usage_of(answer.usage))) + b"data: [DONE]\n\n"
        return b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse_event(error.body)

    def _chunk(self, choice: TextChoice) -> bytes:
        return sse_event(TextCompletion(*self._head, [choice], self._usage))

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
