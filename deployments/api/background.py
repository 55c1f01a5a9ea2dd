"""Responses that are generated in the background (`background: true`): the request is answered at once, and the
response is read from Redis, where the router that generates it stores how far it is.

cache/response_store.py has the lease by which another router can tell that this one has died, or can cancel its work.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.api.http import json_response
from deployments.api.response_keeper import ResponseKeeper
from deployments.api.responses import KEEP_ALIVE, STREAM_HEADERS, StreamTimeouts, send_events, written
from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError
from deployments.common.redis import RedisUnavailable
from deployments.common.types import Delta, GenerationResult
from deployments.generation.broadcast import Subscriber, to_api_error

log = logging.getLogger("dray.router")

_PLAIN_ERROR_S = 0.25
"""A failure within this time is the request's own answer."""
_RENEWALS = 5
"""How many times a lease is renewed in its time."""
_TOO_LARGE = "The response is larger than responses.max_bytes, so it was not stored. Ask for fewer tokens, or stream."
_STOPPED = "The server was stopped before the response was complete. Send the request again."


@dataclass(eq=False)
class BackgroundRun:
    """One response that is being generated. events: those of its stream so far, if it has one."""

    keeper: ResponseKeeper
    subscriber: Subscriber
    streams: bool
    events: list[bytes] = field(default_factory=list)
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, first: list[Delta]) -> None:
        """Generates it, and stores it at its end. first: the deltas that have arrived already.

        Who has started it closes the subscriber.
        """
        renewing = asyncio.create_task(self._renew(asyncio.current_task()))
        writer = self.keeper.writer
        try:
            outcome = await self._generate(first)
            renewing.cancel()  # storing it ends the lease
            if isinstance(outcome, ApiError):
                await self._store(writer.unfinished("failed", outcome.message))
                self._add(writer.error(outcome))
            else:
                response = writer.finish(outcome)
                response["store"] = await self._store(response)
                self._add(writer.end(outcome))
        finally:
            renewing.cancel()
            self.ended = True
            self._wake()

    async def fail(self, reason: str) -> None:
        """Stores that it failed."""
        with suppress(RedisUnavailable):
            # Without what there is of it, which may be what was too large.
            await self.keeper.end(self.keeper.writer.unfinished("failed", reason) | {"output": []})

    async def _generate(self, first: list[Delta]) -> GenerationResult | ApiError:
        """The answer, or why there is none."""
        subscriber, writer, begun = self.subscriber, self.keeper.writer, False
        self._add(writer.start(subscriber.usage))
        self._add(written(writer, first))
        with closing(Deadline()) as deadline:
            try:
                while subscriber.result is None:
                    if not begun and writer.has_begun:
                        begun = True
                        with suppress(RedisUnavailable):
                            await self.keeper.renew(writer.unfinished("in_progress"))
                    self._add(written(writer, await subscriber.next_batch(deadline)))
            except Exception as error:  # noqa: BLE001 - it is what the response says
                return to_api_error(error)
        return subscriber.result

    async def _store(self, response: dict[str, Any]) -> bool:
        """Whether the response was stored. Redis may be away for a moment; for longer, and the lease is lost."""
        for _ in range(_RENEWALS):
            try:
                if await self.keeper.end(response):
                    return True
            except RedisUnavailable:
                await asyncio.sleep(self.keeper.lease_s / _RENEWALS)
            else:
                await self.fail(_TOO_LARGE)
                break
        return False

    async def _renew(self, work: asyncio.Task[None] | None) -> None:
        """Renews the lease until cancelled. If it is gone, somebody has cancelled or deleted the response."""
        while True:
            await asyncio.sleep(self.keeper.lease_s / _RENEWALS)
            with suppress(RedisUnavailable):
                if not await self.keeper.renew():
                    assert work is not None
                    work.cancel()
                    return

    def _add(self, events: bytes) -> None:
        if self.streams and events:
            self.events.append(events)
            self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class BackgroundResponses:
    """Those that one router generates. Close it at the end."""

    def __init__(self, timeouts: StreamTimeouts, drain_s: float) -> None:
        """drain_s: how long `close` waits for them."""
        self._timeouts = timeouts
        self._drain_s = drain_s
        self._tasks: dict[asyncio.Task[None], BackgroundRun] = {}

    async def start(
        self, keeper: ResponseKeeper, subscriber: Subscriber, headers: dict[str, str], *, stream: bool
    ) -> Response:
        """Starts to generate a response, and answers with how far it is. Closes the subscriber.

        Raises ApiError 429 for too many, 503 while Redis is away, and that of a request that fails at once.
        """
        with ExitStack() as stack:
            stack.enter_context(subscriber)
            await keeper.begin()
            try:
                with closing(Deadline()) as deadline:
                    first = await subscriber.next_batch(deadline, _PLAIN_ERROR_S)
            except BaseException:
                await keeper.forget()
                raise
            stack.pop_all()
        run = BackgroundRun(keeper, subscriber, stream)
        task = asyncio.create_task(run.work(first))
        self._tasks[task] = run
        task.add_done_callback(self._end)
        if stream:
            return _RunStream(run, headers, self._timeouts)
        return json_response(keeper.writer.unfinished("in_progress" if first else "queued"), headers=headers)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task).subscriber.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a response in the background was lost", exc_info=error)

    def cancel(self, response_id: str) -> None:
        """Stops generating a response at once, if this router does."""
        for task, run in self._tasks.items():
            if run.keeper.writer.id == response_id:
                task.cancel()

    async def close(self) -> None:
        """Waits until they have ended; those that take too long fail."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._drain_s)
        left = dict(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(set(left))
        for run in left.values():
            await run.fail(_STOPPED)


class _RunStream(Response):
    """The events of a response, for as long as its client listens."""

    media_type = "text/event-stream"

    def __init__(self, run: BackgroundRun, headers: dict[str, str], timeouts: StreamTimeouts) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(headers | STREAM_HEADERS)
        self._run = run
        self._timeouts = timeouts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send_events(start, self._events, receive, send, self._timeouts.stall_s)

    async def _events(self, deadline: Deadline) -> AsyncGenerator[bytes, None]:
        run, index = self._run, 0
        while True:
            if new := b"".join(run.events[index:]):
                index = len(run.events)
                yield new
            elif run.ended:
                return
            else:
                try:
                    await deadline.wait(run.changed.wait(), self._timeouts.keep_alive_s)
                except TimeoutError:
                    yield KEEP_ALIVE
