"""One answer being made: tokens from an engine, read into text, sent as JSON or as server-sent events, then kept."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from deployments.answers import Answer, AnswerCache
from deployments.dispatch import Dispatcher
from deployments.engine.wire import Request, Sampling
from deployments.prompts import CompletionReader, Prompt
from deployments.protocol import ApiError, ChatRequest, ChunkWriter, Usage, completion, error_event
from deployments.telemetry import RouterMetrics

log = logging.getLogger("dray.generation")

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def identity() -> str:
    """A new completion's id."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def write_stream(request: ChatRequest, fingerprint: str) -> ChunkWriter:
    """The writer for a streamed answer to `request`. fingerprint: names the exact model."""
    wanted = request.stream_options is not None and request.stream_options.include_usage
    return ChunkWriter(identity(), request.model, fingerprint, with_usage=wanted)


@dataclass(slots=True)
class Generation:
    """A cache miss on its way to becoming an answer."""

    request: ChatRequest
    fingerprint: str
    prompt: Prompt
    sampling: Sampling
    reader: CompletionReader
    dispatcher: Dispatcher
    metrics: RouterMetrics
    timeout_s: float
    began: float
    cache: AnswerCache | None
    key: str
    _cached: int = 0
    _finish: str = ""
    _first: float = field(default=0.0)

    async def whole(self, http: HttpRequest) -> Response:
        """The answer as one JSON body. A client that goes away ends the work."""
        work = asyncio.create_task(self._drain())
        gone = asyncio.create_task(_disconnected(http))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await work
        body = completion(
            identity(),
            self.request.model,
            self.fingerprint,
            self.reader.reasoning,
            self.reader.answer,
            self._finish,
            self._usage(),
        )
        return Response(
            msgspec.json.encode(body), media_type="application/json", headers={"X-Dray-Cache": self._result}
        )

    async def streamed(self) -> Response:
        """The answer as server-sent events. What fails before the first token is still a plain error."""
        events = self._events()
        opening = await anext(events)

        async def body() -> AsyncGenerator[bytes, None]:
            async with aclosing(events):
                yield opening
                async for event in events:
                    yield event

        headers = STREAM_HEADERS | {"X-Dray-Cache": self._result}
        return StreamingResponse(body(), media_type="text/event-stream", headers=headers)

    @property
    def _result(self) -> str:
        return "miss" if self.cache else "bypass"

    async def _drain(self) -> None:
        async with aclosing(self._deltas()) as deltas:
            async for _ in deltas:
                pass

    async def _events(self) -> AsyncGenerator[bytes, None]:
        writer, opened = write_stream(self.request, self.fingerprint), False
        async with aclosing(self._deltas()) as deltas:
            try:
                async for reasoning, text in deltas:
                    event = b"" if opened else writer.opening()
                    opened = True
                    yield event + writer.delta(reasoning, text)
            except ApiError as error:
                if not opened:
                    raise
                yield error_event(error)
                return
        yield (b"" if opened else writer.opening()) + writer.closing(self._finish, self._usage())

    async def _deltas(self) -> AsyncGenerator[tuple[str, str], None]:
        """New thinking and answer text, as it comes. When this ends, the answer is whole, counted and kept."""
        deadline = self.began + self.timeout_s
        last = self.began
        async with aclosing(self.dispatcher.stream(Request(self.prompt.ids, self.sampling))) as stream:
            while not self._finish:
                try:
                    async with asyncio.timeout(deadline - time.perf_counter()):
                        tokens = await anext(stream)
                except TimeoutError:
                    raise ApiError(
                        408,
                        f"Not finished within {self.timeout_s:.0f} s. Ask for fewer tokens, or stream.",
                        code="request_timeout",
                        kind="timeout_error",
                    ) from None
                last = time.perf_counter()
                if not self._first:
                    self._first, self._cached = last, tokens.cached
                delta = self.reader.feed(tokens.ids)
                self._finish = "stop" if self.reader.stopped else tokens.finish
                if self._finish:
                    delta = delta[0], delta[1] + self.reader.finish()
                yield delta
        await self._settle(last)

    async def _settle(self, last: float) -> None:
        usage, model, counted = self._usage(), self.request.model, self.metrics
        counted.time_to_first_token.labels(model).observe(self._first - self.began)
        if usage.completion > 1:
            counted.time_per_output_token.labels(model).observe((last - self._first) / (usage.completion - 1))
        counted.count_answer(model, usage, self._result, time.perf_counter() - self.began)
        if self.cache and self.cache.keeps(self.sampling, self._finish):
            answer = Answer(self.reader.reasoning, self.reader.answer, self._finish, usage, time.time())
            await self.cache.put(self.key, answer)

    def _usage(self) -> Usage:
        return Usage(len(self.prompt.ids), self.reader.tokens, self.reader.reasoning_tokens, self._cached)


async def _disconnected(http: HttpRequest) -> None:
    """Returns once the client has closed its connection. The body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
