"""POST /v1/completions: OpenAI's older API, which goes on from a text as it is."""

import codecs
import time
from typing import Annotated, Literal

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.chat import Count, Natural, Seed, StreamOptions
from deployments.api.protocol.chat_writer import ChatUsage, usage_of
from deployments.api.protocol.common import Penalty, Probability, check_stop, sampling_for, stop_strings
from deployments.api.protocol.parsing import parse
from deployments.common.errors import ApiError, invalid_request, new_id, sse_event
from deployments.common.types import Choice, Delta, GenerationRequest, GenerationResult, TokenLogprob, Usage

_DEFAULT_TOKENS = 16
Prompt = str | list[str | int | list[int]]


class CompletionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. prompt: text, token ids, or a list of either."""

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
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    logit_bias: dict[str, float] | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


decode = msgspec.json.Decoder(CompletionRequest)


def read_completion(body: bytes, limits: LimitSettings) -> CompletionRequest:
    """The request in a body, within the limits. Raises ApiError 400 that names the field."""
    request = parse(decode, body)
    if request.suffix:
        raise invalid_request("suffix", "No model here fills in before a suffix.", code="unsupported_parameter")
    if request.best_of not in (None, request.n or 1):
        raise invalid_request("best_of", "best_of must equal n: no choices are made and thrown away.")
    if (request.logprobs or 0) > 1:
        raise invalid_request("logprobs", "The engine knows the chosen token's logprob only: logprobs is 0 or 1.")
    if request.logprobs is not None and request.echo:
        raise invalid_request("logprobs", "The prompt's logprobs are not known; leave out echo or logprobs.")
    if request.logit_bias:
        raise invalid_request("logit_bias", "The engine takes no logit_bias.", code="unsupported_parameter")
    if request.stream_options is not None and not request.stream:
        raise invalid_request("stream_options", "stream_options needs stream: true.")
    check_stop(request.stop, limits, "stop")
    wanted = (request.n or 1) * len(prompts_of(request))
    if wanted > limits.choices:
        raise invalid_request("n", f"{wanted} choices in all; at most {limits.choices} are made for one request.")
    return request


def prompts_of(request: CompletionRequest) -> list[str | tuple[int, ...]]:
    """Each prompt, as text or token ids. Raises ApiError 400 for none, an empty one, or a mixture."""
    given = request.prompt
    if isinstance(given, str):
        found: list[str | tuple[int, ...]] = [given]
    elif given and all(isinstance(one, int) for one in given):
        found = [tuple(one for one in given if isinstance(one, int))]
    elif all(isinstance(one, str | list) for one in given):
        found = [one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int)]
    else:
        raise invalid_request(
            "prompt", "A prompt is a text, a list of token ids, or a list of either.", code="invalid_type"
        )
    if not found or not all(found):
        raise invalid_request("prompt", "The prompt is empty.", code="empty_prompt")
    return found


def completion_generations(
    request: CompletionRequest, model: ServedModel, limits: LimitSettings
) -> list[GenerationRequest]:
    """What the request asks: a question for each prompt."""
    wish = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    if wish == 0:
        raise invalid_request("max_tokens", "max_tokens is at least 1.")
    sampling = msgspec.structs.replace(
        sampling_for(model, limits, wish, request), logprobs=request.logprobs is not None
    )
    stop, choices = stop_strings(request.stop), request.n or 1
    return [GenerationRequest((), sampling, prompt, stop=stop, num_choices=choices) for prompt in prompts_of(request)]


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Tokens, the natural logarithms of their probabilities, and where in the text each begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True):
    """One answer, or what is new of it."""

    index: int
    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class TextCompletion(msgspec.Struct, frozen=True):
    """The body of an answer, and of an event of a stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: ChatUsage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"


class TextCursor:
    """Where a choice's next token begins in its text, in characters. A token that is a part of a character begins
    where the character does."""

    def __init__(self, start: int) -> None:
        self.position = start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self, token: TokenLogprob) -> int:
        """Moves past the token; returns where it began."""
        begin = self.position
        self.position += len(self._utf8.decode(bytes(token.bytes)))
        return begin


class CompletionWriter:
    """Writes results in the shapes of completions: those of all prompts of a request, each with its choices."""

    def __init__(self, request: CompletionRequest, fingerprint: str, echo: list[str]) -> None:
        """fingerprint: names the exact model. echo: the text that each prompt's choices begin with."""
        self._head = (new_id("cmpl-"), int(time.time()), request.model, fingerprint)
        self._echo = echo
        self._each = request.n or 1
        self._usage = (
            None if request.stream_options is not None and request.stream_options.include_usage else msgspec.UNSET
        )
        self._logprobs = request.logprobs
        self._cursors = [TextCursor(len(prompt)) for prompt in echo for _ in range(self._each)]

    def complete(self, answer: GenerationResult) -> TextCompletion:
        choices = [
            TextChoice(
                index,
                self._begin(index) + choice.text,
                self._logprobs_of(index, choice.logprobs),
                _finish(choice.finish_reason),
            )
            for index, choice in enumerate(answer.choices)
        ]
        return TextCompletion(*self._head, choices, usage_of(answer.usage))

    def start(self) -> bytes:
        places = range(len(self._echo) * self._each)
        return b"".join(self._chunk(TextChoice(place, text)) for place in places if (text := self._begin(place)))

    def delta(self, delta: Delta) -> bytes:
        if not (delta.text or delta.logprobs or delta.finish_reason):
            return b""
        logprobs = self._logprobs_of(delta.choice, delta.logprobs)
        return self._chunk(TextChoice(delta.choice, delta.text, logprobs, _finish(delta.finish_reason)))

    def end(self, answer: GenerationResult) -> bytes:
        if self._usage is None:
            return sse_event(TextCompletion(*self._head, [], usage_of(answer.usage))) + b"data: [DONE]\n\n"
        return b"data: [DONE]\n\n"

    def error(self, error: ApiError) -> bytes:
        return sse_event(error.body)

    def _begin(self, place: int) -> str:
        return self._echo[place // self._each]

    def _chunk(self, choice: TextChoice) -> bytes:
        return sse_event(TextCompletion(*self._head, [choice], self._usage))

    def _logprobs_of(self, choice: int, tokens: tuple[TokenLogprob, ...]) -> TokenLogprobs | None:
        if self._logprobs is None:
            return None
        return TokenLogprobs(
            [token.text for token in tokens],
            [token.logprob for token in tokens],
            [{token.text: token.logprob} for token in tokens] if self._logprobs else None,
            [self._cursors[choice].advance(token) for token in tokens],
        )


def _finish(reason: str) -> Literal["stop", "length"] | None:
    return ("length" if reason == "length" else "stop") if reason else None


def merge_results(answers: list[GenerationResult]) -> GenerationResult:
    """The answers of several prompts as one."""
    choices: list[Choice] = [choice for answer in answers for choice in answer.choices]
    usages = [answer.usage for answer in answers]
    usage = Usage(
        sum(one.prompt_tokens for one in usages),
        sum(one.completion_tokens for one in usages),
        sum(one.reasoning_tokens for one in usages),
        sum(one.cached_tokens for one in usages),
    )
    return GenerationResult(tuple(choices), usage, max(answer.created for answer in answers))
