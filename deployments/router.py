"""The ingress: HTTP in the shapes of OpenAI's APIs, one function a route."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.models.folder import ServedModel, open_models
from cluster.serve_config import ENGINE, RouterArgs
from deployments.admin import Admin
from deployments.answering import Answering, Asked
from deployments.answers import AnswerCache, CacheControl
from deployments.dispatch import Dispatcher
from deployments.edge import Edge
from deployments.embedding import Embedder
from deployments.engine.wire import Sampling
from deployments.fair import FairQueue
from deployments.flight import Follower
from deployments.near import Near
from deployments.prompts import Prompts
from deployments.protocol.asking import template_arguments
from deployments.protocol.chat import chat_question, read_chat
from deployments.protocol.chat_writer import ChatWriter
from deployments.protocol.completions import (
    CompletionWriter,
    completion_questions,
    prompts_of,
    read_completion,
)
from deployments.protocol.embeddings import embeddings, read_embedding, texts_of
from deployments.protocol.errors import ApiError, invalid
from deployments.protocol.messages import MessagesWriter, anthropic_error, messages_question, read_messages
from deployments.protocol.openapi import document, page
from deployments.protocol.parsing import parse
from deployments.protocol.responses import read_response, response_question
from deployments.protocol.responses_writer import ResponseWriter
from deployments.protocol.tokens import TextSaid, TokensSaid, decode_detokenize, decode_tokenize
from deployments.question import Question, Usage
from deployments.quotas import Admission, Quotas
from deployments.replies import Patience, Writer, replay, streamed, whole
from deployments.served import Served
from deployments.store import Store
from deployments.teams import Caller, Doorkeeper
from deployments.telemetry import RouterMetrics, configure_logging, exposition
from deployments.usage import UsageBook

log = logging.getLogger("dray.router")

_READY_S = 2.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Wish(Protocol):
    """What every request for an answer says beside its question."""

    @property
    def stream(self) -> bool | None: ...


@dataclass(frozen=True, slots=True)
class _Came:
    """A request that came, from whom, and when on the clock of time.perf_counter."""

    http: HttpRequest
    caller: Caller
    began: float


_THINKING_FIELDS = {"both": ("reasoning_content", "reasoning")}


@serve.ingress()
class Router:
    """One router replica: everything between the socket and the engines."""

    def __init__(self, args: dict[str, Any]) -> None:
        """args: RouterArgs as JSON has them."""
        given = RouterArgs.model_validate(args)
        self._settings = settings = given.settings
        self._limits = settings.limits
        configure_logging(settings.log_level)
        self._lacking = ["all"]
        self._metrics = RouterMetrics()
        teams = Store("teams", given.teams_url, settings.teams.timeout_s, self._metrics.watchers("teams"))
        self._door = Doorkeeper(teams, settings.host, settings.cache.namespace)
        self._quotas = Quotas(teams, settings.router.replicas)
        self._usage = UsageBook(teams)
        self._admin = Admin(self._door, self._usage, given.teams_url)
        self._stores = [teams]
        self._tasks: set[asyncio.Task[None]] = set()
        self._models = open_models(settings)
        self._served: dict[str, Served] = {}
        self._embedders: dict[str, Embedder] = {}
        for model in self._models:
            replicas = DeploymentHandle(ENGINE, given.engines[model.name])
            if model.settings.task == "generate":
                self._served |= dict.fromkeys(model.names, self._serve(model, replicas))
            else:
                self._embedders |= dict.fromkeys(model.names, Embedder(model, replicas))
        cache, kept, near = settings.cache, None, None
        if cache.enabled:
            answers = Store("answers", given.redis_url, cache.timeout_s, self._metrics.watchers("answers"))
            self._stores.append(answers)
            kept = AnswerCache(cache, answers)
            near = Near(cache, answers, self._embedders[cache.similar]) if cache.similar else None
        self._answering = Answering(kept, near, self._metrics, self._usage, self._limits)
        self._needed = {given.engines[one.name]: one.name for one in self._models if not one.settings.sleep_after_s}
        field = settings.router.thinking_field
        self._thinking_fields = _THINKING_FIELDS.get(field, (field,))
        self._patience = Patience(settings.router.keep_alive_s, self._limits.client_stall_s)

    def _serve(self, model: ServedModel, engines: DeploymentHandle) -> Served:
        dispatcher = Dispatcher(engines, self._metrics.carried_on.labels(model.name).inc)
        # Each router fills its share of the engines' places; what is beyond them waits in turn, here.
        routers, replicas = self._settings.router.replicas, model.settings.replicas
        places = math.ceil(replicas * model.settings.max_running / routers)
        # A quarter of a step: what is handed over stands before whoever comes next.
        prompts = math.ceil(replicas * model.settings.max_batched_tokens / 4 / routers)
        queue = FairQueue(places, math.ceil(replicas * self._limits.waiting / routers), prompts)
        return Served(model, model.fingerprint, Prompts(model), dispatcher, queue)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """What goes on beside the requests."""
        self._later(self._door.keep_up())
        self._later(self._usage.keep_telling())
        self._later(self._quotas.keep_renewing())
        yield
        for task in tuple(self._tasks):
            task.cancel()
        await self._usage.tell()
        for store in self._stores:
            await store.close()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/responses", self.responses, methods=["POST"]),
                Route("/v1/messages", self.messages, methods=["POST"]),
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/v1/usage", self._admin.usage),
                *self._admin.routes(),
                Route("/openapi.json", self.openapi),
                Route("/docs", self.docs),
                Route("/health/live", self.live),
                Route("/health/ready", self.ready),
                Route("/metrics", self.metrics),
            ],
            middleware=[Middleware(Edge, metrics=self._metrics)],
            lifespan=self._lifespan,
            exception_handlers={
                ApiError: self._refused,
                HTTPException: self._refused_by_starlette,
                Exception: self._failed,
            },
        )

    async def chat_completions(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions"""
        came = self._came(http)
        request = read_chat(await self._body(http), self._limits)
        served = self._named(request.model, came.caller)
        question = chat_question(request, served.model, self._limits)
        writer = ChatWriter(request, served.name, self._thinking_fields)
        return await self._answer(came, request, served, question, writer)

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions"""
        came = self._came(http)
        request = read_completion(await self._body(http), self._limits)
        served = self._named(request.model, came.caller)
        questions = completion_questions(request, served.model, self._limits)
        echo = [self._echo(served, prompt) if request.echo else "" for prompt in prompts_of(request)]
        writer = CompletionWriter(request, served.name, echo)
        if len(questions) == 1:
            return await self._answer(came, request, served, questions[0], writer)
        admission = await self._quotas.admit(came.caller.team)
        try:
            follower = await self._answering.several([self._asked(came, served, one, admission) for one in questions])
        except BaseException:
            self._later(admission.end())
            raise
        follower.on_left = lambda: self._later(admission.end())
        headers = {"X-Dray-Cache": "bypass"} | admission.headers
        return await self._told(came, follower, writer, headers, stream=bool(request.stream))

    async def responses(self, http: HttpRequest) -> Response:
        """POST /v1/responses"""
        came = self._came(http)
        request = read_response(await self._body(http), self._limits)
        served = self._named(request.model, came.caller)
        question = response_question(request, served.model, self._limits)
        return await self._answer(came, request, served, question, ResponseWriter(request))

    async def messages(self, http: HttpRequest) -> Response:
        """POST /v1/messages"""
        came = self._came(http)
        request = read_messages(await self._body(http), self._limits)
        served = self._named(request.model, came.caller)
        question = messages_question(request, served.model, self._limits)
        return await self._answer(came, request, served, question, MessagesWriter(request))

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /v1/embeddings"""
        caller = self._came(http).caller
        request = read_embedding(await self._body(http), self._limits)
        if (embedder := self._embedders.get(request.model)) is None:
            raise self._unknown(request.model, "no embedding model" if request.model in self._served else "not served")
        self._allowed(request.model, embedder.model, caller)
        texts = texts_of(request)
        tokens = await asyncio.to_thread(embedder.count, texts)
        admission = await self._quotas.admit(caller.team)
        try:
            await admission.reserve(tokens)
            vectors = await embedder.embed(texts, self._limits.request_timeout_s)
        finally:
            self._later(admission.end())
        if caller.team is not None:
            self._usage.count(caller.name, embedder.model.name, Usage(tokens, 0, 0, 0), made=True)
        return _json(embeddings(request, vectors, tokens), headers=admission.headers)

    async def tokenize(self, http: HttpRequest) -> Response:
        """POST /tokenize"""
        caller = self._came(http).caller
        request = parse(decode_tokenize, await self._body(http))
        served = self._named(request.model, caller)
        if (request.prompt is None) == (request.messages is None):
            raise invalid("prompt", "Send either prompt or messages.")
        arguments = template_arguments(request.chat_template_kwargs, None, self._limits)
        turns = tuple(message.turn() for message in request.messages or ())
        text = served.prompts.text(Question(turns, Sampling(1), template=arguments)) if turns else request.prompt or ""
        ids = await asyncio.to_thread(served.prompts.encode, text, special=request.add_special_tokens and not turns)
        told = [served.prompts.decode([one], special=True) for one in ids] if request.return_token_strs else None
        return _json(TokensSaid(len(ids), served.model.context_tokens, ids, told))

    async def detokenize(self, http: HttpRequest) -> Response:
        """POST /detokenize"""
        caller = self._came(http).caller
        request = parse(decode_detokenize, await self._body(http))
        served = self._named(request.model, caller)
        if any(number >= served.prompts.vocabulary.size for number in request.tokens):
            raise invalid("tokens", "A token id is outside the model's vocabulary.")
        return _json(TextSaid(await asyncio.to_thread(served.prompts.decode, request.tokens, special=True)))

    async def models(self, http: HttpRequest) -> Response:
        """GET /v1/models"""
        caller = self._door.caller(http.headers)
        allowed = [model for model in self._models if caller.may_ask(model.names)]
        return _json({"object": "list", "data": [_described(model) for model in allowed]})

    async def model(self, http: HttpRequest) -> Response:
        """GET /v1/models/{name}"""
        name, caller = http.path_params["name"], self._door.caller(http.headers)
        found = next((one for one in self._models if name in one.names and caller.may_ask(one.names)), None)
        if found is None:
            raise self._unknown(name, "not served")
        return _json(_described(found))

    async def openapi(self, http: HttpRequest) -> Response:
        """GET /openapi.json"""
        return _json(document())

    async def docs(self, http: HttpRequest) -> Response:
        """GET /docs: the same for people."""
        return Response(page(), media_type="text/html")

    async def live(self, http: HttpRequest) -> Response:
        """GET /health/live: this router's process answers."""
        return _json({"status": "ok"})

    async def ready(self, http: HttpRequest) -> Response:
        """GET /health/ready: every model has a running replica, or sleeps. The cache is no condition."""
        try:
            async with asyncio.timeout(_READY_S):
                self._lacking = await asyncio.to_thread(models_without_replicas, self._needed)
        except (TimeoutError, RayError):
            # The controller is away, as when the head node restarts; what it said last still holds.
            log.warning("the Serve controller does not answer")
        if self._lacking:
            missing = ", ".join(self._lacking)
            raise ApiError(503, f"No running engine replica of {missing}.", code="not_ready", kind="server_error")
        return _json({"status": "ok"})

    async def metrics(self, http: HttpRequest) -> Response:
        """GET /metrics: every Dray process of this node, for Prometheus."""
        return Response(await asyncio.to_thread(exposition), media_type=_METRICS_TYPE)

    async def _body(self, http: HttpRequest) -> bytes:
        kind = http.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise ApiError(415, f"Send the body as application/json, not {kind}.", code="unsupported_media_type")
        return await read_body(http, self._limits.body_bytes)

    def _named(self, name: str, caller: Caller) -> Served:
        if (served := self._served.get(name)) is None:
            raise self._unknown(name, "an embedding model" if name in self._embedders else "not served")
        self._allowed(name, served.model, caller)
        return served

    def _allowed(self, name: str, model: ServedModel, caller: Caller) -> None:
        if not caller.may_ask(model.names):
            message = f"Your team may not ask the model '{name}'."
            raise ApiError(403, message, code="model_not_allowed", param="model")

    @staticmethod
    def _unknown(name: str, what: str) -> ApiError:
        message = f"The model '{name}' is {what} here; GET /v1/models lists those that are served."
        return ApiError(404, message, code="model_not_found", param="model")

    async def _answer(self, came: _Came, request: Wish, served: Served, question: Question, writer: Writer) -> Response:
        """The answer to a question: known, or made."""
        admission = await self._quotas.admit(came.caller.team)
        batch = getattr(request, "service_tier", None) == "flex"
        try:
            found = await self._answering.answer(self._asked(came, served, question, admission, batch=batch))
        except BaseException:
            self._later(admission.end())
            raise
        headers, stream = found.headers | admission.headers, bool(request.stream)
        if found.answer is not None:
            self._later(admission.end())
            return replay(found.answer, writer, stream, headers)
        assert found.follower is not None
        found.follower.on_left = lambda: self._later(admission.end())
        return await self._told(came, found.follower, writer, headers, stream=stream)

    async def _told(
        self, came: _Came, follower: Follower, writer: Writer, headers: dict[str, str], *, stream: bool
    ) -> Response:
        if stream:
            return await streamed(follower, writer, headers, self._patience)
        return await whole(came.http, follower, writer, headers)

    def _asked(
        self, came: _Came, served: Served, question: Question, admission: Admission, *, batch: bool = False
    ) -> Asked:
        control = CacheControl.of(came.http.headers, self._settings.cache.most_ttl_s)
        deadline = came.began + self._limits.request_timeout_s
        return Asked(served, question, came.caller, control, came.began, deadline, admission, batch)

    def _came(self, http: HttpRequest) -> _Came:
        """Who asks, before anything is read. Raises ApiError 401, and 403 for a key that only administers."""
        caller = self._door.caller(http.headers)
        if caller.admin:
            raise ApiError(403, "An admin key asks no model; use a team's.", code="not_a_teams_key")
        return _Came(http, caller, time.perf_counter())

    def _echo(self, served: Served, prompt: str | tuple[int, ...]) -> str:
        return prompt if isinstance(prompt, str) else served.prompts.decode(prompt, special=True)

    def _refused(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        shape = anthropic_error(error) if http.url.path.startswith("/v1/messages") else error.body
        return _json(shape, error.status, error.headers)

    def _refused_by_starlette(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{http.method} {http.url.path}"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        said = {404: f"Unknown request URL: {what}.", 405: f"Not allowed to {what}."}
        refused = ApiError(error.status_code, said.get(error.status_code, error.detail), code=code)
        refused.headers.update(error.headers or {})
        return self._refused(http, refused)

    def _failed(self, http: HttpRequest, error: Exception) -> Response:
        log.error("request failed", exc_info=error)
        return self._refused(
            http,
            ApiError(500, "The server failed on this request.", code="internal_error", kind="server_error"),
        )


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _described(model: ServedModel) -> dict[str, Any]:
    """The entry of GET /v1/models."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "dray",
        "task": model.settings.task,
        "max_model_len": model.context_tokens,
        "aliases": list(model.settings.aliases),
    }


def models_without_replicas(engines: dict[str, str]) -> list[str]:
    """Models that have no running replica, by the controller's word. engines: model names by engine application."""
    applications = serve.status().applications
    return [
        model
        for name, model in engines.items()
        if name not in applications or not applications[name].deployments[ENGINE].replica_states.get("RUNNING")
    ]


async def read_body(http: HttpRequest, most: int) -> bytes:
    """The request's body. Raises ApiError 413 as soon as it is longer than `most` bytes."""
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > most:
            raise ApiError(413, f"The body is larger than {most} bytes.", code="request_too_large")
        parts.append(part)
    return b"".join(parts)
