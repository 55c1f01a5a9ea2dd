"""Around every request: its id, its place in the metrics, a log line where it did not go well."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.telemetry import RouterMetrics, request_id

log = logging.getLogger("dray.requests")

LEFT = "dray.left"
"""Key in a request's scope that says that the client went before its answer was complete."""


class Edge:
    """ASGI middleware. The id is the client's `x-request-id`, or HAProxy's; Serve gives it back to the client."""

    def __init__(self, app: ASGIApp, metrics: RouterMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id.set(given.decode("latin-1"))
        began, status = time.perf_counter(), 500

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except asyncio.CancelledError:
            scope[LEFT] = True  # Serve cancels a request whose client has gone
            raise
        finally:
            status = 499 if scope.get(LEFT) else status
            route = scope.get("route")
            path = route.path if route else "unknown"
            self._metrics.requests.labels(path, str(status)).inc()
            if status >= 400:
                extra = {"route": path, "status": status, "seconds": round(time.perf_counter() - began, 3)}
                log.log(logging.WARNING if status >= 500 else logging.INFO, "request not answered", extra=extra)
