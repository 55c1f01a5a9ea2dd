"""Asks the router's own application for the answer to a line: by the same path as a request that came over HTTP."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
from starlette.types import ASGIApp, Message, Scope

from cluster.records.batch_lines import LineError, LineResponse, OutputLine, output_id
from deployments.api.access import BATCH_WORK, BatchWork
from deployments.batches.batch_store import Batch
from deployments.batches.input_lines import InputLine
from deployments.common.errors import ApiError, new_id
from deployments.tenancy.auth import Authenticator

_ATTEMPTS = 5
"""How often a line is asked on which the server fails."""
_MAX_PAUSE_S = 30.0
_RESPONSES = "/v1/responses"
_REFUSED = {
    "stream": "The lines of a batch cannot be streamed; leave stream out.",
    "background": "The lines of a batch are in the background anyway; leave background out.",
}


NOT_RUN = {
    "expired": LineError("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": LineError("batch_cancelled", "This request was not executed because the batch was cancelled."),
}
"""The error of a line that was not answered, by why the batch has stopped."""
_TEAM_REMOVED = LineError("team_removed", "The team of this batch was removed.")


def not_answered(line: InputLine, owner: str, error: LineError) -> OutputLine:
    """The output of a line without a response. owner: of the batch."""
    return OutputLine(output_id(line.tag(owner)), line.custom_id, None, error)


@dataclass(frozen=True, slots=True)
class _Reply:
    """A response to one attempt."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def error_code(self) -> str:
        """OpenAI's code of the error; empty if there is none."""
        try:
            return str(msgspec.json.decode(self.body)["error"]["code"])
        except (msgspec.MsgspecError, KeyError, TypeError):
            return ""

    @property
    def again(self) -> bool:
        """Whether the same request may be answered later: the engines or the team's minute are full."""
        return self.status == 503 or (self.status == 429 and self.error_code == "rate_limit_exceeded")

    def pause_s(self, failures: int) -> float:
        """Seconds until the next attempt. Not all lines come at the same moment."""
        text = self.headers.get(b"retry-after", b"")
        seconds = float(text) if text.isdigit() else 2.0**failures / 2
        return min(seconds, _MAX_PAUSE_S) * random.uniform(1, 1.5)


class LineAsker:
    """Asks for the answers to lines, for one router."""

    def __init__(self, authenticator: Authenticator, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix time."""
        self._authenticator = authenticator
        self._clock = clock
        self._app: ASGIApp | None = None

    def use(self, app: ASGIApp) -> None:
        """Takes the router's application, which is built last."""
        self._app = app

    def has_team(self, batch: Batch) -> bool:
        """Whether the team whose batch it is still exists. Raises ApiError 503 until teams are loaded."""
        return self._authenticator.caller_of(batch.owner, batch.created_at) is not None

    async def ask(self, line: InputLine, batch: Batch) -> OutputLine:
        """The output of a line. Waits where the team's minute is used up or the engines are full.

        Cancelled by who asks when the batch stops.
        """
        try:
            body = _prepared(line)
        except ApiError as error:
            return _output(line, batch.owner, new_id("req_"), _Reply(error.status, {}, msgspec.json.encode(error.body)))
        attempts = 0
        while True:
            number = new_id("req_")
            reply = await self._attempt(line.url, body, batch, number)
            if reply is None:
                return not_answered(line, batch.owner, _TEAM_REMOVED)
            attempts += not reply.again
            failed = reply.status == 408 or reply.status >= 500
            if not reply.again and (not failed or attempts >= _ATTEMPTS):
                return _output(line, batch.owner, number, reply)
            await asyncio.sleep(reply.pause_s(attempts))

    async def _attempt(self, url: str, body: bytes, batch: Batch, number: str) -> _Reply | None:
        """The response to one attempt; None if there is no such team any more."""
        try:
            caller = self._authenticator.caller_of(batch.owner, batch.created_at)
        except ApiError as error:  # not loaded yet
            return _Reply(error.status, {}, b"")
        if caller is None:
            return None
        deadline = time.perf_counter() + max(0.0, batch.expires_at - self._clock())
        return await self._request(url, body, number, BatchWork(replace(caller, in_batch=True), deadline))

    async def _request(self, url: str, body: bytes, number: str, work: BatchWork) -> _Reply:
        assert self._app is not None
        headers = {b"host": b"localhost", b"content-type": b"application/json", b"x-request-id": number.encode()}
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": url,
            "raw_path": url.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": list(headers.items()),
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
            BATCH_WORK: work,
        }
        status, response_headers, parts, given = 500, dict[bytes, bytes](), list[bytes](), False

        async def receive() -> Message:
            nonlocal given
            if given:
                await asyncio.Event().wait()  # the client never leaves
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, response_headers
            if message["type"] == "http.response.start":
                status, response_headers = message["status"], dict(message["headers"])
            else:
                parts.append(message.get("body", b""))

        try:
            # A task of its own: what a request sets in its context is not the next one's.
            await asyncio.create_task(self._app(scope, receive, send))  # type: ignore[arg-type]
        except Exception:
            # Starlette raises again what it has answered with 500, and logged.
            if not parts:
                raise
        return _Reply(status, response_headers, b"".join(parts))


def _prepared(line: InputLine) -> bytes:
    """The body to ask with. Raises ApiError 400 for one whose answer would not be a line."""
    body = bytes(line.body)
    if not any(f'"{name}"'.encode() in body for name in _REFUSED) and line.url != _RESPONSES:
        return body
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return body  # the parser names the fault
    for name, message in _REFUSED.items():
        if bytes(fields.get(name, b"")).strip() == b"true":
            raise ApiError(400, message, code="unsupported_parameter", param=name)
    if line.url == _RESPONSES:
        # They would push out those from which people go on.
        fields.setdefault("store", msgspec.Raw(b"false"))
    return msgspec.json.encode(fields)


def _output(line: InputLine, owner: str, number: str, reply: _Reply) -> OutputLine:
    is_json = reply.headers.get(b"content-type", b"application/json").startswith(b"application/json")
    body = reply.body if is_json and reply.body else msgspec.json.encode(reply.body.decode(errors="replace"))
    response = LineResponse(reply.status, number, msgspec.Raw(body))
    return OutputLine(output_id(line.tag(owner)), line.custom_id, response, None)
