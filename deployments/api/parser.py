"""Bodies of the four APIs that generate text, brought into one form."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import msgspec

from cluster.settings import LimitSettings, Settings
from deployments.api.models import ModelDirectory
from deployments.api.protocol.answer_format import format_field
from deployments.api.protocol.chat import ChatRequest, chat_generation, read_chat
from deployments.api.protocol.chat_writer import ChatWriter
from deployments.api.protocol.common import check_token_ids
from deployments.api.protocol.completions import (
    CompletionRequest,
    completion_generations,
    prompts_of,
    read_completion,
)
from deployments.api.protocol.completions_writer import CompletionWriter
from deployments.api.protocol.messages import (
    MessagesCountRequest,
    MessagesRequest,
    messages_generation,
    read_messages,
    read_messages_count,
)
from deployments.api.protocol.messages_writer import MessagesWriter
from deployments.api.protocol.responses import ResponseRequest, read_response, response_generation
from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.api.responses import AnswerWriter
from deployments.api.unknown_fields import UnknownFields, ignored_header
from deployments.common.errors import ApiError, invalid_request
from deployments.common.types import GenerationRequest
from deployments.generation.context import FORMAT_FIELD
from deployments.generation.endpoint import ModelEndpoint
from deployments.routing.rules import traits_of
from deployments.tenancy.auth import Caller

_BODIES: dict[str, type] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesCountRequest,
    "/v1/responses/input_tokens": ResponseRequest,
}
R = TypeVar("R", ChatRequest, CompletionRequest, MessagesRequest, ResponseRequest)
ForModel = Callable[[ModelEndpoint, str], tuple[tuple[GenerationRequest, ...], AnswerWriter]]
"""What one model has to generate for a request, and what writes the answer. Takes the name that the answer says."""
_IN_HEADER = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
"""What of a model's name a header has as it is; other characters are percent-encoded, as few are allowed there."""
_THINKING_FIELDS = {"both": ("reasoning_content", "reasoning")}


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A body in the form that all APIs share: a request with several prompts is several generations.

    choices: the models that may answer, the preferred one first; endpoint: the one that does. routed: the names of the
    routed model that it asks for. ignored: names of the body's fields that Dray does not know, and of tools and items
    that it cannot use. format_field: the one that says what the answer must be. user: whom the client asks for; empty:
    it does not say.
    """

    endpoint: ModelEndpoint
    generations: tuple[GenerationRequest, ...]
    writer: AnswerWriter
    for_model: ForModel
    choices: tuple[ModelEndpoint, ...]
    routed: tuple[str, ...] = ()
    stream: bool | None = None
    service_tier: str | None = None
    ignored: tuple[str, ...] = ()
    format_field: str = FORMAT_FIELD
    user: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the response."""
        if not self.routed and self.endpoint is self.choices[0]:
            return ignored_header(self.ignored)
        return {**ignored_header(self.ignored), "X-Dray-Model": quote(self.endpoint.model.name, safe=_IN_HEADER)}

    def at(self, endpoint: ModelEndpoint) -> "ParsedRequest":
        """The same request, answered by another of its choices."""
        generations, writer = self.for_model(endpoint, endpoint.model.name)
        return replace(self, endpoint=endpoint, generations=generations, writer=writer)


