"""Answers to clients: whole as JSON, or as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.api.http import CLIENT_DISCONNECTED
from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.types import Delta, GenerationResult, Usage
from deployments.generation.broadcast import Subscriber, to_api_error

log = logging.getLogger("dray.replies")

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
KEEP_ALIVE = b": keep-alive\n\n"
_PLAIN_ERROR_S = 0.25
"""A failure within this time gets its own HTTP status. After that the stream is open and ends with an error event."""


class AnswerWriter(Protocol):
    """Writes an answer in the format of one API."""

    id: str
    """Of the response."""

    def complete(self, answer: GenerationResult) -> object:
        """The JSON body of an answer that is not streamed."""

    def start(self, usage: Usage) -> bytes:
        """The first events of a stream. usage: what is known of it by then."""

    def delta(self, delta: Delta) -> bytes:
        """The events for a delta."""

    def end(self, answer: GenerationResult) -> bytes:
        """The last events of a stream."""

    def error(self, error: ApiError) -> bytes:
        """The last events of a stream that failed midway."""


@dataclass(frozen=True, slots=True)
class StreamTimeouts:
    """In seconds. keep_alive_s: silence after which a comment is sent. stall_s: time a client may take to read an
    event."""

    keep_alive_s: float
    stall_s: float


Keep = Callable[[GenerationResult], Awaitable[None]]
"""Called with the whole answer before the response to it ends."""


def replay(answer: GenerationResult, writer: AnswerWriter, stream: bool, headers: dict[str, str]) -> Response:
    """The response with a stored answer, in one piece."""
    if not stream:
        return Response(msgspec.json.encode(writer.complete(answer)), media_type="application/json", headers=headers)
    events = _begun(answer, writer) + writer.end(answer)
    return Response(events, media_type="text/event-stream", headers=headers | STREAM_HEADERS)


async def replay_and_keep(
    answer: GenerationResult, writer: AnswerWriter, stream: bool, headers: dict[str, str], keep: Keep
) -> Response:
    """The same for a response that is kept."""
    if not stream:
        await keep(answer)
        return replay(answer, writer, stream, headers)
    events = _begun(answer, writer)
    await keep(answer)
    events += writer.end(answer)
    return Response(events, media_type="text/event-stream", headers=headers | STREAM_HEADERS)


async def complete_response(
    http: HttpRequest,
    subscriber: Subscriber,
    writer: AnswerWriter,
    headers: dict[str, str],
    keep: Keep | None = None,
) -> Response:
    """Waits for the whole answer and returns it as one JSON body. Closes the subscriber, also if the client leaves."""
    with subscriber:
        result = asyncio.create_task(_result(subscriber))
        disconnect = asyncio.create_task(_disconnected(http.receive))
        try:
            await asyncio.wait({result, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                return Response(status_code=CLIENT_DISCONNECTED)
            answer = result.result()
        finally:
            for task in (result, disconnect):
                task.cancel()
    if keep is not None:
        await keep(answer)
    return Response(msgspec.json.encode(writer.complete(answer)), media_type="application/json", headers=headers)


async def stream_response(
    subscriber: Subscriber,
    writer: AnswerWriter,
    headers: dict[str, str],
    timeouts: StreamTimeouts,
    keep: Keep | None = None,
) -> Response:
    """The answer as server-sent events. An error within the first moments is raised. The end closes the subscriber."""
    with ExitStack() as stack:
        stack.enter_context(subscriber)
        with closing(Deadline()) as deadline:
            first = await subscriber.next_batch(deadline, _PLAIN_ERROR_S)
        return EventStream(subscriber, first, writer, headers, timeouts, stack.pop_all(), keep)


def merge_deltas(deltas: Iterable[Delta]) -> list[Delta]:
    """The same text in fewer deltas: joins neighbours of the same choice where that keeps the order."""
    merged: list[Delta] = []
    for delta in deltas:
        if merged and _can_join(merged[-1], delta):
            last = merged.pop()
            delta = Delta(
                delta.choice,
                last.reasoning + delta.reasoning,
                last.text + delta.text,
                (),
                last.logprobs + delta.logprobs,
                delta.finish_reason,
                delta.stop,
                delta.usage,
                last.ids + delta.ids,
                last.prompt_ids,
            )
        merged.append(delta)
    return merged


class EventStream(Response):
    """Sends events as they arrive; while the client is slow to read, those that arrive meanwhile are merged.

    Ends early if the client disconnects, or takes too long to read.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        subscriber: Subscriber,
        first: list[Delta],
        writer: AnswerWriter,
        headers: dict[str, str],
        timeouts: StreamTimeouts,
        on_end: ExitStack,
        keep: Keep | None = None,
    ) -> None:
        """first: the deltas that were received already. on_end: closed at the end; it closes the subscriber."""
        self.status_code = 200
        self.background = None
        self.init_headers(headers | STREAM_HEADERS)
        self._subscriber = subscriber
        self._first = first
        self._writer = writer
        self._timeouts = timeouts
        self._on_end = on_end
        self._keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._on_end:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send_events(start, self._events, receive, send, self._timeouts.stall_s)

    async def _events(self, deadline: Deadline) -> AsyncGenerator[bytes, None]:
        subscriber, writer = self._subscriber, self._writer
        yield writer.start(subscriber.usage) + written(writer, self._first)
        while subscriber.result is None:
            try:
                deltas = await subscriber.next_batch(deadline, self._timeouts.keep_alive_s)
            except Exception as error:  # noqa: BLE001 - sent to the client, whose stream is open
                yield writer.error(to_api_error(error))
                return
            if deltas:
                yield written(writer, deltas)
            elif subscriber.result is None:
                yield KEEP_ALIVE
        if self._keep is not None:
            await self._keep(subscriber.result)
        yield writer.end(subscriber.result)


