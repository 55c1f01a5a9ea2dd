"""Answers cache hits in front of Serve's own handling of a request.

That handling (metrics, cancellation, counting of ongoing requests) takes as long as everything else that a cache hit
takes (ray 2.60), and a stored answer needs none of it. Serve puts this middleware around its own application, in the
router's process and on its event loop. A request whose answer is not stored continues to Serve with what was learned
about it: Serve passes the ASGI scope on as it is (ray 2.60), so the handler finds the prepared request in it.

Every process that serves HTTP imports this module, the chat page's too, so it imports nothing heavy.
"""

import random
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Protocol

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from deployments.api.prepared import PreparedRequest

PREPARED_REQUEST = "dray.prepared"
"""Key of the PreparedRequest in the ASGI scope of a request that continues to Serve."""
_ID = b"x-request-id"
_API = "/v1/"
_EXPOSED = (
    *("x-request-id", "retry-after", "x-dray-ignored", "x-dray-model"),
    *("x-dray-cache", "x-dray-cache-key", "x-dray-cache-match", "x-dray-curated-author"),
)
"""Response headers that a page of another site may read."""


class LookupApi(Protocol):
    """Looks requests up in the answer cache."""

    @property
    def paths(self) -> Collection[str]:
        """The paths whose answers are cached."""

    async def lookup(self, http: HttpRequest) -> "Response | PreparedRequest":
        """The response with the stored answer, or with an error; the prepared request if no answer is stored."""


class Recorder(Protocol):
    """Records requests."""

    async def record(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for one request and records how it ended."""


class CacheFastPath:
    """ASGI middleware around Serve's application."""

    api: ClassVar[LookupApi | None] = None
    """The router's, in a router's process with an answer cache."""
    recorder: ClassVar[Recorder]
    cors_origins: ClassVar[Collection[str]] = ()
    """Web pages that may ask the router, whose answers from the cache need the headers too."""

    def __init__(self, app: ASGIApp) -> None:
        self._serve = app
        self._shared: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not CacheFastPath.cors_origins:
            await self._handle(scope, receive, send)
            return
        if self._shared is None:
            origins = CacheFastPath.cors_origins
            self._shared = CORSMiddleware(
                self._handle, origins, allow_methods=("*",), allow_headers=("*",), expose_headers=_EXPOSED
            )
        await self._shared(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_API) and scope["path"].endswith("/"):
            # Some clients join a base URL and a path so. A redirect would not reach those behind another proxy.
            scope = {**scope, "path": scope["path"].rstrip("/"), "raw_path": scope["raw_path"].rstrip(b"/")}
        api = CacheFastPath.api
        if api is None or scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in api.paths:
            await self._serve(scope, receive, send)
            return
        headers = scope["headers"]
        if not next((value for name, value in headers if name == _ID), b""):
            headers = [header for header in headers if header[0] != _ID]
            headers.append((_ID, b"%032x" % random.getrandbits(128)))
        await CacheFastPath.recorder.record(self._respond, {**scope, "headers": headers}, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert CacheFastPath.api is not None
        outcome = await CacheFastPath.api.lookup(HttpRequest(scope, receive, send))
        if isinstance(outcome, Response):
            # Serve adds it to its own responses.
            outcome.raw_headers.append(next(header for header in scope["headers"] if header[0] == _ID))
            await outcome(scope, receive, send)
        else:
            scope[PREPARED_REQUEST] = outcome
            await self._serve(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve puts around its application, by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(CacheFastPath)]
