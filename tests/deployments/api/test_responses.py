"""Streams over real connections: clients that do not read, or disconnect; and deltas that are merged on their way."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.api.protocol.chat import ChatRequest
from deployments.api.protocol.chat_messages import UserMessage
from deployments.api.protocol.chat_writer import ChatWriter
from deployments.api.responses import StreamTimeouts, merge_deltas, stream_response
from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.types import Choice, Delta, GenerationResult, ToolDelta, Usage
from deployments.generation.broadcast import Broadcast
from tests.deployments.routers import listening
from tests.deployments.waiting import until

RESULT = GenerationResult((Choice("", "end", "stop"),), Usage(1, 1, 0, 0), 0)


class Source:
    """A source of `count` deltas of `size` characters each, which records how many were taken."""

    def __init__(self, count: int, size: int, *, ends: bool = True) -> None:
        self.sent = 0
        self.closed = False
        self._count, self._size, self._ends = count, size, ends

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        try:
            for _ in range(self._count):
                self.sent += 1
                yield Delta(text="x" * self._size)
                await asyncio.sleep(0)
            if not self._ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True

    async def result(self) -> GenerationResult:
        return RESULT


@asynccontextmanager
async def serving(source: Source, timeouts: StreamTimeouts) -> AsyncIterator[int]:
    """A real server that streams this source in every response; yields its port."""

    async def answer(http: Request) -> Response:
        broadcast = Broadcast(source.deltas(), source.result)
        writer = ChatWriter(ChatRequest("m", [UserMessage("hi")]), "fp", ("reasoning_content",))
        return await stream_response(broadcast.subscribe(), writer, {}, timeouts)

    async with listening(Starlette(routes=[Route("/", answer)])) as port:
        yield port


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    return reader, writer


def test_a_client_that_does_not_read_is_cut_off_and_holds_nothing_up() -> None:
    async def work() -> None:
        source = Source(64, 1_000_000)
        async with serving(source, StreamTimeouts(10, 0.5)) as port:
            reader, writer = await ask(port)
            await until(lambda: source.closed)
            assert source.sent == 64, "the generation waits for no reader"
            await asyncio.sleep(1)
            received = await reader.read(-1)
            assert received.startswith(b"HTTP/1.1 200") and len(received) < 60_000_000 and b"[DONE]" not in received
            writer.close()

    asyncio.run(work())


def test_a_disconnect_ends_a_generation_that_nobody_else_follows() -> None:
    async def work() -> None:
        source = Source(1, 10, ends=False)
        async with serving(source, StreamTimeouts(10, 10)) as port:
            _, writer = await ask(port)
            await until(lambda: source.sent == 1)
            assert not source.closed
            writer.close()
            await until(lambda: source.closed)

    asyncio.run(work())


def test_silence_is_filled_with_comments() -> None:
    async def work() -> None:
        source = Source(1, 10, ends=False)
        async with serving(source, StreamTimeouts(0.1, 10)) as port:
            reader, writer = await ask(port)
            async with asyncio.timeout(60):
                while (await reader.readline()).strip() != b": keep-alive":
                    pass
            writer.close()

    asyncio.run(work())


def test_an_early_failure_is_a_plain_error_and_a_late_one_an_event() -> None:
    async def fails(after: float) -> AsyncGenerator[Delta, None]:
        await asyncio.sleep(after)
        raise ApiError(503, "busy", code="overloaded")
        yield Delta()

    async def work() -> None:
        writer = ChatWriter(ChatRequest("m", [UserMessage("hi")]), "fp", ())
        never = Source(0, 0).result
        with pytest.raises(ApiError, match="busy"):
            await stream_response(Broadcast(fails(0), never).subscribe(), writer, {}, StreamTimeouts(1, 1))
        response = await stream_response(Broadcast(fails(0.6), never).subscribe(), writer, {}, StreamTimeouts(1, 1))
        sent: list[bytes] = []

        async def send(message: object) -> None:
            assert isinstance(message, dict)
            sent.append(message.get("body", b""))

        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            return {}

        await response({"type": "http"}, receive, send)
        last = [part for part in b"".join(sent).decode().split("\n\n") if part][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"

    asyncio.run(work())


def test_each_subscriber_receives_a_broadcast_from_its_first_token() -> None:
    async def work() -> None:
        source = Source(5, 1)
        broadcast = Broadcast(source.deltas(), source.result)
        texts = []
        for late in (False, True):
            with broadcast.subscribe() as subscriber:
                if late:
                    await broadcast.task
                text, deadline = "", Deadline()
                while subscriber.result is None:
                    text += "".join(delta.text for delta in await subscriber.next_batch(deadline))
                texts.append(text)
        assert texts == ["xxxxx", "xxxxx"]

    asyncio.run(work())


def test_deltas_are_merged_in_order() -> None:
    deltas = [
        Delta(reasoning="a"),
        Delta(reasoning="b", text="c"),
        Delta(text="d"),
        Delta(reasoning="e"),
        Delta(1, text="f"),
        Delta(tool_calls=(ToolDelta(0, "{"),)),
        Delta(text="g"),
        Delta(text="h", finish_reason="stop"),
    ]
    assert merge_deltas(deltas) == [
        Delta(reasoning="ab", text="cd"),
        Delta(reasoning="e"),
        Delta(1, text="f"),
        Delta(tool_calls=(ToolDelta(0, "{"),)),
        Delta(text="gh", finish_reason="stop"),
    ]
