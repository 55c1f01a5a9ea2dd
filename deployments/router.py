"""The ingress: HTTP in OpenAI's shapes, one function a route."""

import asyncio
import datetime
import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.models.folder import ServedModel, open_models
from cluster.serve_config import ENGINE, RouterArgs
from deployments.answers import Answer, AnswerCache
from deployments.dispatch import Dispatcher
from deployments.engine.wire import Sampling
from deployments.generation import STREAM_HEADERS, Generation, identity, write_stream
from deployments.prompts import Prompts
from deployments.protocol import ApiError, ChatRequest, completion, parse_chat
from deployments.telemetry import RouterMetrics, configure_logging, exposition

log = logging.getLogger("dray.router")

_LONG_PROMPT_BYTES = 16_384
_READY_S = 2.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Served:
    """A model as a router serves it."""

    model: ServedModel
    fingerprint: str
    prompts: Prompts
    dispatcher: Dispatcher

    @property
    def name(self) -> str:
        """The exact model, as clients are told it in `system_fingerprint`."""
        return f"fp_{self.fingerprint[:12]}"

    @property
    def subject(self) -> str:
        """What an answer of this model depends on beside the request: the exact model; the date, if it is told it."""
        return self.fingerprint + (datetime.date.today().isoformat() if self.prompts.reads_clock else "")

    def describe(self) -> dict[str, Any]:
        """The entry of GET /v1/models."""
        model = self.model
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "dray",
            "max_model_len": model.context_tokens,
            "aliases": model.settings.aliases,
        }


@serve.ingress()
class Router:
    """One router replica: everything between the socket and the engines."""

    def __init__(self, args: dict[str, Any]) -> None:
        """args: RouterArgs as JSON has them."""
        given = RouterArgs.model_validate(args)
        self._settings = given.settings
        configure_logging(self._settings.log_level)
        self._lacking = ["all"]
        self._metrics = RouterMetrics()
        self._served = [
            Served(
                model,
                model.fingerprint,
                Prompts(model),
                Dispatcher(
                    DeploymentHandle(ENGINE, given.engines[model.name]),
                    self._metrics.carried_on.labels(model.name).inc,
                ),
            )
            for model in open_models(self._settings)
        ]
        self._by_name = {name: served for served in self._served for name in served.model.names}
        self._needed = {
            given.engines[one.model.name]: one.model.name
            for one in self._served
            if not one.model.settings.sleep_after_s
        }
        cache = self._settings.cache
        self._cache = AnswerCache(cache, given.redis_url, self._metrics.cache_faults.inc) if cache.enabled else None

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health/live", self.live),
                Route("/health/ready", self.ready),
                Route("/metrics", self.metrics),
            ],
            exception_handlers={
                ApiError: self._refused,
                HTTPException: self._refused_by_starlette,
                Exception: self._failed,
            },
        )

    async def chat_completions(self, http: HttpRequest) -> Response:
        """POST /v1/chat/completions"""
        began = time.perf_counter()
        body = await read_body(http, self._settings.limits.body_bytes)
        request = parse_chat(body, self._settings.limits)
        served = self._named(request.model)
        sampling = sampling_for(request, served.model, self._settings.limits.output_tokens)
        key = self._cache.key(served.subject, request, sampling) if self._cache else ""
        if self._cache and (known := await self._cache.get(key)):
            return self._replay(request, served, known, began)
        # Long prompts take the tokenizer milliseconds; the event loop has other streams to serve meanwhile.
        prompt = (
            await asyncio.to_thread(served.prompts.render, request.messages)
            if len(body) > _LONG_PROMPT_BYTES
            else served.prompts.render(request.messages)
        )
        room = served.model.context_tokens - len(prompt.ids)
        sampling = msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, room))
        generation = Generation(
            request=request,
            fingerprint=served.name,
            prompt=prompt,
            sampling=sampling,
            reader=served.prompts.reader(prompt, request.stop_strings),
            dispatcher=served.dispatcher,
            metrics=self._metrics,
            timeout_s=self._settings.limits.request_timeout_s,
            began=began,
            cache=self._cache,
            key=key,
        )
        return await (generation.streamed() if request.stream else generation.whole(http))

    async def models(self, http: HttpRequest) -> Response:
        """GET /v1/models"""
        return self._json(http, {"object": "list", "data": [served.describe() for served in self._served]})

    async def model(self, http: HttpRequest) -> Response:
        """GET /v1/models/{name}"""
        return self._json(http, self._named(http.path_params["name"]).describe())

    async def live(self, http: HttpRequest) -> Response:
        """GET /health/live: this router's process answers."""
        return self._json(http, {"status": "ok"})

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
        return self._json(http, {"status": "ok"})

    async def metrics(self, http: HttpRequest) -> Response:
        """GET /metrics: every Dray process of this node, for Prometheus."""
        return Response(await asyncio.to_thread(exposition), media_type=_METRICS_TYPE)

    def _named(self, name: str) -> Served:
        if (served := self._by_name.get(name)) is None:
            raise ApiError(
                404,
                f"The model '{name}' is not served here; GET /v1/models lists those that are.",
                code="model_not_found",
                param="model",
            )
        return served

    def _replay(self, request: ChatRequest, served: Served, known: Answer, began: float) -> Response:
        headers = {"X-Dray-Cache": "hit", "Age": str(max(0, int(time.time() - known.made)))}
        self._metrics.count_answer(request.model, known.usage, "hit", time.perf_counter() - began)
        if request.stream:
            writer = write_stream(request, served.name)
            events = (
                writer.opening() + writer.delta(known.reasoning, known.text) + writer.closing(known.finish, known.usage)
            )
            return Response(events, media_type="text/event-stream", headers=headers | STREAM_HEADERS)
        body = completion(
            identity(), request.model, served.name, known.reasoning, known.text, known.finish, known.usage
        )
        return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)

    def _json(self, http: HttpRequest, body: dict[str, Any]) -> Response:
        self._metrics.requests.labels(http.scope["route"].path, "200").inc()
        return Response(msgspec.json.encode(body), media_type="application/json")

    def _refused(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        route = http.scope.get("route")
        self._metrics.requests.labels(route.path if route else "unknown", str(error.status)).inc()
        return Response(
            msgspec.json.encode(error.body),
            status_code=error.status,
            media_type="application/json",
            headers=error.headers,
        )

    def _refused_by_starlette(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{http.method} {http.url.path}"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        text = {404: f"Unknown request URL: {what}.", 405: f"Not allowed to {what}."}.get(
            error.status_code, error.detail
        )
        refused = ApiError(error.status_code, text, code=code)
        refused.headers.update(error.headers or {})
        return self._refused(http, refused)

    def _failed(self, http: HttpRequest, error: Exception) -> Response:
        log.error("request failed", exc_info=error)
        return self._refused(
            http,
            ApiError(500, "The server failed on this request.", code="internal_error", kind="server_error"),
        )


def sampling_for(request: ChatRequest, model: ServedModel, most: int) -> Sampling:
    """The request's sampling, with the model's recommendations where it says nothing. most: completion tokens."""
    advised = model.generation_defaults
    greedy = not advised.get("do_sample", False)
    temperature = request.temperature
    if temperature is None:
        temperature = 0.0 if greedy else float(advised.get("temperature", 1.0))
    top_p = request.top_p if request.top_p is not None else float(advised.get("top_p") or 1.0)
    wish = min(request.token_wish or most, most)
    if temperature == 0:
        return Sampling(wish)  # greedy: top_p and seed change nothing, so they make no other answer
    return Sampling(wish, temperature, top_p, request.seed)


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
