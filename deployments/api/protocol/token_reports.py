"""What a request may ask to know of its tokens, under vLLM's names: ids, and log probabilities of the prompt."""

from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec

from deployments.api.protocol.common import StopToken, check_count
from deployments.common.errors import invalid_request
from deployments.common.types import Choice, GenerationRequest, PromptToken

_MAX_PROMPT_ALTERNATIVES = 5
_MAX_STOP_TOKENS = 1024
PromptAlternatives = Annotated[int, msgspec.Meta(ge=0, le=_MAX_PROMPT_ALTERNATIVES)]


class TokenFields(Protocol):
    """The fields of a request that concern its tokens."""

    @property
    def stream(self) -> bool | None: ...
    @property
    def stop_token_ids(self) -> list[StopToken] | None: ...
    @property
    def include_stop_str_in_output(self) -> bool | None: ...
    @property
    def return_token_ids(self) -> bool | None: ...
    @property
    def return_tokens_as_token_ids(self) -> bool | None: ...
    @property
    def prompt_logprobs(self) -> int | None: ...


class PromptLogprob(msgspec.Struct, frozen=True):
    """A token in some place of the prompt, or a likely one. rank: 1 for the likeliest; null beyond those that are
    reported."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each token of the prompt, by token id; null for the first, before which nothing is."""


def check_token_fields(request: TokenFields) -> None:
    """Raises ApiError 400 for too many stop tokens, and for a stream with log probabilities of the prompt."""
    check_count(len(request.stop_token_ids or ()), _MAX_STOP_TOKENS, "stop_token_ids")
    if request.prompt_logprobs is not None and request.stream:
        raise invalid_request("prompt_logprobs", "prompt_logprobs are in whole answers only; leave out stream.")


def with_token_fields(generation: GenerationRequest, request: TokenFields) -> GenerationRequest:
    """The same generation with what the request wants of its tokens."""
    stops = bool(generation.stop or generation.sampling.stop_ids)
    return msgspec.structs.replace(
        generation,
        include_stop=stops and bool(request.include_stop_str_in_output),
        report_ids=bool(request.return_token_ids),
        ids_as_text=generation.sampling.top_logprobs is not None and bool(request.return_tokens_as_token_ids),
        prompt_alternatives=request.prompt_logprobs,
    )


def prompt_logprobs_of(choice: Choice) -> PromptLogprobs | msgspec.UnsetType:
    """Those of the prompt that a choice continues; unset where the request did not ask for them."""
    return [_place(tokens) for tokens in choice.prompt] if choice.prompt else msgspec.UNSET


def _place(tokens: Sequence[PromptToken]) -> dict[str, PromptLogprob] | None:
    return {str(token.id): PromptLogprob(token.logprob, token.rank, token.text) for token in tokens} or None
