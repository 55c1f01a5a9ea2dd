"""In front of Serve's own handling of a request: what is known already is answered here.

Serve's work on a request, its metrics, its cancelling, its counting of what is under way, takes as long again as all
else that a cache hit takes (ray 2.60), and an answer that is there needs none of it. Serve puts this middleware around
its own application, in the process of the router and on its event loop; what cannot be answered goes on to Serve as if
nothing had been.
"""

import random
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KNOWN_ONLY = "dray.known_only"
"""Key in a request's scope that says that only what is known may be answered."""
_ID = b"x-request-id"


class NotKnown(BaseException):
    """What is asked needs more than a look; no exception handler of the application's is to take it for a fault."""


class CacheFastPath:
    """ASGI middleware. routes: paths at which answers may be known."""

    app: ASGIApp | None = None
    """The router's application, in a process that has one."""
    routes: frozenset[str] = frozenset()

    def __init__(self, app: ASGIApp) -> None:
        self._serve = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = CacheFastPath.app
        if app is None or not _asks(scope):
            await self._serve(scope, receive, send)
            return
        headers = scope["headers"]
        if not (request_id := next((value for name, value in headers if name == _ID), b"")):
            request_id = b"%032x" % random.getrandbits(128)
            headers = [*headers, (_ID, request_id)]
        read: list[Message] = []

        async def receive_and_keep() -> Message:
            read.append(await receive())
            return read[-1]

        async def receive_again() -> Message:
            return read.pop(0) if read else await receive()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (_ID, request_id)]
            await send(message)

        try:
            await app({**scope, "headers": headers, KNOWN_ONLY: True}, receive_and_keep, send_with_id)
        except NotKnown:
            await self._serve(scope, receive_again, send)


def middlewares() -> list[Any]:
    """What Serve is to put around its application."""
    return [Middleware(CacheFastPath)]


def _asks(scope: Scope) -> bool:
    return bool(scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in CacheFastPath.routes)
