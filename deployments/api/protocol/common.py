"""Fields and checks that several APIs share: sampling, stop strings, JSON Schemas, limits of thinking."""

from typing import Annotated, Any, Literal, Protocol

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.parsing import depth_of
from deployments.common.errors import invalid_request, shortened
from deployments.common.messages import Sampling
from deployments.common.types import Tool, canonical

Count = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
LogitBias = dict[str, Annotated[float, msgspec.Meta(ge=-100, le=100)]]
StopToken = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
MaxTokens = Annotated[int, msgspec.Meta(ge=-1)]
"""-1: as many as the limits allow, as llama-server has it."""

_MAX_BIASES = 1024
_MAX_ID_DIGITS = 10
_RESERVED_ARGUMENTS = frozenset(
    {"self", "conversation", "conversations", "messages", "tools", "documents", "chat_template", "tokenize"}
    | {"add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length", "return_tensors"}
    | {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}
)
"""Parameters of the tokenizer's apply_chat_template, which are not for the template."""
_EFFORT_TOKENS = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096}
"""Maximum thinking tokens by effort; higher efforts are unlimited."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """include_usage: whether a last chunk reports the usage; continuous_usage_stats, of vLLM: every chunk reports it so
    far too. Obfuscation is padding that Dray never adds."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class SamplingFields(Protocol):
    """The sampling parameters of a request; None for those that its API lacks."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...


def sampling_for(
    model: ServedModel, limits: LimitSettings, max_tokens: int | None, request: SamplingFields
) -> Sampling:
    """The request's sampling parameters, with the defaults that the model's authors recommend.

    max_tokens: as the request sets it under its API's name; None: as many as the limits allow.
    """
    recommended = model.generation_defaults

    def number(name: str, default: float) -> float:
        requested = getattr(request, name, None)
        return requested if requested is not None else recommended.get(name) or default

    def value(name: str, default: float) -> float:
        return float(number(name, default))

    temperature = request.temperature
    if temperature is None:
        temperature = default_temperature(model)
    max_tokens = limits.output_tokens if max_tokens is None else min(max_tokens, limits.output_tokens)
    base = Sampling(
        max_tokens,
        repetition_penalty=value("repetition_penalty", 1.0),
        frequency_penalty=value("frequency_penalty", 0.0),
        presence_penalty=value("presence_penalty", 0.0),
        min_tokens=min(int(getattr(request, "min_tokens", None) or 0), max_tokens),
        ignore_eos=bool(getattr(request, "ignore_eos", None)),
        logit_bias=_biases(getattr(request, "logit_bias", None)),
        stop_ids=tuple(sorted(set(getattr(request, "stop_token_ids", None) or ()))),
    )
    if temperature == 0 or request.top_p == 0:
        return base  # greedy: the other parameters have no effect, and would split the cache
    return msgspec.structs.replace(
        base,
        temperature=temperature,
        top_p=value("top_p", 1.0),
        top_k=max(0, int(number("top_k", 0))),
        min_p=value("min_p", 0.0),
        seed=getattr(request, "seed", None),
    )


def default_temperature(model: ServedModel) -> float:
    """The temperature of a request that sets none: what the model's authors recommend; 0 is greedy."""
    recommended = model.generation_defaults
    return float(recommended.get("temperature", 1.0)) if recommended.get("do_sample", False) else 0.0


def with_logprobs(sampling: Sampling, top: int | None) -> Sampling:
    """The same sampling with log probabilities. top: how many alternatives to report; None: no log probabilities."""
    return msgspec.structs.replace(sampling, top_logprobs=top)


def check_logit_bias(biases: LogitBias | None) -> None:
    """Raises ApiError 400 for too many biases, and for keys that are no token ids."""
    check_count(len(biases or ()), _MAX_BIASES, "logit_bias")
    for token in biases or ():
        if not (token.isascii() and token.isdigit() and len(token) <= _MAX_ID_DIGITS):
            raise invalid_request("logit_bias", f"The keys of logit_bias are token ids; '{shortened(token)}' is none.")


