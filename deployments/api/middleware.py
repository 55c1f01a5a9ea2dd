"""Records every request: one metric, one span, and a log line unless it succeeded."""

import asyncio
import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.http import CLIENT_DISCONNECTED
from deployments.observability.logs import request_id
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import NO_SPAN, Span, Traces, current, traceparent_of

log = logging.getLogger("dray.requests")

REQUEST_STATE = "dray.request"
"""Key of the RequestState in a request's ASGI scope."""

_MAX_ID = 128
"""Characters of a client's own request id that logs and traces show."""
_TRACED = "/v1/"
"""Prefix of the paths with traces: probes and pages arrive every few seconds and are of no interest."""


@dataclass(slots=True)
class RequestState:
    """What is known of a request while it is served.

    started: on time.perf_counter's clock. route: the path's template, if the router's application did not match one.
    model, team: their metric labels; empty while unknown.
    """

    started: float
    span: Span
    route: str = "unknown"
    model: str = ""
    team: str = ""


class RequestRecorder:
    """Records requests for one router."""

    def __init__(self, metrics: RouterMetrics, traces: Traces) -> None:
        self._metrics = metrics
        self._traces = traces

    async def record(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for one request and records how it ended.

        Adds a RequestState to the scope. The request's id is its `x-request-id` header, which Serve or the fast path
        has added if the client did not.
        """
        identity = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id.set(identity[:_MAX_ID].decode("latin-1"))
        scope[REQUEST_STATE] = state = RequestState(time.perf_counter(), self._start_span(scope))
        status, complete, disconnected = 500, False, False

        async def watched_receive() -> Message:
            nonlocal disconnected
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                disconnected = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                if state.span is not NO_SPAN:
                    message["headers"] = [*message["headers"], (b"traceresponse", state.span.traceparent.encode())]
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                complete = True
            await send(message)

        try:
            await app(scope, watched_receive, watched_send)
        except asyncio.CancelledError:
            disconnected = not complete  # Serve cancels a request when its client disconnects
            raise
        finally:
            self._finish(scope, state, CLIENT_DISCONNECTED if disconnected else status)

    def _start_span(self, scope: Scope) -> Span:
        if not self._traces.enabled or not scope["path"].startswith(_TRACED):
            return NO_SPAN
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "dray.request_id": request_id.get(),
        }
        span = self._traces.begin(scope["method"], traceparent_of(scope["headers"]), attributes)
        current.set(span)
        return span

    def _finish(self, scope: Scope, state: RequestState, status: int) -> None:
        route = scope.get("route")
        path = str(route.path) if route else state.route
        self._metrics.requests[path, str(status), state.model, state.team].inc()
        if status >= 400:
            extra = {"route": path, "status": status, "seconds": round(time.perf_counter() - state.started, 3)}
            log.log(logging.WARNING if status >= 500 else logging.INFO, "request not answered", extra=extra)
        if (span := state.span) is not NO_SPAN:
            span.name(f"{scope['method']} {path}")
            span.note({"http.route": path, "http.response.status_code": status})
            span.note({"gen_ai.request.model": state.model} if state.model else {})
            span.note({"dray.team": state.team} if state.team else {})
            if status >= 500:
                span.fail(str(status))
            span.end()


class RequestMiddleware:
    """ASGI middleware that records the requests that the fast path does not record already."""

    def __init__(self, app: ASGIApp, recorder: RequestRecorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or REQUEST_STATE in scope:
            await self._app(scope, receive, send)
        else:
            await self._recorder.record(self._app, scope, receive, send)