async def send_events(
    start: Message,
    events_until: Callable[[Deadline], AsyncGenerator[bytes, None]],
    receive: Receive,
    send: Send,
    stall_s: float,
) -> None:
    """Sends a response's start and then its events, until the client disconnects or takes too long to read one."""
    sending = asyncio.create_task(_send_events(start, events_until, send, stall_s))
    disconnect = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnect.cancel()
        sending.cancel()
        await asyncio.wait({sending})
    if not sending.cancelled():
        sending.result()


async def _send_events(
    start: Message, events_until: Callable[[Deadline], AsyncGenerator[bytes, None]], send: Send, stall_s: float
) -> None:
    await send(start)
    deadline = Deadline()
    try:
        async with aclosing(events_until(deadline)) as events:
            async for event in events:
                body = {"type": "http.response.body", "body": event, "more_body": True}
                await deadline.wait(send(body), stall_s)
    except TimeoutError:
        log.warning("a client does not read its stream; closing the connection")
        return  # without a last message: so the server closes the connection
    finally:
        deadline.close()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _result(subscriber: Subscriber) -> GenerationResult:
    with closing(Deadline()) as deadline:
        while subscriber.result is None:
            await subscriber.next_batch(deadline)
    return subscriber.result


async def _disconnected(receive: Receive) -> None:
    """Returns once the client has disconnected. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _begun(answer: GenerationResult, writer: AnswerWriter) -> bytes:
    """A stored answer's events, up to the last ones."""
    return b"".join([writer.start(answer.usage), *map(writer.delta, answer.deltas())])


def written(writer: AnswerWriter, deltas: list[Delta]) -> bytes:
    """The events for these deltas."""
    return b"".join(map(writer.delta, merge_deltas(deltas)))


def _can_join(first: Delta, second: Delta) -> bool:
    return (
        first.choice == second.choice
        and not (first.tool_calls or second.tool_calls or first.finish_reason)
        and not (first.text and second.reasoning)
    )
