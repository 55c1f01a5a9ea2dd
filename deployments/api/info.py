"""The routes that only look: which models there are, the API's description, health, metrics."""

import asyncio
import logging
from typing import Any

from ray import serve
from ray.exceptions import RayError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from cluster.models.folder import ServedModel
from cluster.serve_config import ENGINE, PAGE_PREFIX
from deployments.api.http import json_response
from deployments.api.protocol.openapi import document, page
from deployments.common.errors import ApiError
from deployments.observability.metrics import METRICS_TYPE, exposition
from deployments.tenancy.auth import Authenticator

log = logging.getLogger("dray.router")

_READY_S = 2.0


class InfoApi:
    """What there is, for clients and for probes."""

    def __init__(self, models: list[ServedModel], needed: dict[str, str], door: Authenticator) -> None:
        """needed: of the models that never sleep, their names by engine application."""
        self._models = models
        self._needed = needed
        self._door = door
        self._lacking = ["all"]

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
            Route(PAGE_PREFIX, self.chat),
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/metrics", self.metrics),
        ]

    async def models(self, http: HttpRequest) -> Response:
        """GET /v1/models"""
        caller = self._door.authenticate(http.headers)
        allowed = [model for model in self._models if caller.may_use(model.names)]
        return json_response({"object": "list", "data": [_described(model) for model in allowed]})

    async def model(self, http: HttpRequest) -> Response:
        """GET /v1/models/{name}"""
        name, caller = http.path_params["name"], self._door.authenticate(http.headers)
        found = next((one for one in self._models if name in one.names and caller.may_use(one.names)), None)
        if found is None:
            raise model_not_found(name)
        return json_response(_described(found))

    async def openapi(self, http: HttpRequest) -> Response:
        """GET /openapi.json"""
        return json_response(document())

    async def docs(self, http: HttpRequest) -> Response:
        """GET /docs: the same for people."""
        return Response(page(), media_type="text/html")

    async def chat(self, http: HttpRequest) -> Response:
        """GET /chat, where Serve runs no application of that prefix."""
        message = "There is no chat page here: it needs the extra `page` (pip install 'dray[page]') and page: true."
        raise ApiError(404, message, code="no_chat_page")

    async def live(self, http: HttpRequest) -> Response:
        """GET /health/live: this router's process answers."""
        return json_response({"status": "ok"})

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
        return json_response({"status": "ok"})

    async def metrics(self, http: HttpRequest) -> Response:
        """GET /metrics: every Dray process of this node, for Prometheus."""
        return Response(await asyncio.to_thread(exposition), media_type=METRICS_TYPE)


def model_not_found(name: str, what: str = "not served") -> ApiError:
    """404 for a model. what: it is that, here."""
    message = f"The model '{name}' is {what} here; GET /v1/models lists those that are served."
    return ApiError(404, message, code="model_not_found", param="model")


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
