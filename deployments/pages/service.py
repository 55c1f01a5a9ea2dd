"""The Serve application of the chat page: gradio under /chat, and of its routes only those that the page needs."""

import os
from contextlib import AbstractAsyncContextManager
from typing import Any

from ray import serve
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.launch.import_guard import allow_pandas
from cluster.serve_config import PAGE, PageArgs
from deployments.api.http import http_error
from deployments.observability.logs import configure_logging

_NEEDED = (
    "/",
    "/config",
    "/theme.css",
    "/assets/{path:path}",
    "/static/{path:path}",
    "/gradio_api/heartbeat/{session}",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/run/predict",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/app_id",
)
"""gradio has more: uploads without a bound, a proxy, an editor of its own code."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "frame-ancestors 'self'"
)
"""Whatever a model writes into its answer, no browser asks another host for it."""


@serve.ingress()
class Page:
    """One replica: the conversations of all browsers are in its memory while they are open."""

    def __init__(self, args: dict[str, Any]) -> None:
        """args: PageArgs as JSON has them."""
        self._given = PageArgs.model_validate(args)
        configure_logging(self._given.log_level)

    def __serve_build_asgi_app__(self) -> Starlette:
        # Read by gradio when it is imported; it would ask its makers for its newest version.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        allow_pandas()
        from deployments.pages.chat import gradio_app

        gradio = gradio_app(self._given.api_url)

        def lifespan(app: Starlette) -> AbstractAsyncContextManager[Any]:
            return gradio.router.lifespan_context(gradio)

        return Starlette(
            routes=[Route(path, gradio, max_body_size=self._given.body_bytes) for path in _NEEDED],
            middleware=[Middleware(_Policy)],
            exception_handlers={HTTPException: http_error},
            lifespan=lifespan,
        )


class _Policy:
    """ASGI middleware that tells browsers what the page may load."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            await send(message)

        await self._app(scope, receive, send_with_policy)


def page(args: dict[str, Any]) -> Any:
    """The application that a Serve config names. args: PageArgs as JSON has them."""
    return serve.deployment(Page).options(name=PAGE).bind(args)
