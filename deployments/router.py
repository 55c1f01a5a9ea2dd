"""The ingress: HTTP in the shapes of OpenAI's APIs, one function a route."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

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
from deployments.answers import AnswerCache
from deployments.dispatch import Dispatcher
from deployments.edge import Edge
from deployments.embedding import Embedder
from deployments.engine.wire import Sampling
from deployments.flight import Flight
from deployments.generation import Generation, grammar_for, merged
from deployments.prompts import Prompt, Prompts
from deployments.protocol.asking import template_arguments
from deployments.protocol.chat import chat_question, read_chat
from deployments.protocol.chat_writer import ChatWriter
from deployments.protocol.completions import (
    CompletionWriter,
    completion_questions,
    prompts_of,
    read_completion,
    together,
)
from deployments.protocol.embeddings import embeddings, read_embedding, texts_of
from deployments.protocol.errors import ApiError, invalid
from deployments.protocol.messages import MessagesWriter, anthropic_error, messages_question, read_messages
from deployments.protocol.openapi import document, page
from deployments.protocol.parsing import parse
from deployments.protocol.responses import read_response, response_question
from deployments.protocol.responses_writer import ResponseWriter
from deployments.protocol.tokens import TextSaid, TokensSaid, decode_detokenize, decode_tokenize
from deployments.question import Answer, Delta, Question
from deployments.replies import Patience, Writer, replay, streamed, whole
from deployments.served import Served
from deployments.telemetry import RouterMetrics, configure_logging, exposition

log = logging.getLogger("dray.router")

_LONG_PROMPT_CHARACTERS = 16_384
_READY_S = 2.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_THINKING_FIELDS = {"both": ("reasoning_content", "reasoning")}


@serve.ingress()
class Router:
    """One router replica: everything between the socket and the engines."""

    def __init__(self, args: dict[str, Any]) -> None:
        """args: RouterArgs as JSON has them."""
        given = RouterArgs.model_validate(args)
        self._settings = given.settings
        self._limits = given.settings.limits
        configure_logging(self._settings.log_level)
        self._lacking = ["all"]
        self._metrics = RouterMetrics()
        self._models = open_models(self._settings)
        self._served: dict[str, Served] = {}
        self._embedders: dict[str, Embedder] = {}
        for model in self._models:
            replicas = DeploymentHandle(ENGINE, given.engines[model.name])
            if model.settings.task == "generate":
                self._served |= dict.fromkeys(model.names, self._serve(model, replicas))
            else:
                self._embedders |= dict.fromkeys(model.names, Embedder(model, replicas))
        self._needed = {given.engines[one.name]: one.name for one in self._models if not one.settings.sleep_after_s}
        cache = self._settings.cache
        self._cache = AnswerCache(cache, given.redis_url, self._metrics.cache_faults.inc) if cache.enabled else None
        field = self._settings.router.thinking_field
        self._thinking_fields = _THINKING_FIELDS.get(field, (field,))
        self._patience = Patience(self._settings.router.keep_alive_s, self._limits.client_stall_s)

    def _serve(self, model: ServedModel, engines: DeploymentHandle) -> Served:
        dispatcher = Dispatcher(engines, self._metrics.carried_on.labels(model.name).inc)
        return Served(model, model.fingerprint, Prompts(model), dispatcher)

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
                Route("/openapi.json", self.openapi),
                Route("/docs", self.docs),
                Route("/health/live", self.live),
                Route("/health/ready", self.ready),
                Route("/metrics", self.metrics),
            ],
            middleware=[Middleware(Edge, metrics=self._metrics)],
            exception_handlers={
                ApiError: self._refused,
                HTTPException: self._refused_by_starlette,
                Exception: self._failed,
            },
        )

    async def chat_completions(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions"""
        began = time.perf_counter()
        request = read_chat(await self._body(http), self._limits)
        served = self._named(request.model)
        question = chat_question(request, served.model, self._limits)
        writer = ChatWriter(request, served.name, self._thinking_fields)
        return await self._answer(http, served, question, writer, began, stream=bool(request.stream))

    async def completions(self, http: HttpRequest) -> Response:
        """POST /v1/completions"""
        began = time.perf_counter()
        request = read_completion(await self._body(http), self._limits)
        served = self._named(request.model)
        questions = completion_questions(request, served.model, self._limits)
        echo = [self._echo(served, prompt) if request.echo else "" for prompt in prompts_of(request)]
        writer = CompletionWriter(request, served.name, echo)
        if len(questions) == 1:
            return await self._answer(http, served, questions[0], writer, began, stream=bool(request.stream))
        flight = await self._several(served, questions, began)
        headers = {"X-Dray-Cache": "bypass"}
        if request.stream:
            return await streamed(flight, writer, headers, self._patience)
        return await whole(http, flight, writer, headers)

    async def responses(self, http: HttpRequest) -> Response:
        """POST /v1/responses"""
        began = time.perf_counter()
        request = read_response(await self._body(http), self._limits)
        served = self._named(request.model)
        question = response_question(request, served.model, self._limits)
        return await self._answer(http, served, question, ResponseWriter(request), began, stream=bool(request.stream))

    async def messages(self, http: HttpRequest) -> Response:
        """POST /v1/messages"""
        began = time.perf_counter()
        request = read_messages(await self._body(http), self._limits)
        served = self._named(request.model)
        question = messages_question(request, served.model, self._limits)
        return await self._answer(http, served, question, MessagesWriter(request), began, stream=bool(request.stream))

    async def embeddings(self, http: HttpRequest) -> Response:
        """POST /v1/embeddings"""
        request = read_embedding(await self._body(http), self._limits)
        if (embedder := self._embedders.get(request.model)) is None:
            raise self._unknown(request.model, "no embedding model" if request.model in self._served else "not served")
        texts = texts_of(request)
        tokens = await asyncio.to_thread(embedder.count, texts)
        vectors = await embedder.embed(texts, self._limits.request_timeout_s)
        return _json(embeddings(request, vectors, tokens))

    async def tokenize(self, http: HttpRequest) -> Response:
        """POST /tokenize"""
        request = parse(decode_tokenize, await self._body(http))
        served = self._named(request.model)
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
        request = parse(decode_detokenize, await self._body(http))
        served = self._named(request.model)
        if any(number >= served.prompts.vocabulary.size for number in request.tokens):
            raise invalid("tokens", "A token id is outside the model's vocabulary.")
        return _json(TextSaid(await asyncio.to_thread(served.prompts.decode, request.tokens, special=True)))

    async def models(self, http: HttpRequest) -> Response:
        """GET /v1/models"""
        return _json({"object": "list", "data": [_described(model) for model in self._models]})

    async def model(self, http: HttpRequest) -> Response:
        """GET /v1/models/{name}"""
        name = http.path_params["name"]
        found = next((model for model in self._models if name in model.names), None)
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

    def _named(self, name: str) -> Served:
        if (served := self._served.get(name)) is None:
            raise self._unknown(name, "an embedding model" if name in self._embedders else "not served")
        return served

    @staticmethod
    def _unknown(name: str, what: str) -> ApiError:
        message = f"The model '{name}' is {what} here; GET /v1/models lists those that are served."
        return ApiError(404, message, code="model_not_found", param="model")

    async def _answer(
        self, http: HttpRequest, served: Served, question: Question, writer: Writer, began: float, *, stream: bool
    ) -> Response:
        """The answer to a question: from the cache, or made."""
        key = self._cache.key(served.subject, question) if self._cache else ""
        if self._cache and (known := await self._cache.get(key)):
            self._metrics.count_answer(served.model.name, known.usage, "hit", time.perf_counter() - began)
            headers = {"X-Dray-Cache": "hit", "Age": str(max(0, int(time.time() - known.made)))}
            return replay(known, writer, stream, headers)
        generation = await self._generation(served, question, began)
        result = "miss" if self._cache else "bypass"

        async def landed() -> Answer:
            answer = generation.answer
            assert answer is not None
            self._count(generation, answer, result, began)
            if self._cache and self._cache.keeps(question, answer):
                await self._cache.put(key, answer)
            return answer

        flight = Flight(generation.deltas(), landed)
        headers = {"X-Dray-Cache": result}
        if stream:
            return await streamed(flight, writer, headers, self._patience)
        return await whole(http, flight, writer, headers)

    async def _several(self, served: Served, questions: list[Question], began: float) -> Flight:
        """Several questions answered as one, the choices of each behind those of the one before."""
        generations = [await self._generation(served, question, began) for question in questions]
        each = questions[0].choices

        async def moved(place: int, source: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
            async for delta in source:
                yield msgspec.structs.replace(delta, choice=place * each + delta.choice)

        async def landed() -> Answer:
            answers = [generation.answer for generation in generations if generation.answer is not None]
            for generation, answer in zip(generations, answers, strict=True):
                self._count(generation, answer, "bypass", began)
            return together(answers)

        sources = [moved(place, generation.deltas()) for place, generation in enumerate(generations)]
        return Flight(merged(sources), landed)

    async def _generation(self, served: Served, question: Question, began: float) -> Generation:
        grammar = grammar_for(question, served, self._limits.schema_parts)
        prompt = await self._prompt(served, question)
        return Generation(question, prompt, grammar, served, began + self._limits.request_timeout_s)

    async def _prompt(self, served: Served, question: Question) -> Prompt:
        # Long prompts take the tokenizer milliseconds; the event loop has other streams to serve meanwhile.
        size = sum(len(turn.content) for turn in question.turns) + len(question.prompt)
        if size > _LONG_PROMPT_CHARACTERS:
            return await asyncio.to_thread(served.prompts.render, question)
        return served.prompts.render(question)

    def _count(self, generation: Generation, answer: Answer, result: str, began: float) -> None:
        model, usage, counted = generation.served.model.name, answer.usage, self._metrics
        counted.time_to_first_token.labels(model).observe(generation.first - began)
        if usage.completion > 1:
            per_token = (generation.last - generation.first) / (usage.completion - 1)
            counted.time_per_output_token.labels(model).observe(per_token)
        counted.count_answer(model, usage, result, time.perf_counter() - began)

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
