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

from deployments.api.middleware import LEFT
from deployments.common.deadlines import Watchdog
from deployments.common.errors import ApiError
from deployments.common.types import Answer, Delta
from deployments.generation.broadcast import Follower, failed

log = logging.getLogger("dray.replies")

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_KEEP_ALIVE = b": keep-alive\n\n"
_PLAIN_ERROR_S = 0.25
"""What fails so soon is answered with its status; after that the stream is open, and ends with an error event."""


class Writer(Protocol):
    """How an API says an answer."""

    def whole(self, answer: Answer) -> Any:
        """The body of an answer that is not streamed."""

    def opening(self) -> bytes:
        """The first events of a stream."""

    def delta(self, delta: Delta) -> bytes:
        """The events of something new."""

    def closing(self, answer: Answer) -> bytes:
        """The last events of a stream."""

    def failure(self, error: ApiError) -> bytes:
        """The last events of a stream that failed midway."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: of silence until a comment keeps a stream alive; that a client may take to read what it is sent."""

    keep_alive_s: float
    stall_s: float


def replay(answer: Answer, writer: Writer, stream: bool, headers: dict[str, str]) -> Response:
    """A known answer, in one piece."""
    if not stream:
        return Response(msgspec.json.encode(writer.whole(answer)), media_type="application/json", headers=headers)
    events = b"".join([writer.opening(), *map(writer.delta, answer.deltas()), writer.closing(answer)])
    return Response(events, media_type="text/event-stream", headers=headers | STREAM_HEADERS)


async def whole(http: HttpRequest, follower: Follower, writer: Writer, headers: dict[str, str]) -> Response:
    """The answer as one JSON body, when it is there. The follower leaves with it, or with a client that goes away."""
    with follower:
        work = asyncio.create_task(_to_the_end(follower))
        gone = asyncio.create_task(_disconnected(http.receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                http.scope[LEFT] = True
                return Response(status_code=499)
            answer = work.result()
        finally:
            for task in (work, gone):
                task.cancel()
    return Response(msgspec.json.encode(writer.whole(answer)), media_type="application/json", headers=headers)


async def streamed(follower: Follower, writer: Writer, headers: dict[str, str], patience: Patience) -> Response:
    """The answer as server-sent events. What fails at once is still a plain error. The follower leaves at the end."""
    with ExitStack() as stack:
        stack.enter_context(follower)
        with closing(Watchdog()) as watchdog:
            first = await follower.news(watchdog, _PLAIN_ERROR_S)
        return EventStream(follower, first, writer, headers, patience, stack.pop_all())


async def _to_the_end(follower: Follower) -> Answer:
    with closing(Watchdog()) as watchdog:
        while follower.answer is None:
            await follower.news(watchdog)
    return follower.answer


def _written(writer: Writer, news: list[Delta]) -> bytes:
    return b"".join(map(writer.delta, joined(news)))


def joined(news: Iterable[Delta]) -> list[Delta]:
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
                delta.finish,
            )
        pieces.append(delta)
    return pieces


def _follows(one: Delta, other: Delta) -> bool:
    return (
        one.choice == other.choice
        and not (one.tools or other.tools or one.finish)
        and not (one.text and other.reasoning)
    )


class EventStream(Response):
    """Sends events as they come; while the client is slow to take them, what comes meanwhile is joined.

    Ends when the client has gone, or does not take for too long what it is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        follower: Follower,
        first: list[Delta],
        writer: Writer,
        headers: dict[str, str],
        patience: Patience,
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
                scope[LEFT] = not work.done()
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        watchdog = Watchdog()
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

    async def _events(self, watchdog: Watchdog) -> AsyncGenerator[bytes, None]:
        follower, writer = self._follower, self._writer
        yield writer.opening() + _written(writer, self._first)
        while follower.answer is None:
            try:
                news = await follower.news(watchdog, self._patience.keep_alive_s)
            except Exception as error:  # noqa: BLE001 - told to the client, whose stream is open
                yield writer.failure(failed(error))
                return
            if news:
                yield _written(writer, news)
            elif follower.answer is None:
                yield _KEEP_ALIVE
        yield writer.closing(follower.answer)


async def _disconnected(receive: Receive) -> None:
    """Returns once the client has closed its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
