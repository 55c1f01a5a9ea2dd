"""The routes of requests for generated answers: chat completions, completions, responses, messages.

The fast path (deployments.api.fast_path) prepares each request for a generated answer and looks the answer up. On a
hit that is all; otherwise the handler that Serve runs finds the prepared request in its scope.
"""

import logging
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import cast

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.records.forget import user_tag
from cluster.settings import Settings
from deployments.api.access import AuthenticatedRequest, RequestAccess
from deployments.api.background import BackgroundResponses
from deployments.api.browser_guard import BrowserGuard
from deployments.api.fast_path import PREPARED_REQUEST
from deployments.api.http import error_response, idempotency_key, request_timeout_s
from deployments.api.models import ModelDirectory
from deployments.api.parser import ParsedRequest, RequestParser
from deployments.api.placement import Placement
from deployments.api.prepared import PreparedRequest
from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.api.request_log import RequestLog
from deployments.api.request_state import REQUEST_STATE, RequestState
from deployments.api.responses import (
    AnswerWriter,
    StreamTimeouts,
    complete_response,
    stream_response,
)
from deployments.api.stored_responses import RESPONSES, StoredResponses
from deployments.cache.answers import CacheControl
from deployments.cache.feedback import FeedbackStore, Given, cached_id
from deployments.cache.questions import last_text
from deployments.common.tasks import TaskSupervisor
from deployments.common.types import GenerationResult
from deployments.generation.broadcast import Subscriber, to_api_error
from deployments.generation.context import RequestContext, Result
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.large_texts import LargeTexts
from deployments.generation.service import AnswerService
from deployments.observability.tracing import current
from deployments.tenancy.quotas import QuotaGrant, Quotas

log = logging.getLogger("dray.router")

