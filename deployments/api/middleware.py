"""Records every request: one metric, one span, and a log line unless it succeeded."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.records.activity import RequestRecord
from deployments.api.http import CLIENT_DISCONNECTED
from deployments.api.request_state import REQUEST_STATE, RequestState
from deployments.common.errors import shortened
from deployments.observability.logs import LineLimit, request_id, safe_id
from deployments.observability.metrics import RouterMetrics
from deployments.observability.tracing import NO_SPAN, Span, Traces, current, traceparent_of
from deployments.tenancy.activity import ActivityLog

log = logging.getLogger("dray.requests")

_LINES, _LINES_PER_S = 500, 5.0
"""Lines about refused requests, and as many about failed ones, that are logged at once, and per second after that."""

_SHOWN = ("/v1/", "/v2/", "/tokenize", "/detokenize")
"""Beginnings of the paths whose requests administrators see, if they came with a valid key: others could be sent by
anybody, in such numbers that nothing else would be seen."""
_TRACED = "/v1/"
"""Prefix of the paths with traces: probes and pages arrive every few seconds and are of no interest."""


class RequestRecorder:
    """Records requests for one router."""

    def __init__(self, metrics: RouterMetrics, traces: Traces, activity: ActivityLog) -> None:
        self._metrics = metrics
        self._activity = activity
        self._traces = traces
        # Refused requests must not push out the lines about failures.
        self._limits = {level: LineLimit(_LINES, _LINES_PER_S) for level in (logging.INFO, logging.WARNING)}

    async def record(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for one request and records how it ended.

        Adds a RequestState to the scope. The request's id is its `x-request-id` header, which Serve or the fast path
        has added if the client did not.
        """
        identity = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id.set(safe_id(identity))
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
        seconds = time.perf_counter() - state.started
        if status >= 400:
            self._log(path, status, seconds)
        if not state.in_batch:  # a batch has its error file, and would push out what people have asked
            self._show(scope, state, status, seconds)
        if (span := state.span) is not NO_SPAN:
            span.name(f"{scope['method']} {path}")
            span.note({"http.route": path, "http.response.status_code": status})
            span.note({"gen_ai.request.model": state.model} if state.model else {})
            span.note({"dray.team": state.team} if state.team else {})
            if status >= 500:
                span.fail(str(status))
            span.end()

    def _show(self, scope: Scope, state: RequestState, status: int, seconds: float) -> None:
        """Keeps it for administrators."""
        progress = state.progress
        if (status >= 400 and status != CLIENT_DISCONNECTED) or progress.code:
            self._activity.count_error(status, progress.code, state.caller, state.model)
        if state.authenticated and scope["method"] == "POST" and scope["path"].startswith(_SHOWN):
            self._activity.add(_record(state, scope["path"], status, seconds))

    def _log(self, path: str, status: int, seconds: float) -> None:
        level = logging.WARNING if status >= 500 else logging.INFO
        if (left_out := self._limits[level].admit()) is None:
            return
        extra = {"route": path, "status": status, "seconds": round(seconds, 3)}
        if left_out:
            extra["lines_left_out"] = left_out
        log.log(level, "request not answered", extra=extra)


def _record(state: RequestState, path: str, status: int, seconds: float) -> RequestRecord:
    progress = state.progress
    return RequestRecord(
        request_id.get(),
        round(time.time() - seconds, 3),
        state.caller,
        state.model,
        shortened(path),
        status,
        progress.code,
        progress.cache,
        progress.stream,
        progress.queue_s,
        progress.first_token_s,
        round(seconds, 4),
        progress.prompt,
        progress.completion,
        progress.question,
        progress.answer,
    )


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