def check_token_ids(sampling: Sampling, vocabulary: int) -> None:
    """Raises ApiError 400 for a bias of a token that the model does not have, and for such a stop token.

    vocabulary: number of its tokens.
    """
    if sampling.stop_ids and (token := sampling.stop_ids[-1]) >= vocabulary:
        message = f"stop_token_ids has the token id {token}; the model's vocabulary ends at {vocabulary - 1}."
        raise invalid_request("stop_token_ids", message)
    if sampling.logit_bias and (token := sampling.logit_bias[-1][0]) >= vocabulary:
        message = f"logit_bias has the token id {token}; the model's vocabulary ends at {vocabulary - 1}."
        raise invalid_request("logit_bias", message)


def _biases(biases: LogitBias | None) -> tuple[tuple[int, float], ...]:
    """In one order, and without those that change nothing: equal requests must be equal."""
    by_token = {int(token): bias for token, bias in (biases or {}).items() if bias}
    return tuple(sorted(by_token.items()))


def check_count(items: int, limit: int, param: str) -> None:
    """Raises ApiError 400 for a list with more items than the limit."""
    if items > limit:
        message = f"{param} has {items} items; the maximum is {limit}."
        raise invalid_request(param, message, code="array_above_max_length")


def check_tool_name(name: str | None, tools: tuple[Tool, ...]) -> None:
    """Raises ApiError 400 for a tool choice that names none of the tools."""
    if name not in {tool.name for tool in tools}:
        raise invalid_request(
            "tool_choice", f"tool_choice names '{shortened(name or '')}', which is not among the tools."
        )


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings of a request that may have one, several, or none."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_stop(stop: str | list[str] | None, limits: LimitSettings, param: str) -> None:
    """Raises ApiError 400 for too many stop strings, and for one that is empty or too long."""
    texts = stop_strings(stop)
    check_count(len(texts), limits.stop_strings, param)
    if any(not text or len(text) > limits.stop_string_chars for text in texts):
        raise invalid_request(param, f"A stop string must have 1 to {limits.stop_string_chars} characters.")


def check_json(value: Any, param: str, limits: LimitSettings) -> None:
    """Raises ApiError 400 for a value that is nested too deeply."""
    if depth_of(value, limits.json_depth) > limits.json_depth:
        raise invalid_request(param, f"{param} is nested too deeply; the maximum is {limits.json_depth} levels.")


def max_tokens_of(max_tokens: int | None, param: str) -> int | None:
    """A request's maximum; None: it sets none. Raises ApiError 400 for 0."""
    if max_tokens == 0:
        raise invalid_request(param, f"{param} must be at least 1, or -1 for as many tokens as possible.")
    return None if max_tokens == -1 else max_tokens


def schema_text(schema: dict[str, Any] | None, param: str, limits: LimitSettings) -> str:
    """A JSON Schema as text. The order of its keys is kept: answers list their properties in it."""
    if schema is None:
        raise invalid_request(param, "json_schema requires a schema.", code="missing_required_parameter")
    check_json(schema, param, limits)
    return msgspec.json.encode(schema).decode()


def template_arguments(arguments: dict[str, Any] | None, effort: str | None, limits: LimitSettings) -> str:
    """Further arguments for the chat template, as JSON text. effort: the request's reasoning effort."""
    if not arguments and effort is None:
        return "{}"
    arguments = dict(arguments or {})
    if reserved := sorted(_RESERVED_ARGUMENTS & arguments.keys()):
        raise invalid_request("chat_template_kwargs", f"'{reserved[0]}' is reserved; leave it out.")
    check_json(arguments, "chat_template_kwargs", limits)
    if effort is not None:
        arguments.setdefault("reasoning_effort", effort)
    if effort == "none":
        arguments.setdefault("enable_thinking", False)
    return canonical(arguments)


def thinking_limit(effort: str | None, max_tokens: int | None) -> int | None:
    """Maximum thinking tokens, after which the answer must begin; None: unlimited. max_tokens: set by the request."""
    return max_tokens if max_tokens is not None else _EFFORT_TOKENS.get(effort or "")
