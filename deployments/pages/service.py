"""The Serve application of the chat page and the console, with only those of gradio's routes that they need.

Both are one application below /chat: Serve gives each application one prefix, and another process would cost as much
memory again. /console leads to the console.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import serve
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster import liveness
from cluster.launch.import_guard import allow_pandas
from cluster.serve_config import CONSOLE_PATH, PAGE, PageArgs
from deployments.api.browser_guard import BrowserGuard, BrowserGuardMiddleware
from deployments.api.http import client_disconnected, http_error, receive_within
from deployments.common.redis import RedisCallbacks, RedisStore
from deployments.common.tasks import TaskSupervisor
from deployments.observability.logs import configure_logging
from deployments.pages.client import ChatClient
from deployments.pages.file_reader import MAX_BYTES
from deployments.pages.file_texts import FILE_LABELS
from deployments.pages.gradio_names import GRADIO_NAMES
from deployments.pages.head import PageHead
from deployments.pages.i18n import LABELS
from deployments.tenancy.auth import Authenticator

_PATHS = (
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
"""Gradio's other routes include unlimited uploads, a proxy, and an editor of its own code."""
_CONSOLE_PATHS = tuple(path for path in _PATHS if "queue" not in path)
_FOLDER = Path(__file__).parent
_CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "frame-ancestors 'self'"
)
"""Whatever a model writes into an answer, the browser loads nothing from another host."""
_TEAMS_TIMEOUT_S = 2.0
_BODY_SHARE = 4
"""An event has the conversation with its thinking, as JSON in JSON, so it is larger than the request to the API, which
refuses in words what is too large."""


@serve.ingress()
class Page:
    """One replica, which has the conversations of all open pages in memory."""

    def __init__(self, args: dict[str, Any]) -> None:
        """args: PageArgs, decoded from JSON."""
        self._args = PageArgs.model_validate(args)
        configure_logging(self._args.log_level)

    def __serve_build_asgi_app__(self) -> Starlette:
        # Gradio reads it on import. Otherwise it would ask its makers' server for the newest version.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        allow_pandas()
        from deployments.pages.chat import gradio_app
        from deployments.pages.console.page import console_app
        from deployments.pages.console.words import WORDS
        from deployments.pages.files import BODY_BYTES, FileApi

        api = ChatClient(self._args.api_url)
        gradio, files = gradio_app(api), FileApi(api)
        console = console_app(self._args.api_url, sign_on=self._args.sign_on)
        labels = {name: asdict(texts) for name, texts in LABELS.items()}
        limits = {"max_bytes": MAX_BYTES}
        chat_words: dict[str, object] = {"status_page": self._args.status_page} | {
            name: {**texts, "file": asdict(FILE_LABELS[name]) | limits, "gradio": GRADIO_NAMES[name]}
            for name, texts in labels.items()
        }
        chat_head = Middleware(PageHead, scripts=[_FOLDER / "chat.js", _FOLDER / "files.js"], words=chat_words)
        console_words: dict[str, object] = {"status_page": self._args.status_page} | {
            name: {**texts, **WORDS[name]} for name, texts in labels.items()
        }
        console_head = Middleware(PageHead, scripts=[_FOLDER / "console" / "console.js"], words=console_words)

        middleware = [
            chat_head,
            Middleware(_ContentPolicy),
            Middleware(_ReceiveTimeout, timeout_s=self._args.receive_timeout_s),
        ]
        store = None
        if teams_url := self._args.redis_of_keys(os.environ):
            callbacks = RedisCallbacks(lambda: None, lambda is_open: None)
            store = RedisStore("teams", teams_url, _TEAMS_TIMEOUT_S, callbacks)
            authenticator = Authenticator(store, self._args.host, "")
            guard = BrowserGuard(authenticator, self._args.host, self._args.allowed_hosts)
            middleware.append(Middleware(BrowserGuardMiddleware, guard=guard))

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            tasks = TaskSupervisor()
            if folder := os.environ.get(liveness.FOLDER):
                tasks.supervise("show life", lambda: liveness.show_life(Path(folder)))
            if store is not None:
                tasks.supervise("refresh teams and keys", authenticator.refresh_forever)
            async with gradio.router.lifespan_context(gradio), console.router.lifespan_context(console):
                yield
            await tasks.close()
            await api.close()
            if store is not None:
                await store.close()

        size = self._args.body_bytes
        console_routes = [Route(path, console, max_body_size=size) for path in _CONSOLE_PATHS]
        return Starlette(
            routes=[
                *(Route(path, gradio, max_body_size=_BODY_SHARE * size) for path in _PATHS),
                Route("/file", files.read, methods=["POST"], max_body_size=BODY_BYTES),
                Mount(CONSOLE_PATH, routes=console_routes, middleware=[console_head]),
            ],
            middleware=middleware,
            exception_handlers={HTTPException: http_error, ClientDisconnect: client_disconnected},
            lifespan=lifespan,
        )


class _ContentPolicy:
    """ASGI middleware that tells browsers what the page may load."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _CONTENT_POLICY
            await send(message)

        await self._app(scope, receive, send_with_policy)


class _ReceiveTimeout:
    """ASGI middleware that drops requests whose bodies arrive too slowly. Gradio reads them itself, for any time."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        within = receive_within(receive, self._timeout_s) if scope["type"] == "http" else receive
        await self._app(scope, within, send)


def page(args: dict[str, Any]) -> Any:
    """The application that the Serve config names. args: PageArgs, decoded from JSON."""
    return serve.deployment(Page).options(name=PAGE).bind(args)
