"""Streams over real connections: clients that do not read, or go away; and news that is joined on its way."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
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

ANSWER = GenerationResult((Choice("", "end", "stop"),), Usage(1, 1, 0, 0), 0)


class Made:
    """A flight of so many deltas of so many characters; notes how it went."""

    def __init__(self, count: int, size: int, *, ends: bool = True) -> None:
        self.made = 0
        self.closed = False
        self._count, self._size, self._ends = count, size, ends

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        try:
            for _ in range(self._count):
                self.made += 1
                yield Delta(text="x" * self._size)
                await asyncio.sleep(0)
            if not self._ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True

    async def landed(self) -> GenerationResult:
        return ANSWER


@asynccontextmanager
async def serving(made: Made, patience: StreamTimeouts) -> AsyncIterator[int]:
    """A real server whose every answer is this flight; gives its port."""

    async def answer(http: Request) -> Response:
        flight = Broadcast(made.deltas(), made.landed)
        writer = ChatWriter(ChatRequest("m", [UserMessage("hi")]), "fp", ("reasoning_content",))
        return await stream_response(flight.subscribe(), writer, {}, patience)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/", answer)]), log_level="error"))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        await task


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.02)


async def ask(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    return reader, writer


def test_a_client_that_does_not_read_is_cut_off_and_holds_nothing_up() -> None:
    async def work() -> None:
        made = Made(64, 1_000_000)
        async with serving(made, StreamTimeouts(10, 0.5)) as port:
            reader, writer = await ask(port)
            await until(lambda: made.closed)
            assert made.made == 64, "what is made waits for no reader"
            await asyncio.sleep(1)
            got = await reader.read(-1)
            assert got.startswith(b"HTTP/1.1 200") and len(got) < 60_000_000 and b"[DONE]" not in got
            writer.close()

    asyncio.run(work())


def test_a_client_that_goes_away_ends_what_nobody_else_follows() -> None:
    async def work() -> None:
        made = Made(1, 10, ends=False)
        async with serving(made, StreamTimeouts(10, 10)) as port:
            _, writer = await ask(port)
            await until(lambda: made.made == 1)
            assert not made.closed
            writer.close()
            await until(lambda: made.closed)

    asyncio.run(work())


def test_silence_is_filled_with_comments() -> None:
    async def work() -> None:
        made = Made(1, 10, ends=False)
        async with serving(made, StreamTimeouts(0.1, 10)) as port:
            reader, writer = await ask(port)
            async with asyncio.timeout(10):
                while (await reader.readline()).strip() != b": keep-alive":
                    pass
            writer.close()

    asyncio.run(work())


def test_what_fails_at_once_is_plain_and_later_an_event() -> None:
    async def fails(after: float) -> AsyncGenerator[Delta, None]:
        await asyncio.sleep(after)
        raise ApiError(503, "busy", code="overloaded")
        yield Delta()

    async def work() -> None:
        writer = ChatWriter(ChatRequest("m", [UserMessage("hi")]), "fp", ())
        never = Made(0, 0).landed
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


def test_several_follow_one_flight_each_from_its_first_token() -> None:
    async def work() -> None:
        made = Made(5, 1)
        flight = Broadcast(made.deltas(), made.landed)
        texts = []
        for wait in (False, True):
            with flight.subscribe() as follower:
                if wait:
                    await flight.task
                text, watchdog = "", Deadline()
                while follower.result is None:
                    text += "".join(delta.text for delta in await follower.next_batch(watchdog))
                texts.append(text)
        assert texts == ["xxxxx", "xxxxx"]

    asyncio.run(work())


def test_news_is_joined_in_order() -> None:
    news = [
        Delta(reasoning="a"),
        Delta(reasoning="b", text="c"),
        Delta(text="d"),
        Delta(reasoning="e"),
        Delta(1, text="f"),
        Delta(tool_calls=(ToolDelta(0, "{"),)),
        Delta(text="g"),
        Delta(text="h", finish_reason="stop"),
    ]
    assert merge_deltas(news) == [
        Delta(reasoning="ab", text="cd"),
        Delta(reasoning="e"),
        Delta(1, text="f"),
        Delta(tool_calls=(ToolDelta(0, "{"),)),
        Delta(text="gh", finish_reason="stop"),
    ]
