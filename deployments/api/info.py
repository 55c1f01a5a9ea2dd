"""The routes that only inform: models, the API's description, health, metrics."""

import asyncio
import logging
import os
import shutil
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import msgspec
from ray import serve
from ray.exceptions import RayError
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cluster.models.folder import ServedModel
from cluster.serve_config import CONSOLE_PATH, ENGINE, PAGE_PREFIX, has_page
from cluster.settings import Settings
from cluster.units import format_bytes
from deployments.api.http import json_response
from deployments.api.models import RoutedModel, model_not_found
from deployments.api.pacing import Paced, Shared
from deployments.api.protocol.common import default_temperature
from deployments.api.protocol.openapi import document
from deployments.api.protocol.openapi_page import content_security_policy, page
from deployments.api.static import StaticBody
from deployments.common.errors import ApiError
from deployments.observability.metrics import METRICS_TYPE, exposition
from deployments.tenancy.auth import Authenticator

log = logging.getLogger("dray.router")

_LITTLE_SPACE = 64 * 2**20
_CONTROLLER_TIMEOUT_S = 2.0


class InfoApi:
    """What a router serves and how it is, for clients and probes."""

    def __init__(
        self,
        settings: Settings,
        models: list[ServedModel],
        routed: list[RoutedModel],
        needed: dict[str, str],
        authenticator: Authenticator,
    ) -> None:
        """routed: models that others answer for. needed: models that never sleep, by the application of their engines;
        without one the router is not ready."""
        self._models = models
        self._routed = routed
        self._has_page = has_page(settings)
        self._start = PAGE_PREFIX if self._has_page else "/docs"
        self._needed = needed
        self._authenticator = authenticator
        self._last_report = ["all"]
        self._missing = Shared(self._ask_controller)
        expose = partial(exposition, vllm_names=settings.metrics.vllm_names)
        self._exposition = Paced(partial(asyncio.to_thread, expose))

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
            Route("/", self.root),
            Route(PAGE_PREFIX, self.chat),
            Route(CONSOLE_PATH, self.console),
            Route("/health", self.ready),
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/ping", self.live),
            Route("/version", self.version),
        ]

    async def models(self, http: HttpRequest) -> Response:
        """GET /v1/models"""
        caller = self._authenticator.authenticate(http.headers)
        allowed = [_entry(model) for model in self._models if caller.may_use(model.names)]
        allowed += [_routed_entry(model) for model in self._routed if caller.may_use(model.names)]
        return json_response({"object": "list", "data": allowed})

    async def model(self, http: HttpRequest) -> Response:
        """GET /v1/models/{name}"""
        name, caller = http.path_params["name"], self._authenticator.authenticate(http.headers)
        for model in self._models:
            if name in model.names and caller.may_use(model.names):
                return json_response(_entry(model))
        for routed in self._routed:
            if name in routed.names and caller.may_use(routed.names):
                return json_response(_routed_entry(routed))
        raise model_not_found(name)

    async def openapi(self, http: HttpRequest) -> Response:
        """GET /openapi.json"""
        return described("application/json").answer(http)

    async def docs(self, http: HttpRequest) -> Response:
        """GET /docs: the OpenAPI description as a page."""
        return described("text/html").answer(http)

    async def root(self, http: HttpRequest) -> Response:
        """GET /: a page for whoever opens the bare address."""
        return RedirectResponse(f"{http.scope.get('root_path', '')}{self._start}")

    async def chat(self, http: HttpRequest) -> Response:
        """GET /chat, if Serve runs no application with that prefix."""
        message = "No pages are served here: they need page: true and gradio; `dray doctor` says how to install it."
        raise ApiError(404, message, code="no_chat_page")

    async def console(self, http: HttpRequest) -> Response:
        """GET /console: it is a page of the chat page's application."""
        if not self._has_page:
            return await self.chat(http)
        return RedirectResponse(f"{http.scope.get('root_path', '')}{PAGE_PREFIX}{CONSOLE_PATH}/")

    async def live(self, http: HttpRequest) -> Response:
        """GET /health/live, /ping: this router's process responds."""
        return json_response({"status": "ok"})

    async def ready(self, http: HttpRequest) -> Response:
        """GET /health/ready, /health: every model has a running replica, or sleeps. The cache does not matter."""
        if missing := ", ".join(await self._missing.value()):
            raise ApiError(503, f"No running engine replica of {missing}.", code="not_ready", kind="server_error")
        # A full disk stops no request, so it is no reason to send them elsewhere.
        metrics = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        warnings = disk_warnings(Path(metrics)) if metrics else []
        return json_response({"status": "ok", "warnings": warnings} if warnings else {"status": "ok"})

    async def version(self, http: HttpRequest) -> Response:
        """GET /version: Dray's."""
        return json_response({"version": version("dray")})

    async def _ask_controller(self) -> list[str]:
        try:
            async with asyncio.timeout(_CONTROLLER_TIMEOUT_S):
                self._last_report = await asyncio.to_thread(models_without_replicas, self._needed)
        except (TimeoutError, RayError):
            # As while the head node restarts. Its last report still holds.
            log.warning("the Serve controller does not answer")
        return self._last_report

    async def metrics(self, http: HttpRequest) -> Response:
        """GET /metrics: every Dray process of this node, for Prometheus."""
        return Response(await self._exposition.value(), media_type=METRICS_TYPE)


@cache
def described(media_type: str) -> StaticBody:
    """The API's description, which never changes while the process lives: made once, when it is first wanted."""
    if media_type == "text/html":
        return StaticBody(page().encode(), media_type, {"Content-Security-Policy": content_security_policy()})
    return StaticBody(msgspec.json.encode(document()), media_type)


def disk_warnings(folder: Path) -> list[str]:
    """Says if the disk of the folder is almost full; then logs end, and changes of teams and keys are not kept."""
    free = shutil.disk_usage(folder).free
    return [f"The disk of {folder} has only {format_bytes(free)} free. Make room."] if free < _LITTLE_SPACE else []


def models_without_replicas(engines: dict[str, str]) -> list[str]:
    """Models without a running replica, as the Serve controller reports. engines: models by engine application."""
    applications = serve.status().applications
    return [
        model
        for name, model in engines.items()
        if name not in applications or not applications[name].deployments[ENGINE].replica_states.get("RUNNING")
    ]


def _entry(model: ServedModel) -> dict[str, object]:
    """A model's entry in GET /v1/models."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "dray",
        "task": model.settings.task,
        "max_model_len": model.context_tokens,
        "aliases": list(model.settings.aliases),
        "default_parameters": {
            "temperature": default_temperature(model),
            "top_p": float(model.generation_defaults.get("top_p") or 1.0),
        },
    }


def _routed_entry(routed: RoutedModel) -> dict[str, object]:
    """The same for one that others answer for. A prompt that is too long for the others goes to the default."""
    entry = {"id": routed.name, "aliases": list(routed.settings.aliases), "routes_to": routed.targets}
    return _entry(routed.default.model) | entry
