"""The routes for tokens: of texts and conversations, and back to text. Nothing is generated."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.settings import Settings
from deployments.api.access import AuthenticatedRequest, RequestAccess
from deployments.api.http import json_response
from deployments.api.models import ModelDirectory
from deployments.api.parser import RequestParser
from deployments.api.protocol.common import template_arguments
from deployments.api.protocol.messages import MessagesCount
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.responses import ResponseCount
from deployments.api.protocol.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    decode_detokenize,
    decode_tokenize,
)
from deployments.api.stored_responses import StoredResponses
from deployments.api.unknown_fields import UnknownFields, ignored_header
from deployments.common.errors import invalid_request
from deployments.common.messages import Sampling
from deployments.common.text_encoder import LARGE_CHARACTERS
from deployments.common.types import GenerationRequest
from deployments.generation.large_texts import LargeTexts
from deployments.tenancy.auth import Caller
from deployments.tenancy.quotas import Quotas

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class TokensApi:
    """The routes for tokens, for one router."""

    def __init__(
        self,
        settings: Settings,
        models: ModelDirectory,
        access: RequestAccess,
        quotas: Quotas,
        large_texts: LargeTexts,
        stored_responses: StoredResponses,
    ) -> None:
        self._limits = settings.limits
        self._parser = RequestParser(settings, models)
        self._unknown = UnknownFields(ignore=settings.api.unknown_fields == "ignore")
        self._models = models
        self._access = access
        self._quotas = quotas
        self._large_texts = large_texts
        self._stored_responses = stored_responses

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info),
            Route("/v1/messages/count_tokens", self.count_message, methods=["POST"]),
            Route("/v1/responses/input_tokens", self.count_response, methods=["POST"]),
        ]

    async def tokenize(self, http: HttpRequest) -> Response:
        """POST /tokenize"""
        authenticated = self._access.authenticate(http)
        body = await self._access.body(authenticated)
        request, ignored = self._unknown.read(body, TokenizeRequest, partial(parse, decode_tokenize))
        endpoint = self._models.generator(request.model, authenticated.caller)
        if (request.prompt is None) == (request.messages is None):
            raise invalid_request("prompt", "Send either prompt or messages.")
        arguments = template_arguments(request.chat_template_kwargs, None, self._limits)
        messages = tuple(message.to_message() for message in request.messages or ())
        prompts = endpoint.prompts
        conversation = GenerationRequest(
            messages,
            Sampling(1),
            request.prompt or "",
            template_args=arguments,
            add_generation_prompt=request.add_generation_prompt,
        )

        def work() -> TokenizeResponse:
            ids = prompts.ids(conversation, special=request.add_special_tokens)
            tokens = prompts.raw_tokens(ids) if request.return_token_strs else None
            return TokenizeResponse(len(ids), endpoint.model.context_tokens, ids, tokens)

        return await self._respond(authenticated, prompts.characters(conversation), work, ignored_header(ignored))

    async def detokenize(self, http: HttpRequest) -> Response:
        """POST /detokenize"""
        authenticated = self._access.authenticate(http)
        body = await self._access.body(authenticated)
        request, ignored = self._unknown.read(body, DetokenizeRequest, partial(parse, decode_detokenize))
        endpoint = self._models.generator(request.model, authenticated.caller)
        endpoint.prompts.check_ids(request.tokens, "tokens")
        text = await asyncio.to_thread(endpoint.prompts.decode, request.tokens, special=True)
        return json_response(DetokenizeResponse(text), headers=dict(ignored_header(ignored)))

    async def tokenizer_info(self, http: HttpRequest) -> Response:
        """GET /tokenizer_info?model=NAME: what vLLM tells of a tokenizer."""
        authenticated = self._access.authenticate(http)
        name = http.query_params.get("model") or self._models.first_generator
        endpoint = self._models.generator(name, authenticated.caller)
        return json_response(endpoint.prompts.tokenizer_info)

    async def count_message(self, http: HttpRequest) -> Response:
        """POST /v1/messages/count_tokens"""
        return await self._count(http, MessagesCount)

    async def count_response(self, http: HttpRequest) -> Response:
        """POST /v1/responses/input_tokens"""
        return await self._count(http, ResponseCount, self._stored_responses.with_history)

    async def _count(
        self,
        http: HttpRequest,
        response: Callable[[int], object],
        with_history: Callable[[bytes, Caller], Awaitable[bytes]] | None = None,
    ) -> Response:
        """The response to a request whose prompt's tokens are counted. response: its body, by their number.
        with_history: completes a request's body."""
        authenticated = self._access.authenticate(http)
        body = await self._access.body(authenticated)
        if with_history is not None:
            body = await with_history(body, authenticated.caller)
        parsed = self._parser.parse(authenticated.state.route, body, authenticated.caller)
        prompts, [request] = parsed.endpoint.prompts, parsed.generations

        def work() -> object:
            return response(len(prompts.ids(request)))

        return await self._respond(authenticated, prompts.characters(request), work, parsed.headers)

    async def _respond(
        self,
        request: AuthenticatedRequest,
        characters: int,
        work: Callable[[], object],
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> Response:
        """The response with the result of the work on a text; a large one counts as a request of the team's quota."""
        grant = await self._quotas.admit(request.caller.team if characters > LARGE_CHARACTERS else None)
        try:
            body = await self._large_texts.run(request.queue_class, characters, work)
        finally:
            self._access.release(grant)
        return json_response(body, headers={**grant.headers, **headers})
