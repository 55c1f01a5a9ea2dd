"""Bodies of the four APIs that generate text, brought into one form."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

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
from deployments.common.errors import ApiError
from deployments.common.types import GenerationRequest
from deployments.generation.context import FORMAT_FIELD
from deployments.generation.endpoint import ModelEndpoint
from deployments.tenancy.auth import Caller

_BODIES: dict[str, type] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesCountRequest,
    "/v1/responses/input_tokens": ResponseRequest,
}
_THINKING_FIELDS = {"both": ("reasoning_content", "reasoning")}


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A body in the form that all APIs share: a request with several prompts is several generations.

    ignored: names of the body's fields that Dray does not know, and of tools and items that it cannot use.
    format_field: the one that says what the answer must be. user: whom the client asks for; empty: it does not say.
    """

    endpoint: ModelEndpoint
    generations: tuple[GenerationRequest, ...]
    writer: AnswerWriter
    stream: bool | None
    service_tier: str | None = None
    ignored: tuple[str, ...] = ()
    format_field: str = FORMAT_FIELD
    user: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the response."""
        return ignored_header(self.ignored)


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
        endpoint = self._models.generator(request.model, caller)
        generation = chat_generation(request, endpoint.model, self._limits)
        check_token_ids(generation.sampling, endpoint.prompts.vocabulary.size)
        writer = ChatWriter(request, endpoint.name, self._thinking_fields)
        field, user = format_field(request), request.safety_identifier or request.user or ""
        tier, stream = request.service_tier, request.stream
        return ParsedRequest(endpoint, (generation,), writer, stream, tier, format_field=field, user=user)

    def _completion(self, body: bytes, caller: Caller) -> ParsedRequest:
        request = read_completion(body, self._limits)
        endpoint = self._models.generator(request.model, caller)
        generations = completion_generations(request, endpoint.model, self._limits)
        check_token_ids(generations[0].sampling, endpoint.prompts.vocabulary.size)
        echo = [_echo(endpoint, prompt) if request.echo else "" for prompt in prompts_of(request)]
        writer = CompletionWriter(request, endpoint.name, echo)
        field, user = format_field(request), request.user or ""
        return ParsedRequest(endpoint, tuple(generations), writer, request.stream, format_field=field, user=user)

    def _response(self, body: bytes, caller: Caller) -> ParsedRequest:
        request = read_response(body, self._limits)
        endpoint = self._models.generator(request.model, caller)
        generation = response_generation(request, endpoint.model, self._limits)
        check_token_ids(generation.sampling, endpoint.prompts.vocabulary.size)
        writer = ResponseWriter(request, request.store is not False)
        user, tier = request.safety_identifier or request.user or "", request.service_tier
        return ParsedRequest(endpoint, (generation,), writer, request.stream, tier, request.ignored, user=user)

    def _message(
        self, read: Callable[[bytes, LimitSettings], MessagesRequest], body: bytes, caller: Caller
    ) -> ParsedRequest:
        request = read(body, self._limits)
        endpoint = self._models.generator(request.model, caller)
        generation = messages_generation(request, endpoint.model, self._limits)
        shows_thinking = request.shows_thinking or self._always_shows_thinking
        writer = MessagesWriter(request, shows_thinking)
        named, tier = (request.metadata or {}).get("user_id"), request.service_tier
        user = named if isinstance(named, str) else ""
        return ParsedRequest(endpoint, (generation,), writer, request.stream, tier, request.ignored, user=user)


def _echo(endpoint: ModelEndpoint, prompt: str | tuple[int, ...]) -> str:
    if isinstance(prompt, str):
        return prompt
    endpoint.prompts.check_ids(prompt, "prompt")
    return endpoint.prompts.decode(prompt, special=True)
