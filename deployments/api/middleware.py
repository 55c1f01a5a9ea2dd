"""Around every request: its id, its place in the metrics, a log line where it did not go well."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.fast_path import NotKnown
from deployments.observability.logs import request_id
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import NO_SPAN, Span, Traces, current, traceparent_of

log = logging.getLogger("dray.requests")

CLIENT_DISCONNECTED = "dray.left"
"""Key in a request's scope that says that the client went before its answer was complete."""


METRIC_LABELS = "dray.asked"
"""Key in a request's scope: which model is asked, and what metrics call the team that asks."""
_TRACED = "/v1/"
"""Probes and pages come every few seconds and tell nothing."""
_NOBODY = ("", "")


class RequestMiddleware:
    """ASGI middleware. The id is the client's `x-request-id`, or one that `Front` or Serve has made."""

    def __init__(self, app: ASGIApp, metrics: RouterMetrics, traces: Traces) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id.set(given.decode("latin-1"))
        began, status, ended, span = time.perf_counter(), 500, True, self._span(scope)

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if span is not NO_SPAN:
                    message["headers"] = [*message["headers"], (b"traceresponse", span.traceparent.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except NotKnown:
            ended = False
            raise
        except asyncio.CancelledError:
            scope[CLIENT_DISCONNECTED] = True  # Serve cancels a request whose client has gone
            raise
        finally:
            # A span that is not ended is nowhere: who goes on to Serve comes here again.
            if ended:
                status = 499 if scope.get(CLIENT_DISCONNECTED) else status
                self._ended(scope, status, began)
                if span is not NO_SPAN:
                    _end(span, scope, status)

    def _ended(self, scope: Scope, status: int, began: float) -> None:
        path = _path(scope)
        self._metrics.requests[path, str(status), *scope.get(METRIC_LABELS, _NOBODY)].inc()
        if status >= 400:
            extra = {"route": path, "status": status, "seconds": round(time.perf_counter() - began, 3)}
            log.log(logging.WARNING if status >= 500 else logging.INFO, "request not answered", extra=extra)

    def _span(self, scope: Scope) -> Span:
        if not self._traces.enabled or not scope["path"].startswith(_TRACED):
            return NO_SPAN
        known = {"http.request.method": scope["method"], "url.path": scope["path"], "dray.request_id": request_id.get()}
        span = self._traces.begin(scope["method"], traceparent_of(scope["headers"]), known)
        current.set(span)
        return span


def _path(scope: Scope) -> str:
    route = scope.get("route")
    return str(route.path) if route else "unknown"


def _end(span: Span, scope: Scope, status: int) -> None:
    path, (model, team) = _path(scope), scope.get(METRIC_LABELS, _NOBODY)
    span.name(f"{scope['method']} {path}")
    span.note({"http.route": path, "http.response.status_code": status})
    span.note({"gen_ai.request.model": model} if model else {})
    span.note({"dray.team": team} if team else {})
    if status >= 500:
        span.fail(str(status))
    span.end()