_PARSED_FASTER = 8
"""So much less time than tokenizing a text takes parsing it: only still larger bodies are parsed in a thread."""


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
        stored_responses: StoredResponses,
        feedback: FeedbackStore,
        placement: Placement,
        tasks: TaskSupervisor,
    ) -> None:
        self._placement = placement
        self._settings = settings
        self._feedback = feedback
        self._tasks = tasks
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
        self._stored_responses = stored_responses
        self.request_log: RequestLog | None = None
        """Where answered requests are noted; None where that is off."""
        self._no_grant = QuotaGrant(quotas, None, "", {})
        self._stream_timeouts = timeouts = StreamTimeouts(settings.router.keep_alive_s, self._limits.client_stall_s)
        self.background = BackgroundResponses(timeouts, self._limits.request_timeout_s)
        stored_responses.on_cancel = self.background.cancel

    def routes(self) -> list[Route]:
        """All of them."""
        return [Route(path, self.answer, methods=["POST"]) for path in self.paths]

    async def lookup(self, http: HttpRequest) -> Response | PreparedRequest:
        """The response with the stored answer, or with an error; the prepared request if no answer is stored.

        Reads, authenticates and parses the request, and reads once from Redis. `answer` then repeats none of this.
        """
        try:
            # The fast path is in front of the middleware that does both for all routes.
            self._guard.check(http.scope)
            await self._access.prepare(http)
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
        context, choices = prepared.contexts[0], prepared.choices
        if len(choices) == 1 or (len(prepared.contexts) == 1 and self._answers.is_generating(context)):
            self._placement.count(context)
            return await self._generate(http, prepared)
        endpoint = await self._placement.place(prepared.contexts, choices)
        # An idempotency key may stand for an answer that another model gave, while the preferred one was busy.
        for other in choices[1:] if context.idempotency_key else (endpoint,):
            if other is not choices[0] and (stored := await self._stored(prepared.at(other))) is not None:
                return stored
        state: RequestState = http.scope[REQUEST_STATE]
        state.model = endpoint.model.name
        return await self._generate(http, prepared if endpoint is choices[0] else prepared.at(endpoint))

    async def _lookup(self, http: HttpRequest) -> Response | PreparedRequest:
        prepared = await self._prepare(http)
        if (stored := await self._stored(prepared)) is None:
            return prepared
        self._placement.count(prepared.contexts[0])
        return stored

    async def _stored(self, prepared: PreparedRequest) -> Response | None:
        """The response with the stored answer; None: there is none."""
        if len(prepared.contexts) > 1:
            return None  # the answers to several prompts are not stored
        [context] = prepared.contexts
        if (stored := await self._answers.lookup(context)) is None:
            return None
        caller = context.caller
        grant = await self._quotas.admit(caller.team, context.endpoint.model.name, in_batch=caller.in_batch)
        self._access.release(grant)
        self._log_context(context)
        hit = self._answers.hit(context, stored)
        self._note(context, hit.result, stored.result)
        current.get().note({"dray.cache.result": hit.result})
        return await self._replay(prepared, stored.key, stored.result, {**hit.headers, **grant.headers})

    async def _prepare(self, http: HttpRequest) -> PreparedRequest:
        """Authenticates, reads and parses a request, and charges nothing. Raises ApiError 400 to 404, 413, 415."""
        authenticated = self._access.authenticate(http)
        state, caller = authenticated.state, authenticated.caller
        body = await self._access.body(authenticated)
        if state.route == RESPONSES:
            body = await self._stored_responses.with_history(body, caller)
        parse = partial(self._parser.parse, state.route, body, caller)
        parsed = await self._large_texts.run(authenticated.queue_class, len(body) // _PARSED_FASTER, parse)
        return self._with_contexts(authenticated, body, parsed)

    def _with_contexts(
        self, authenticated: AuthenticatedRequest, body: bytes, parsed: ParsedRequest
    ) -> PreparedRequest:
        """body: that of the request, with the conversation that it goes on from."""
        state, caller, headers = authenticated.state, authenticated.caller, authenticated.headers
        endpoint, work = parsed.endpoint, authenticated.work
        batch = work is not None or parsed.service_tier == "flex"
        state.model = endpoint.model.name
        control = CacheControl.from_headers(headers, self._settings.cache.max_ttl_s)
        # A line of a batch waits for people, for hours if need be.
        deadline = work.deadline if work else state.started + request_timeout_s(headers, self._limits.request_timeout_s)
        user = user_tag(caller.owner, named) if (named := parsed.user or caller.subject) else ""
        state.progress.stream = bool(parsed.stream)
        contexts = tuple(
            RequestContext(
                endpoint,
                asked,
                caller,
                control,
                state.started,
                deadline,
                self._no_grant,
                batch,
                idempotency_key(headers),
                parsed.format_field,
                user,
                parsed.routed,
                state.progress,
            )
            for asked in parsed.generations
        )
        writer, keep, background = parsed.writer, None, False
        if isinstance(writer, ResponseWriter):
            writer.user = user
            keep = self._stored_responses.keeper_of(caller, writer, body)
            background = bool(writer.request.background)

        def at(other: ModelEndpoint) -> PreparedRequest:
            return self._with_contexts(authenticated, body, parsed.at(other))

        return PreparedRequest(
            contexts, writer, bool(parsed.stream), parsed.headers, parsed.choices, at, keep, background
        )

    async def _generate(self, http: HttpRequest, prepared: PreparedRequest) -> Response:
        """The response to a request whose answer is not stored: generated for it, or joined from another request."""
        first = prepared.contexts[0]
        team, model = first.caller.team, first.endpoint.model.name
        grant = await self._quotas.admit(team, model, in_batch=first.caller.in_batch)
        key: str | None = None
        try:
            contexts = [replace(context, grant=grant) for context in prepared.contexts]
            for context in contexts:
                self._log_context(context)
            if len(contexts) > 1:
                subscriber, headers = await self._answers.answer_many(contexts), {"X-Dray-Cache": "bypass"}
                first.progress.cache = "bypass"
            else:
                found = await self._answers.answer(contexts[0])
                current.get().note({"dray.cache.result": found.result})
                headers, first.progress.cache = found.headers, found.result
                if found.stored is not None:
                    self._access.release(grant)
                    self._note(first, found.result, found.stored)
                    return await self._replay(prepared, found.key, found.stored, {**headers, **grant.headers})
                assert found.subscriber is not None
                subscriber = found.subscriber
                key = found.key
        except BaseException:
            self._access.release(grant)
            raise
        subscriber.on_close = partial(self._end, prepared, subscriber, grant, key)
        headers = {**headers, **grant.headers, **prepared.headers}
        writer, keep = prepared.writer, prepared.keep
        if prepared.background and keep is not None:
            return await self.background.start(keep, subscriber, headers, stream=prepared.stream)
        if prepared.stream:
            return await stream_response(subscriber, writer, headers, self._stream_timeouts, keep)
        return await complete_response(http, subscriber, writer, headers, keep)

    async def _replay(
        self, prepared: PreparedRequest, key: str, stored: GenerationResult, headers: dict[str, str]
    ) -> Response:
        """The response with a stored answer. For feedback, its id says which one."""
        if isinstance(prepared.writer, ResponseWriter):
            # Its id is a secret of fixed length.
            self._remember(prepared.contexts[0], prepared.writer, key, stored)
        else:
            prepared.writer.id = cached_id(prepared.writer.id, key)
        self._feedback.asked(key)
        return await prepared.replay(stored, headers)

    def _remember(self, context: RequestContext, writer: AnswerWriter, key: str, result: GenerationResult) -> None:
        """Keeps an answer under the response's id, for feedback, unless the request says no-store."""
        if context.control.stores:
            caller, model = context.caller, context.endpoint.model.name
            given = Given(caller.namespace, model, context.request, result, key, context.user)
            self._tasks.spawn("remember an answer", self._feedback.remember(caller.owner, writer.id, given))

    def _end(self, prepared: PreparedRequest, subscriber: Subscriber, grant: QuotaGrant, key: str | None) -> None:
        """Ends a request whose answer was generated. key: of the answer in the cache; None: of several prompts."""
        self._access.release(grant)
        first = prepared.contexts[0]
        progress = first.progress
        if subscriber.first_at:
            progress.first_token_s = round(subscriber.first_at - first.started, 4)
        if subscriber.failure is not None:
            progress.code = to_api_error(subscriber.failure).body.error.code or ""
        if subscriber.result is None:
            progress.count(subscriber.usage)
        else:
            self._note(first, cast(Result, progress.cache), subscriber.result)
        if (result := subscriber.result) is not None and key is not None:
            if key:
                self._feedback.asked(key)
            self._remember(prepared.contexts[0], prepared.writer, key, result)

    def _log_context(self, context: RequestContext) -> None:
        if self._settings.log_prompts:
            request = context.request
            prompt = [message.content for message in request.messages] or request.prompt
            self._access.log_prompt(context.endpoint.model, context.caller, prompt)

    def _note(self, context: RequestContext, cache: Result, result: GenerationResult) -> None:
        """Notes for administrators how the request got its answer. Without texts if it names its user: so there is
        nothing more to forget of users."""
        progress = context.progress
        progress.cache = cache
        progress.count(result.usage)
        if self.request_log is not None:
            self.request_log.note(context, result, cache)
        if self._settings.admin.request_texts_s and not context.user:
            progress.keep_texts(last_text(context.request), result.choices[0].text)
