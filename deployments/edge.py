"""Around every request: its id, its place in the metrics, a log line where it did not go well."""

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.telemetry import RouterMetrics, request_id

log = logging.getLogger("dray.requests")

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
LEFT = "dray.left"
"""Key in a request's scope that says that the client went before its answer was complete."""


class Edge:
    """ASGI middleware: takes a client's `x-request-id` or makes one, and gives it back."""

    def __init__(self, app: ASGIApp, metrics: RouterMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        identity = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        request_id.set(identity.decode())
        began, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identity)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            status = 499 if scope.get(LEFT) else status
            route = scope.get("route")
            path = route.path if route else "unknown"
            self._metrics.requests.labels(path, str(status)).inc()
            if status >= 400:
                extra = {"route": path, "status": status, "seconds": round(time.perf_counter() - began, 3)}
                log.log(logging.WARNING if status >= 500 else logging.INFO, "request not answered", extra=extra)
