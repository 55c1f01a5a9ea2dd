"""Answers to clients: whole as JSON, or as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.api.middleware import CLIENT_DISCONNECTED
from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.types import Delta, GenerationResult
from deployments.generation.broadcast import Subscriber, to_api_error

log = logging.getLogger("dray.replies")

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_KEEP_ALIVE = b": keep-alive\n\n"
_PLAIN_ERROR_S = 0.25
"""What fails so soon is answered with its status; after that the stream is open, and ends with an error event."""


class AnswerWriter(Protocol):
    """How an API says an answer."""

    def complete(self, answer: GenerationResult) -> Any:
        """The body of an answer that is not streamed."""

    def start(self) -> bytes:
        """The first events of a stream."""

    def delta(self, delta: Delta) -> bytes:
        """The events of something new."""

    def end(self, answer: GenerationResult) -> bytes:
        """The last events of a stream."""

    def error(self, error: ApiError) -> bytes:
        """The last events of a stream that failed midway."""


@dataclass(frozen=True, slots=True)
class StreamTimeouts:
    """Seconds: of silence until a comment keeps a stream alive; that a client may take to read what it is sent."""

    keep_alive_s: float
    stall_s: float


def replay(answer: GenerationResult, writer: AnswerWriter, stream: bool, headers: dict[str, str]) -> Response:
    """A known answer, in one piece."""
    if not stream:
        return Response(msgspec.json.encode(writer.complete(answer)), media_type="application/json", headers=headers)
    events = b"".join([writer.start(), *map(writer.delta, answer.deltas()), writer.end(answer)])
    return Response(events, media_type="text/event-stream", headers=headers | STREAM_HEADERS)


async def complete_response(
    http: HttpRequest, follower: Subscriber, writer: AnswerWriter, headers: dict[str, str]
) -> Response:
    """The answer as one JSON body, when it is there. The follower leaves with it, or with a client that goes away."""
    with follower:
        work = asyncio.create_task(_to_the_end(follower))
        gone = asyncio.create_task(_disconnected(http.receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                http.scope[CLIENT_DISCONNECTED] = True
                return Response(status_code=499)
            answer = work.result()
        finally:
            for task in (work, gone):
                task.cancel()
    return Response(msgspec.json.encode(writer.complete(answer)), media_type="application/json", headers=headers)


async def stream_response(
    follower: Subscriber, writer: AnswerWriter, headers: dict[str, str], patience: StreamTimeouts
) -> Response:
    """The answer as server-sent events. What fails at once is still a plain error. The follower leaves at the end."""
    with ExitStack() as stack:
        stack.enter_context(follower)
        with closing(Deadline()) as watchdog:
            first = await follower.next_batch(watchdog, _PLAIN_ERROR_S)
        return EventStream(follower, first, writer, headers, patience, stack.pop_all())


async def _to_the_end(follower: Subscriber) -> GenerationResult:
    with closing(Deadline()) as watchdog:
        while follower.result is None:
            await follower.next_batch(watchdog)
    return follower.result


def _written(writer: AnswerWriter, news: list[Delta]) -> bytes:
    return b"".join(map(writer.delta, merge_deltas(news)))


def merge_deltas(news: Iterable[Delta]) -> list[Delta]:
    """The same news in fewer pieces: neighbours of one choice become one where nothing gets out of order."""
    pieces: list[Delta] = []
    for delta in news:
        if pieces and _follows(pieces[-1], delta):
            one = pieces.pop()
            delta = Delta(
                delta.choice,
                one.reasoning + delta.reasoning,
                one.text + delta.text,
                (),
                one.logprobs + delta.logprobs,
                delta.finish_reason,
            )
        pieces.append(delta)
    return pieces


def _follows(one: Delta, other: Delta) -> bool:
    return (
        one.choice == other.choice
        and not (one.tool_calls or other.tool_calls or one.finish_reason)
        and not (one.text and other.reasoning)
    )


class EventStream(Response):
    """Sends events as they come; while the client is slow to take them, what comes meanwhile is joined.

    Ends when the client has gone, or does not take for too long what it is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        follower: Subscriber,
        first: list[Delta],
        writer: AnswerWriter,
        headers: dict[str, str],
        patience: StreamTimeouts,
        leave: ExitStack,
    ) -> None:
        """first: what the follower has been told already. leave: closed at the end; the follower leaves with it."""
        self.status_code = 200
        self.background = None
        self.init_headers(headers | STREAM_HEADERS)
        self._follower = follower
        self._first = first
        self._writer = writer
        self._patience = patience
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._leave:
            work = asyncio.create_task(self._send(send))
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                scope[CLIENT_DISCONNECTED] = not work.done()
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        watchdog = Deadline()
        try:
            async with aclosing(self._events(watchdog)) as events:
                async for event in events:
                    body = {"type": "http.response.body", "body": event, "more_body": True}
                    await watchdog.wait(send(body), self._patience.stall_s)
        except TimeoutError:
            log.warning("a client does not read what it is sent; its stream is cut off")
            return  # without an end: the server closes the connection
        finally:
            watchdog.close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, watchdog: Deadline) -> AsyncGenerator[bytes, None]:
        follower, writer = self._follower, self._writer
        yield writer.start() + _written(writer, self._first)
        while follower.result is None:
            try:
                news = await follower.next_batch(watchdog, self._patience.keep_alive_s)
            except Exception as error:  # noqa: BLE001 - told to the client, whose stream is open
                yield writer.error(to_api_error(error))
                return
            if news:
                yield _written(writer, news)
            elif follower.result is None:
                yield _KEEP_ALIVE
        yield writer.end(follower.result)


async def _disconnected(receive: Receive) -> None:
    """Returns once the client has closed its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
