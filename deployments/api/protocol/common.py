"""What the APIs have in common in what they ask: sampling, stop strings, schemas, the bound on thinking."""

from typing import Annotated, Any, Protocol

import msgspec

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.parsing import depth_of
from deployments.common.errors import invalid_request
from deployments.common.messages import Sampling
from deployments.common.types import canonical

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Probability = Annotated[float, msgspec.Meta(gt=0, le=1)]

_OURS = frozenset(
    {
        "self",
        "conversation",
        "conversations",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "tokenize",
        "add_generation_prompt",
    }
    | {"continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs"}
)
_EFFORT_TOKENS = {"none": 0, "minimal": 256, "low": 1024, "medium": 4096}
"""Most thinking tokens for an effort; more than medium is not bounded."""


class SamplingFields(Protocol):
    """The sampling parameters of a request; those an API lacks are None."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...


def sampling_for(model: ServedModel, limits: LimitSettings, wish: int | None, request: SamplingFields) -> Sampling:
    """The request's sampling, with what the model's makers recommend where it says nothing. wish: most tokens."""
    advised = model.generation_defaults

    def number(name: str, default: float) -> float:
        requested = getattr(request, name, None)
        return requested if requested is not None else advised.get(name) or default

    def value(name: str, default: float) -> float:
        return float(number(name, default))

    temperature = request.temperature
    if temperature is None:
        temperature = float(advised.get("temperature", 1.0)) if advised.get("do_sample", False) else 0.0
    most = min(wish or limits.output_tokens, limits.output_tokens)
    always = Sampling(
        most,
        repetition_penalty=value("repetition_penalty", 1.0),
        frequency_penalty=value("frequency_penalty", 0.0),
        presence_penalty=value("presence_penalty", 0.0),
        min_tokens=min(int(getattr(request, "min_tokens", None) or 0), most),
        ignore_eos=bool(getattr(request, "ignore_eos", None)),
    )
    if temperature == 0:
        return always  # greedy: the rest changes nothing, so it makes no other answer
    return msgspec.structs.replace(
        always,
        temperature=temperature,
        top_p=value("top_p", 1.0),
        top_k=max(0, int(number("top_k", 0))),
        min_p=value("min_p", 0.0),
        seed=getattr(request, "seed", None),
    )


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """One or several, as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_stop(stop: str | list[str] | None, limits: LimitSettings, param: str) -> None:
    """Raises ApiError 400 for too many stop strings, an empty one, or one that is too long."""
    given = stop_strings(stop)
    if len(given) > limits.stop_strings:
        message = f"{len(given)} stop strings; at most {limits.stop_strings} are taken."
        raise invalid_request(param, message, code="array_above_max_length")
    if any(not text or len(text) > limits.stop_string_chars for text in given):
        raise invalid_request(param, f"A stop string has 1 to {limits.stop_string_chars} characters.")


def check_json(value: Any, param: str, limits: LimitSettings) -> None:
    """Raises ApiError 400 for a value that is nested too deep."""
    if depth_of(value, limits.json_depth) > limits.json_depth:
        raise invalid_request(param, f"Nested deeper than {limits.json_depth} levels.")


def schema_text(schema: dict[str, Any] | None, param: str, limits: LimitSettings) -> str:
    """A schema as JSON text, in its own order: properties are written in the order in which they are listed."""
    if schema is None:
        raise invalid_request(param, "A json_schema needs a schema.", code="missing_required_parameter")
    check_json(schema, param, limits)
    return msgspec.json.encode(schema).decode()


def template_arguments(given: dict[str, Any] | None, effort: str | None, limits: LimitSettings) -> str:
    """Further arguments of the chat template, as JSON text."""
    if not given and effort is None:
        return "{}"
    arguments = dict(given or {})
    if taken := sorted(_OURS & arguments.keys()):
        raise invalid_request("chat_template_kwargs", f"'{taken[0]}' is Dray's to set.")
    check_json(arguments, "chat_template_kwargs", limits)
    if effort is not None:
        arguments.setdefault("reasoning_effort", effort)
    if effort == "none":
        arguments.setdefault("enable_thinking", False)
    return canonical(arguments)


def reasoning_bound(effort: str | None, tokens: int | None) -> int | None:
    """After how many tokens of thinking the answer must begin; None: no bound."""
    return tokens if tokens is not None else _EFFORT_TOKENS.get(effort or "")
