"""POST /v1/completions: OpenAI's older API, which continues a text as it is."""

from typing import Annotated

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
from deployments.api.protocol.common import (
    Count,
    LogitBias,
    MaxTokens,
    Natural,
    Penalty,
    Probability,
    Seed,
    StopToken,
    StreamOptions,
    TopLogprobs,
    check_logit_bias,
    check_stop,
    sampling_for,
    stop_strings,
    with_logprobs,
)
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.token_reports import (
    PromptAlternatives,
    check_token_fields,
    with_token_fields,
)
from deployments.common.errors import invalid_request
from deployments.common.types import GenerationRequest

_DEFAULT_MAX_TOKENS = 16
_MAX_PROMPT_ALTERNATIVES = 5
Prompt = str | list[str | int | list[int]]


class CompletionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/completions. prompt: a text, a list of token ids, or a list of either."""

    model: str
    prompt: Prompt
    max_tokens: MaxTokens | None = None
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
    stop_token_ids: list[StopToken] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    n: Count | None = None
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    prompt_logprobs: PromptAlternatives | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
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
    check_token_fields(request)
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
    default = _DEFAULT_MAX_TOKENS if request.max_tokens is None else None
    max_tokens = default if request.max_tokens in (None, -1) else request.max_tokens
    if max_tokens == 0 and not request.echo:
        raise invalid_request(
            "max_tokens",
            "max_tokens must be at least 1, -1 for as many as possible, or 0 with echo to score the prompt.",
        )
    sampling = with_logprobs(sampling_for(model, limits, max_tokens, request), request.logprobs)
    stop, choices = stop_strings(request.stop), request.n or 1
    prompt_logprobs = bool(request.echo) and request.logprobs is not None
    answer = answer_format(request, limits)
    generations = [
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
    return [with_token_fields(generation, request) for generation in generations]
