"""The ingress: HTTP in the shapes of OpenAI's APIs, one function a route."""

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.models.folder import ServedModel, open_models
from cluster.node import Node
from cluster.serve_config import ENGINE, RouterArgs
from deployments.api.admin import AdminApi
from deployments.api.fast_path import KNOWN_ONLY, CacheFastPath, NotKnown
from deployments.api.http import (
    api_error,
    headers_of,
    http_error,
    idempotency_key,
    internal_error,
    json_response,
    read_json,
    request_timeout_s,
)
from deployments.api.info import InfoApi, model_not_found
from deployments.api.middleware import METRIC_LABELS, RequestMiddleware
from deployments.api.protocol.chat import chat_generation, read_chat
from deployments.api.protocol.chat_writer import ChatWriter
from deployments.api.protocol.common import template_arguments
from deployments.api.protocol.completions import (
    CompletionWriter,
    completion_generations,
    prompts_of,
    read_completion,
)
from deployments.api.protocol.embeddings import embeddings_response, read_embedding, texts_of
from deployments.api.protocol.messages import MessagesWriter, messages_generation, read_messages
from deployments.api.protocol.parsing import parse
from deployments.api.protocol.responses import read_response, response_generation
from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.api.protocol.tokens import DetokenizeResponse, TokenizeResponse, decode_detokenize, decode_tokenize
from deployments.api.responses import AnswerWriter, StreamTimeouts, complete_response, replay, stream_response
from deployments.cache.answers import AnswerCache, CacheControl
from deployments.cache.semantic import SemanticCache
from deployments.common.errors import ApiError, invalid_request
from deployments.common.messages import Sampling
from deployments.common.redis import RedisStore
from deployments.common.types import GenerationRequest, Usage
from deployments.generation.broadcast import Subscriber
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.prompts import PromptRenderer
from deployments.generation.service import AnswerService, RequestContext
from deployments.observability.logs import configure_logging
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import Traces, current
from deployments.pages.status import StatusPage
from deployments.routing.dispatcher import Dispatcher
from deployments.routing.embeddings import EmbeddingEndpoint
from deployments.routing.fair_queue import FairQueue
from deployments.routing.heartbeat import heartbeat
from deployments.routing.prefix_index import PrefixIndex
from deployments.routing.registry import registry
from deployments.tenancy.auth import Authenticator, Caller
from deployments.tenancy.quotas import QuotaGrant, Quotas
from deployments.tenancy.usage import UsageRecorder

log = logging.getLogger("dray.router")


class Wish(Protocol):
    """What every request for an answer says beside its question."""

    @property
    def stream(self) -> bool | None: ...


@dataclass(frozen=True, slots=True)
class _Came:
    """A request that came, from whom, and when on the clock of time.perf_counter."""

    http: HttpRequest
    headers: Mapping[str, str]
    caller: Caller
    began: float


_THINKING_FIELDS = {"both": ("reasoning_content", "reasoning")}