class RequestParser:
    """Parses the bodies of chat completions, completions, responses and messages."""

    def __init__(self, settings: Settings, models: ModelDirectory) -> None:
        self._limits = settings.limits
        self._unknown = UnknownFields(ignore=settings.api.unknown_fields == "ignore")
        self._always_shows_thinking = settings.api.messages_thinking == "always"
        self._models = models
        field = settings.router.thinking_field
        self._thinking_fields = _THINKING_FIELDS.get(field, (field,))
        self._parsers: dict[str, Callable[..., ParsedRequest]] = {
            "/v1/chat/completions": self._chat_completion,
            "/v1/completions": self._completion,
            "/v1/responses": self._response,
            "/v1/messages": partial(self._message, read_messages),
        }
        self._counted: dict[str, Callable[[bytes, Caller], ParsedRequest]] = {
            "/v1/messages/count_tokens": partial(self._message, read_messages_count),
            "/v1/responses/input_tokens": self._response,
        }

    @property
    def paths(self) -> Collection[str]:
        """The paths of requests for a generated answer."""
        return self._parsers.keys()

    def parse(self, path: str, body: bytes, caller: Caller) -> ParsedRequest:
        """The request in a body that was sent to this path, or whose prompt's tokens this path counts.

        Raises ApiError 400, 403, 404.
        """
        parse_known = self._parsers.get(path) or self._counted[path]
        parsed, ignored = self._unknown.read(body, _BODIES[path], lambda known: parse_known(known, caller))
        if parsed.ignored and not self._unknown.ignore:
            message = f"{parsed.ignored[0]} cannot be used here; leave it out."
            raise ApiError(400, message, code="unknown_parameter", param=parsed.ignored[0])
        return replace(parsed, ignored=(*ignored, *parsed.ignored)) if ignored else parsed

    def _chat_completion(self, body: bytes, caller: Caller) -> ParsedRequest:
        request = read_chat(body, self._limits)

        def for_model(endpoint: ModelEndpoint, name: str) -> tuple[tuple[GenerationRequest, ...], AnswerWriter]:
            generation = chat_generation(request, endpoint.model, self._limits)
            check_token_ids(generation.sampling, endpoint.prompts.vocabulary.size)
            return (generation,), ChatWriter(_named(request, name), endpoint.name, self._thinking_fields)

        parsed = self._chosen(request.model, caller, for_model, asks_thinking=request.asks_thinking)
        user, tier = request.safety_identifier or request.user or "", request.service_tier
        format_named = format_field(request)
        return replace(parsed, stream=request.stream, service_tier=tier, format_field=format_named, user=user)

    def _completion(self, body: bytes, caller: Caller) -> ParsedRequest:
        request = read_completion(body, self._limits)

        def for_model(endpoint: ModelEndpoint, name: str) -> tuple[tuple[GenerationRequest, ...], AnswerWriter]:
            generations = completion_generations(request, endpoint.model, self._limits)
            check_token_ids(generations[0].sampling, endpoint.prompts.vocabulary.size)
            echo = [_echo(endpoint, prompt) if request.echo else "" for prompt in prompts_of(request)]
            return tuple(generations), CompletionWriter(_named(request, name), endpoint.name, echo)

        parsed = self._chosen(request.model, caller, for_model)
        format_named, user = format_field(request), request.user or ""
        return replace(parsed, stream=request.stream, format_field=format_named, user=user)

    def _response(self, body: bytes, caller: Caller) -> ParsedRequest:
        request = read_response(body, self._limits)

        def for_model(endpoint: ModelEndpoint, name: str) -> tuple[tuple[GenerationRequest, ...], AnswerWriter]:
            generation = response_generation(request, endpoint.model, self._limits)
            check_token_ids(generation.sampling, endpoint.prompts.vocabulary.size)
            return (generation,), ResponseWriter(_named(request, name), request.store is not False)

        parsed = self._chosen(request.model, caller, for_model)
        user, tier = request.safety_identifier or request.user or "", request.service_tier
        return replace(parsed, stream=request.stream, service_tier=tier, ignored=request.ignored, user=user)

    def _message(
        self, read: Callable[[bytes, LimitSettings], MessagesRequest], body: bytes, caller: Caller
    ) -> ParsedRequest:
        request = read(body, self._limits)
        shows_thinking = request.shows_thinking or self._always_shows_thinking

        def for_model(endpoint: ModelEndpoint, name: str) -> tuple[tuple[GenerationRequest, ...], AnswerWriter]:
            generation = messages_generation(request, endpoint.model, self._limits)
            return (generation,), MessagesWriter(_named(request, name), shows_thinking)

        parsed = self._chosen(request.model, caller, for_model, asks_thinking=request.asks_thinking)
        named, tier = (request.metadata or {}).get("user_id"), request.service_tier
        user = named if isinstance(named, str) else ""
        return replace(parsed, stream=request.stream, service_tier=tier, ignored=request.ignored, user=user)

    def _chosen(self, name: str, caller: Caller, for_model: ForModel, *, asks_thinking: bool = False) -> ParsedRequest:
        """The request for the model that it names, or for the one that the rules of a routed model choose."""
        if (routed := self._models.routed_model(name, caller)) is None:
            choices = self._models.with_fallbacks(name, caller)
            return ParsedRequest(choices[0], *for_model(choices[0], name), for_model, choices)
        default = routed.default
        generations, writer = for_model(default, default.model.name)
        for generation in generations:
            _refuse_token_ids(generation, name, routed.targets)
        longest = max(generations, key=lambda generation: len(generation.prompt))
        choices = self._models.choices(routed, traits_of(longest, asks_thinking=asks_thinking))
        parsed = ParsedRequest(default, generations, writer, for_model, choices, routed.names)
        return parsed if choices[0] is default else parsed.at(choices[0])


def _named(request: R, name: str) -> R:
    """The request as if it had named this model: answers say what it named."""
    return request if request.model == name else msgspec.structs.replace(request, model=name)


def _refuse_token_ids(generation: GenerationRequest, name: str, targets: list[str]) -> None:
    """Raises ApiError 400 for token ids: the same id is another text in each model."""
    fields = {
        "prompt": isinstance(generation.prompt, tuple),
        "logit_bias": generation.sampling.logit_bias,
        "stop_token_ids": generation.sampling.stop_ids,
    }
    for field_name, has_ids in fields.items():
        if has_ids:
            message = f"{field_name} has token ids, and '{name}' stands for models with tokens of their own: name one"
            raise invalid_request(field_name, f"{message} of {', '.join(targets)}.")


def _echo(endpoint: ModelEndpoint, prompt: str | tuple[int, ...]) -> str:
    if isinstance(prompt, str):
        return prompt
    endpoint.prompts.check_ids(prompt, "prompt")
    return endpoint.prompts.decode(prompt, special=True)
