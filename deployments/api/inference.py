"""The routes of requests for generated answers (chat completions, completions, responses, messages) and for tokens.

The fast path (deployments.api.fast_path) prepares each request for a generated answer and looks the answer up. On a
hit that is all; otherwise the handler that Serve runs finds the prepared request in its scope.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.settings import Settings
from deployments.api.access import RequestAccess, queue_class
from deployments.api.browser_guard import BrowserGuard
from deployments.api.fast_path import PREPARED_REQUEST
from deployments.api.http import (
    error_response,
    idempotency_key,
    json_response,
    request_timeout_s,
)
from deployments.api.models import ModelDirectory
from deployments.api.parser import RequestParser
from deployments.api.protocol.common import template_arguments
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.tokens import DetokenizeResponse, TokenizeResponse, decode_detokenize, decode_tokenize
from deployments.api.responses import AnswerWriter, StreamTimeouts, complete_response, replay, stream_response
from deployments.cache.answers import CacheControl
from deployments.common.errors import invalid_request
from deployments.common.messages import Sampling
from deployments.common.text_encoder import LARGE_CHARACTERS
from deployments.common.types import GenerationRequest
from deployments.generation.context import RequestContext
from deployments.generation.large_texts import LargeTexts
from deployments.generation.service import AnswerService
from deployments.observability.tracing import current
from deployments.tenancy.quotas import QuotaGrant, Quotas

log = logging.getLogger("dray.router")

_PARSED_FASTER = 8
"""So much less time than tokenizing a text takes parsing it: only still larger bodies are parsed in a thread."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """An authenticated and parsed request, whose answer is not stored. Nothing is charged for it yet.

    contexts: one for each of its prompts. headers: of its response, whatever the answer is.
    """

    contexts: tuple[RequestContext, ...]
    writer: AnswerWriter
    stream: bool
    headers: Mapping[str, str]


class InferenceApi:
    """The routes that models answer, for one router."""

    def __init__(
        self,
        settings: Settings,
        models: ModelDirectory,
        access: RequestAccess,
        guard: BrowserGuard,
        quotas: Quotas,
        answers: AnswerService,
        large_texts: LargeTexts,
    ) -> None:
        self._settings = settings
        self._limits = settings.limits
        self._models = models
        self._parser = RequestParser(settings, models)
        self.paths: Collection[str] = self._parser.paths
        """The paths of requests for a generated answer, which may be cached."""
        self._access = access
        self._guard = guard
        self._quotas = quotas
        self._answers = answers
        self._large_texts = large_texts
        self._no_grant = QuotaGrant(quotas, None, "", {})
        self._stream_timeouts = StreamTimeouts(settings.router.keep_alive_s, self._limits.client_stall_s)

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            *(Route(path, self.answer, methods=["POST"]) for path in self.paths),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def lookup(self, http: HttpRequest) -> Response | PreparedRequest:
        """The response with the stored answer, or with an error; the prepared request if no answer is stored.

        Reads, authenticates and parses the request, and reads once from Redis. `answer` then repeats none of this.
        """
        try:
            self._guard.check(http.scope)  # the fast path is in front of the middleware that does it for all routes
            return await self._lookup(http)
        except Exception as error:  # noqa: BLE001 - becomes a response, as Starlette does it for the routes
            return error_response(http, error)

    async def answer(self, http: HttpRequest) -> Response:
        """POST of a request for a generated answer, in any of the APIs."""
        prepared: PreparedRequest | None = http.scope.get(PREPARED_REQUEST)
        if prepared is None:  # without a cache there is no fast path
            outcome = await self._lookup(http)
            if isinstance(outcome, Response):
                return outcome
            prepared = outcome
        return await self._generate(http, prepared)

    async def tokenize(self, http: HttpRequest) -> Response:
        """POST /tokenize"""
        authenticated = self._access.authenticate(http)
        request = parse(decode_tokenize, await self._access.body(authenticated))
        endpoint = self._models.generator(request.model, authenticated.caller)
        if (request.prompt is None) == (request.messages is None):
            raise invalid_request("prompt", "Send either prompt or messages.")
        arguments = template_arguments(request.chat_template_kwargs, None, self._limits)
        messages = tuple(message.to_message() for message in request.messages or ())
        prompts = endpoint.prompts
        conversation = GenerationRequest(messages, Sampling(1), request.prompt or "", template_args=arguments)

        def work() -> TokenizeResponse:
            ids = prompts.ids(conversation, special=request.add_special_tokens)
            tokens = [prompts.decode([number], special=True) for number in ids] if request.return_token_strs else None
            return TokenizeResponse(len(ids), endpoint.model.context_tokens, ids, tokens)

        size = prompts.characters(conversation)
        grant = await self._quotas.admit(authenticated.caller.team if size > LARGE_CHARACTERS else None)
        try:
            response = await self._large_texts.run(queue_class(authenticated.caller), size, work)
        finally:
            self._access.release(grant)
        return json_response(response, headers=grant.headers)

    async def detokenize(self, http: HttpRequest) -> Response:
        """POST /detokenize"""
        authenticated = self._access.authenticate(http)
        request = parse(decode_detokenize, await self._access.body(authenticated))
        endpoint = self._models.generator(request.model, authenticated.caller)
        endpoint.prompts.check_ids(request.tokens, "tokens")
        text = await asyncio.to_thread(endpoint.prompts.decode, request.tokens, special=True)
        return json_response(DetokenizeResponse(text))

    async def _lookup(self, http: HttpRequest) -> Response | PreparedRequest:
        prepared = await self._prepare(http)
        if len(prepared.contexts) > 1:
            return prepared  # the answers to several prompts are not stored
        [context] = prepared.contexts
        if (stored := await self._answers.lookup(context)) is None:
            return prepared
        grant = await self._quotas.admit(context.caller.team)
        self._access.release(grant)
        self._log_context(context)
        key, result = stored
        hit = self._answers.hit(context, key, result)
        current.get().note({"dray.cache.result": hit.result})
        return replay(result, prepared.writer, prepared.stream, {**hit.headers, **grant.headers, **prepared.headers})

    async def _prepare(self, http: HttpRequest) -> PreparedRequest:
        """Authenticates, reads and parses a request, and charges nothing. Raises ApiError 400 to 404, 413, 415."""
        authenticated = self._access.authenticate(http)
        state, caller, headers = authenticated.state, authenticated.caller, authenticated.headers
        body = await self._access.body(authenticated)
        work = partial(self._parser.parse, state.route, body, caller)
        parsed = await self._large_texts.run(queue_class(caller), len(body) // _PARSED_FASTER, work)
        endpoint, batch = parsed.endpoint, parsed.service_tier == "flex"
        state.model = endpoint.model.name
        control = CacheControl.from_headers(headers, self._settings.cache.max_ttl_s)
        deadline = state.started + request_timeout_s(headers, self._limits.request_timeout_s)
        key, field = idempotency_key(headers), parsed.format_field
        contexts = tuple(
            RequestContext(
                endpoint, generation, caller, control, state.started, deadline, self._no_grant, batch, key, field
            )
            for generation in parsed.generations
        )
        return PreparedRequest(contexts, parsed.writer, bool(parsed.stream), parsed.headers)

    async def _generate(self, http: HttpRequest, prepared: PreparedRequest) -> Response:
        """The response to a request whose answer is not stored: generated for it, or joined from another request."""
        grant = await self._quotas.admit(prepared.contexts[0].caller.team)
        try:
            contexts = [replace(context, grant=grant) for context in prepared.contexts]
            for context in contexts:
                self._log_context(context)
            if len(contexts) > 1:
                subscriber, headers = await self._answers.answer_many(contexts), {"X-Dray-Cache": "bypass"}
            else:
                found = await self._answers.answer(contexts[0])
                current.get().note({"dray.cache.result": found.result})
                headers = found.headers
                if found.stored is not None:
                    self._access.release(grant)
                    headers = {**headers, **grant.headers, **prepared.headers}
                    return replay(found.stored, prepared.writer, prepared.stream, headers)
                assert found.subscriber is not None
                subscriber = found.subscriber
        except BaseException:
            self._access.release(grant)
            raise
        subscriber.on_close = partial(self._access.release, grant)
        headers = {**headers, **grant.headers, **prepared.headers}
        if prepared.stream:
            return await stream_response(subscriber, prepared.writer, headers, self._stream_timeouts)
        return await complete_response(http, subscriber, prepared.writer, headers)

    def _log_context(self, context: RequestContext) -> None:
        if self._settings.log_prompts:
            request = context.request
            prompt = [message.content for message in request.messages] or request.prompt
            self._access.log_prompt(context.endpoint.model, context.caller, prompt)