@serve.ingress()
class Router:
    """One router replica: everything between the socket and the engines."""

    def __init__(self, args: dict[str, Any]) -> None:
        """args: RouterArgs as JSON has them."""
        given = RouterArgs.model_validate(args).with_urls(os.environ)
        self._settings = settings = given.settings
        self._limits = settings.limits
        configure_logging(settings.log_level)
        self._metrics = RouterMetrics()
        self._traces = Traces("dray-router", registry().router_id)
        teams = RedisStore("teams", given.teams_url, settings.teams.timeout_s, self._metrics.watchers("teams"))
        self._door = Authenticator(teams, settings.host, settings.cache.namespace, settings.teams.metrics_teams)
        self._teams = teams
        self._routers = settings.router.replicas
        self._quotas = Quotas(teams, self._routers)
        self._usage = UsageRecorder(teams)
        self._admin = AdminApi(self._door, self._usage, given.teams_url)
        self._stores = [teams]
        self._tasks: set[asyncio.Task[None]] = set()
        cache, answers = settings.cache, None
        if cache.enabled:
            answers = RedisStore("answers", given.redis_url, cache.timeout_s, self._metrics.watchers("answers"))
            self._stores.append(answers)
        models = open_models(settings, Node.here().models_dir)
        self._served: dict[str, ModelEndpoint] = {}
        self._embedders: dict[str, EmbeddingEndpoint] = {}
        for model in models:
            application = given.engines[model.name]
            if model.settings.task == "generate":
                served = self._serve(model, application, answers)
                served.dispatcher.replicas.subscribe(partial(self._share, served))
                self._served |= dict.fromkeys(model.names, served)
            else:
                self._embedders |= dict.fromkeys(
                    model.names, EmbeddingEndpoint(model, DeploymentHandle(ENGINE, application))
                )
        kept = AnswerCache(cache, answers) if answers else None
        near = (
            SemanticCache(cache, answers, self._embedders[cache.similarity_model])
            if answers and cache.similarity_model
            else None
        )
        self._answering = AnswerService(kept, near, self._metrics, self._usage, self._limits)
        needed = {given.engines[one.name]: one.name for one in models if not one.settings.sleep_after_s}
        self._overview = InfoApi(models, needed, self._door)
        self._status_page = StatusPage(models)
        field = settings.router.thinking_field
        self._thinking_fields = _THINKING_FIELDS.get(field, (field,))
        self._patience = StreamTimeouts(settings.router.keep_alive_s, self._limits.client_stall_s)

    def _serve(self, model: ServedModel, engines: str, store: RedisStore | None) -> ModelEndpoint:
        carried_on = self._metrics.carried_on.labels(model.name).inc
        homes = PrefixIndex(store, engines) if store else None
        dispatcher = Dispatcher(DeploymentHandle(ENGINE, engines), registry().replicas_of(engines), carried_on, homes)
        queue = FairQueue(track_wait=self._metrics.waiting.labels(model.name).track_inprogress)
        served = ModelEndpoint(model, model.fingerprint, PromptRenderer(model), dispatcher, queue)
        self._share(served, 0)
        return served

    def _share(self, served: ModelEndpoint, replicas: int) -> None:
        """Each router fills its share of the engines' places; what is beyond them waits in turn, here."""
        chosen, routers = served.model.settings, self._routers
        # Those that have died come back, and those that sleep wake up.
        replicas = max(replicas, chosen.replicas)
        # A quarter of a step: what is handed over stands before whoever comes next.
        prompts = math.ceil(replicas * chosen.max_num_batched_tokens / 4 / routers)
        waiting = math.ceil(replicas * self._limits.max_queued / routers)
        served.queue.resize(math.ceil(replicas * chosen.max_num_seqs / routers), waiting, prompts)

    def _share_with(self, routers: int) -> None:
        """So many share the engines now, this one among them."""
        if routers != self._routers:
            self._routers = self._quotas.routers = routers
            for served in self._served.values():
                self._share(served, served.dispatcher.replicas.count)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """What goes on beside the requests."""
        self._later(self._door.refresh_forever())
        self._later(self._usage.flush_forever())
        self._later(self._quotas.renew_forever())
        if self._settings.router.replica_limit > self._settings.router.replicas:
            self._later(heartbeat(self._teams, self._share_with))
        yield
        for task in tuple(self._tasks):
            task.cancel()
        await self._usage.close()
        for store in self._stores:
            await store.close()
        await asyncio.to_thread(self._traces.close)

    def _end(self, admission: QuotaGrant) -> None:
        # Most requests are bounded by no quota, and a task for nothing is a hundredth of a cache hit.
        if admission.is_limited:
            self._later(admission.release())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __serve_build_asgi_app__(self) -> Starlette:
        answers = [
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/messages", self.messages, methods=["POST"]),
        ]
        app = Starlette(
            routes=[
                *answers,
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/v1/usage", self._admin.usage),
                *self._admin.routes(),
                *self._overview.routes(),
                *self._status_page.routes(),
            ],
            middleware=[Middleware(RequestMiddleware, metrics=self._metrics, traces=self._traces)],
            lifespan=self._lifespan,
            exception_handlers={
                ApiError: api_error,
                HTTPException: http_error,
                Exception: internal_error,
            },
        )
        if self._settings.cache.enabled:
            CacheFastPath.app, CacheFastPath.routes = app, frozenset(route.path for route in answers)
        return app

    async def chat_completions(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions"""
        came = self._came(http)
        request = read_chat(await self._body(came), self._limits)
        served = self._named(request.model, came.caller)
        question = chat_generation(request, served.model, self._limits)
        writer = ChatWriter(request, served.name, self._thinking_fields)
        return await self._answer(came, request, served, question, writer)

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions"""
        came = self._came(http)
        request = read_completion(await self._body(came), self._limits)
        served = self._named(request.model, came.caller)
        questions = completion_generations(request, served.model, self._limits)
        echo = [self._echo(served, prompt) if request.echo else "" for prompt in prompts_of(request)]
        writer = CompletionWriter(request, served.name, echo)
        if len(questions) == 1:
            return await self._answer(came, request, served, questions[0], writer)
        if KNOWN_ONLY in http.scope:
            raise NotKnown
        admission = await self._quotas.admit(came.caller.team)
        try:
            follower = await self._answering.answer_many(
                [self._asked(came, served, one, admission) for one in questions]
            )
        except BaseException:
            self._end(admission)
            raise
        follower.on_close = lambda: self._end(admission)
        headers = {"X-Dray-Cache": "bypass"} | admission.headers
        return await self._told(came, follower, writer, headers, stream=bool(request.stream))

    async def responses(self, http: HttpRequest) -> Response:
        """POST /v1/responses"""
        came = self._came(http)
        request = read_response(await self._body(came), self._limits)
        served = self._named(request.model, came.caller)
        question = response_generation(request, served.model, self._limits)
        return await self._answer(came, request, served, question, ResponseWriter(request))

    async def messages(self, http: HttpRequest) -> Response:
        """POST /v1/messages"""
        came = self._came(http)
        request = read_messages(await self._body(came), self._limits)
        served = self._named(request.model, came.caller)
        question = messages_generation(request, served.model, self._limits)
        return await self._answer(came, request, served, question, MessagesWriter(request))

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /v1/embeddings"""
        came = self._came(http)
        request = read_embedding(await self._body(came), self._limits)
        if (embedder := self._embedders.get(request.model)) is None:
            raise model_not_found(
                request.model, "no embedding model" if request.model in self._served else "not served"
            )
        self._allowed(request.model, embedder.model, came.caller)
        texts = texts_of(request)
        came.http.scope[METRIC_LABELS] = (embedder.model.name, came.caller.label)
        self._log(came, embedder.model, texts)
        tokens = await asyncio.to_thread(embedder.count, texts)
        admission = await self._quotas.admit(came.caller.team)
        try:
            await admission.reserve(tokens)
            with current.get().child(f"embeddings {embedder.model.name}") as span:
                span.note({"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": tokens})
                vectors = await embedder.embed(texts, self._limits.request_timeout_s)
        finally:
            self._end(admission)
        if came.caller.team is not None:
            self._usage.record(came.caller.name, embedder.model.name, Usage(tokens, 0, 0, 0), made=True)
        return json_response(embeddings_response(request, vectors, tokens), headers=admission.headers)

    async def tokenize(self, http: HttpRequest) -> Response:
        """POST /tokenize"""
        came = self._came(http)
        request = parse(decode_tokenize, await self._body(came))
        served = self._named(request.model, came.caller)
        if (request.prompt is None) == (request.messages is None):
            raise invalid_request("prompt", "Send either prompt or messages.")
        arguments = template_arguments(request.chat_template_kwargs, None, self._limits)
        turns = tuple(message.to_message() for message in request.messages or ())
        text = (
            served.prompts.text(GenerationRequest(turns, Sampling(1), template_args=arguments))
            if turns
            else request.prompt or ""
        )
        ids = await asyncio.to_thread(served.prompts.encode, text, special=request.add_special_tokens and not turns)
        told = [served.prompts.decode([one], special=True) for one in ids] if request.return_token_strs else None
        return json_response(TokenizeResponse(len(ids), served.model.context_tokens, ids, told))

    async def detokenize(self, http: HttpRequest) -> Response:
        """POST /detokenize"""
        came = self._came(http)
        request = parse(decode_detokenize, await self._body(came))
        served = self._named(request.model, came.caller)
        if any(number >= served.prompts.vocabulary.size for number in request.tokens):
            raise invalid_request("tokens", "A token id is outside the model's vocabulary.")
        return json_response(
            DetokenizeResponse(await asyncio.to_thread(served.prompts.decode, request.tokens, special=True))
        )

    async def _body(self, came: _Came) -> bytes:
        return await read_json(came.http, came.headers, self._limits.body_bytes)

    def _named(self, name: str, caller: Caller) -> ModelEndpoint:
        if (served := self._served.get(name)) is None:
            raise model_not_found(name, "an embedding model" if name in self._embedders else "not served")
        self._allowed(name, served.model, caller)
        return served

    def _allowed(self, name: str, model: ServedModel, caller: Caller) -> None:
        if not caller.may_use(model.names):
            message = f"Your team may not ask the model '{name}'."
            raise ApiError(403, message, code="model_not_allowed", param="model")

    async def _answer(
        self, came: _Came, request: Wish, served: ModelEndpoint, question: GenerationRequest, writer: AnswerWriter
    ) -> Response:
        """The answer to a question: known, or made."""
        if KNOWN_ONLY in came.http.scope:
            return await self._replayed(came, request, served, question, writer)
        admission = await self._quotas.admit(came.caller.team)
        batch = getattr(request, "service_tier", None) == "flex"
        try:
            found = await self._answering.answer(self._asked(came, served, question, admission, batch=batch))
        except BaseException:
            self._end(admission)
            raise
        current.get().note({"dray.cache.result": found.result})
        headers, stream = found.headers | admission.headers, bool(request.stream)
        if found.stored is not None:
            self._end(admission)
            return replay(found.stored, writer, stream, headers)
        assert found.subscriber is not None
        found.subscriber.on_close = lambda: self._end(admission)
        return await self._told(came, found.subscriber, writer, headers, stream=stream)

    async def _replayed(
        self, came: _Came, request: Wish, served: ModelEndpoint, question: GenerationRequest, writer: AnswerWriter
    ) -> Response:
        """The answer where it is stored. Raises NotKnown: nothing has been counted then."""
        asked = self._asked(came, served, question, await self._quotas.admit(None))
        if (known := await self._answering.lookup(asked)) is None:
            raise NotKnown
        admission = await self._quotas.admit(came.caller.team)
        self._end(admission)
        self._log(came, served.model, question)
        found = self._answering.hit(asked, *known)
        current.get().note({"dray.cache.result": found.result})
        return replay(known[1], writer, bool(request.stream), found.headers | admission.headers)

    async def _told(
        self, came: _Came, follower: Subscriber, writer: AnswerWriter, headers: dict[str, str], *, stream: bool
    ) -> Response:
        if stream:
            return await stream_response(follower, writer, headers, self._patience)
        return await complete_response(came.http, follower, writer, headers)

    def _asked(
        self,
        came: _Came,
        served: ModelEndpoint,
        question: GenerationRequest,
        admission: QuotaGrant,
        *,
        batch: bool = False,
    ) -> RequestContext:
        came.http.scope[METRIC_LABELS] = (served.model.name, came.caller.label)
        if KNOWN_ONLY not in came.http.scope:
            self._log(came, served.model, question)
        control = CacheControl.from_headers(came.headers, self._settings.cache.max_ttl_s)
        deadline = came.began + request_timeout_s(came.headers, self._limits.request_timeout_s)
        once = idempotency_key(came.headers)
        return RequestContext(served, question, came.caller, control, came.began, deadline, admission, batch, once)

    def _came(self, http: HttpRequest) -> _Came:
        """Who asks, before anything is read. Raises ApiError 401, and 403 for a key that only administers."""
        headers = headers_of(http)
        caller = self._door.authenticate(headers)
        if caller.admin:
            raise ApiError(403, "An admin key asks no model; use a team's.", code="not_a_teams_key")
        http.scope[METRIC_LABELS] = ("", caller.label)
        return _Came(http, headers, caller, time.perf_counter())

    def _log(self, came: _Came, model: ServedModel, asked: GenerationRequest | list[str]) -> None:
        """Logs what is asked, where the settings say so."""
        if self._settings.log_prompts:
            text = (
                ([turn.content for turn in asked.messages] or asked.prompt)
                if isinstance(asked, GenerationRequest)
                else asked
            )
            log.info("asked", extra={"model": model.name, "team": came.caller.name, "prompt": text})

    def _echo(self, served: ModelEndpoint, prompt: str | tuple[int, ...]) -> str:
        return prompt if isinstance(prompt, str) else served.prompts.decode(prompt, special=True)
