"""A real router in the test's own process: real HTTP, real Redis, the bundled model's tokenizer; only Ray is left out.

Serve's part is played as Serve does it: the fast path in front, then request ids, then the router's application, all
with one ASGI scope. Instead of engines there is a handle that answers as the test says.
"""

import asyncio
import json
import socket
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from ray.serve._private.http_util import RequestIdMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.models import folder as model_folder
from cluster.models.identity import fingerprint
from cluster.redis_server import OwnRedis
from cluster.serve_config import RouterArgs
from cluster.settings import Settings
from deployments import router
from deployments.api.fast_path import CacheFastPath
from deployments.common.messages import EngineRequest, TokenBatch, TokenLogprobs, decode_request, encode
from tests.conftest import MODEL
from tests.judges.judge import JudgedApp


@dataclass
class Engines:
    """A handle of engines that answer every request with the same tokens, or with the same vector.

    on_request: called with each request. tokens, logprobs, prompt_logprobs: those of the answer. blocked: engines send
    nothing until it is set. error: raised instead of the first token. payload: the last request.
    """

    on_request: Callable[[], None] = lambda: None
    tokens: tuple[int, ...] = (40, 41, 42)
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    blocked: asyncio.Event | None = None
    error: Exception | None = None
    requests: int = 0
    cancelled: int = 0
    payload: bytes = b""

    @property
    def request(self) -> EngineRequest:
        """The last request, of those for tokens."""
        return decode_request(self.payload)

    def options(self, **chosen: object) -> "Engines":
        return self

    def remote(self, payload: bytes) -> "Response":
        self.requests += 1
        self.payload = payload
        self.on_request()
        return Response(self)

    @property
    def run(self) -> "Engines":
        return self


@dataclass
class Response:
    """A call through the handle."""

    engines: Engines

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        if self.engines.blocked is not None:
            await self.engines.blocked.wait()
        if self.engines.error is not None:
            raise self.engines.error
        engines = self.engines
        logprobs, of_prompt = list(engines.logprobs), list(engines.prompt_logprobs)
        yield encode(TokenBatch(list(engines.tokens), "stop", logprobs=logprobs, prompt_logprobs=of_prompt))

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._vectors().__await__()

    async def _vectors(self) -> bytes:
        if self.engines.blocked is not None:
            await self.engines.blocked.wait()
        if self.engines.error is not None:
            raise self.engines.error
        return encode([array("f", [1.0]).tobytes()])

    def cancel(self) -> None:
        self.engines.cancelled += 1


@dataclass
class RunningRouter:
    """A router that listens on a port. app: its application, without the fast path."""

    router: Any
    app: ASGIApp
    engines: Engines
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def counted(self) -> dict[tuple[str, str], float]:
        """The number of requests in the metrics, by route and status."""
        counts: dict[tuple[str, str], float] = {}
        for (route, status, _, _), counter in self.router._metrics.requests.items():
            counts[route, status] = counts.get((route, status), 0) + counter._value.get()
        return counts


class InProcessRouter(router.Router):
    """Serve awaits a replica's destructor, which @serve.ingress makes a coroutine; Python only calls it."""

    def __del__(self) -> None:
        pass


async def start_router(args: RouterArgs) -> Any:
    """A router as Serve constructs it: @serve.ingress makes its constructor a coroutine."""
    instance = object.__new__(InProcessRouter)
    await cast(Any, router.Router.__init__)(instance, args.model_dump(mode="json"))
    return instance


@asynccontextmanager
async def running_router(
    monkeypatch: pytest.MonkeyPatch,
    answers_url: str,
    teams_url: str = "",
    engines: Engines | None = None,
    others: Mapping[str, Engines] | None = None,
    **settings: Any,
) -> AsyncIterator[RunningRouter]:
    """A router with these settings, until the block ends. Calls to Redis time out after two seconds.

    engines: of all models but those of `others`, which has them by the name of their application.
    """
    engines, others = engines or Engines(), others or {}
    monkeypatch.setattr(model_folder, "fingerprint", fingerprint_once)
    monkeypatch.setattr(router, "DeploymentHandle", lambda deployment, application: others.get(application, engines))
    cache = {"timeout_s": 2, **settings.pop("cache", {})}
    chosen = Settings(cache=cache, teams={"timeout_s": 2}, **settings)
    args = RouterArgs(
        settings=chosen,
        redis_url=answers_url,
        teams_url=teams_url or answers_url,
        engines={
            MODEL: "engines",
            **{model.name: model.name if model.name in others else "engines" for model in chosen.models},
        },
    )
    instance = await start_router(args)
    app = instance.__serve_build_asgi_app__()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    front = JudgedApp(CacheFastPath(RequestIdMiddleware(serve)))
    running = RunningRouter(instance, app, engines)
    try:
        async with app.router.lifespan_context(app):
            while instance._authenticator._registry is None:
                await asyncio.sleep(0.01)
            async with listening(front) as running.port:
                yield running
    finally:
        CacheFastPath.api = None
    faults = front.faults
    assert not faults, "\n".join(faults[:9])


def fingerprint_once(folder: Path) -> str:
    """The fingerprint, hashed again only when a file of the folder changed: it is most of a router's start."""
    return _fingerprint(folder, tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir())))


@cache
def _fingerprint(folder: Path, files: tuple[tuple[str, int], ...]) -> str:
    return fingerprint(folder)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """Serves an ASGI application, without its lifespan; yields the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, lifespan="off", log_level="critical", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


def chat(text: str, **more: object) -> bytes:
    """The body of a chat completion."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
    return json.dumps(body).encode()


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a router with engines that give prepared answers. folder: the router's data_dir."""
    async with (
        running_router(monkeypatch, server.url, engines=Engines(), data_dir=folder, **settings) as router,
        httpx.AsyncClient(base_url=router.url, timeout=30) as client,
    ):
        yield client
