"""From a router to the engines: streams tokens from a replica, and resumes the stream on another when that one dies."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing

import msgspec
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError, overloaded
from deployments.common.messages import (
    HEARTBEAT_S,
    KILLED_FROM_OUTSIDE,
    NO_PLACE,
    EngineRequest,
    TokenBatch,
    decode_tokens,
    encode,
)
from deployments.common.prefix import block_keys
from deployments.observability.tracing import current
from deployments.routing.handles import EngineHandle
from deployments.routing.prefix_index import PrefixIndex, PrefixLocation
from deployments.routing.registry import EngineReplicas
from deployments.routing.stream_progress import StreamProgress

log = logging.getLogger("dray.dispatch")

_MAX_SILENCE_S = 4 * HEARTBEAT_S
"""After this long without a message a replica counts as gone: its node has died, or the network is partitioned."""


class Dispatcher:
    """Streams tokens from whichever engine replica takes the request."""

    def __init__(
        self,
        engines: EngineHandle,
        replicas: EngineReplicas,
        on_resume: Callable[[], None],
        prefix_index: PrefixIndex | None = None,
    ) -> None:
        """engines: a Serve handle on these replicas. on_resume: called whenever a stream moves to another engine.
        prefix_index: where routers share which replica caches which prompt; None: they do not."""
        self.replicas = replicas
        self._engines = engines.options(stream=True, method_name="generate")
        self._on_resume = on_resume
        self._prefix_index = prefix_index
        self._suspect_lock = asyncio.Lock()

    async def locate_prefix(self, prompt_ids: Sequence[int]) -> PrefixLocation:
        """Where the start of this prompt is cached, for the request's `prefix_replica` and `prefix_tokens`."""
        if (index := self._shared_index) is None:
            return PrefixLocation()
        # The last token is always computed.
        return await index.lookup(block_keys(prompt_ids[:-1]))

    async def stream(self, request: EngineRequest, delivered: Sequence[int] = ()) -> AsyncGenerator[TokenBatch, None]:
        """Every token of the completion once, in order; the last batch says why it ended.

        delivered: the first tokens of the completion, where they exist already; the stream continues behind them.
        When an engine dies midway, another continues from the tokens so far. Closing the generator cancels the work.
        Raises ApiError: 503 when all engines are full or gone, or the KV cache cannot hold the request; 500 when
        engines crash under it.
        """
        progress = StreamProgress(request, delivered)
        while not progress.complete:
            refused = False
            with self.replicas.attempt() as attempt_id:
                work = msgspec.structs.replace(
                    progress.next_attempt(self.replicas.count),
                    router=self.replicas.router_id,
                    traceparent=current.get().traceparent,
                    attempt_id=attempt_id,
                )
                async with aclosing(self._attempt(work, progress)) as batches:
                    async for received in batches:
                        if received.finish_reason == "lost":
                            if refused := received.reason == NO_PLACE:
                                progress.refused()
                                self.replicas.refused(attempt_id)
                            else:
                                progress.lost(received.reason)
                            break
                        if received.ids:
                            self.replicas.record_tokens(attempt_id, len(received.ids))
                        if (batch := progress.deliver(received)) is None:
                            continue
                        if batch.replica:
                            self._record_prefix(request.prompt_ids, batch.replica)
                        yield batch
                        if batch.finish_reason:
                            return
            if refused:
                continue
            if (error := progress.give_up_error()) is not None:
                raise error
            counts = {"attempt": progress.losses, "tokens": progress.tokens}
            log.warning("engine lost a stream; resuming it on another", extra=counts)
            self._on_resume()
            current.get().event("carried on", {"dray.replica": progress.replica, "dray.tokens": progress.tokens})
            await asyncio.sleep(progress.pause_s)
        yield TokenBatch([], "length")

    async def _attempt(self, request: EngineRequest, progress: StreamProgress) -> AsyncGenerator[TokenBatch, None]:
        """One attempt. Suspects run one at a time, each until its first token, so that the next crash shows which of
        them is the cause."""
        async with AsyncExitStack() as alone:
            if progress.suspect:
                await alone.enter_async_context(self._suspect_lock)
            async with aclosing(self._receive(request, resumed=progress.resumed)) as batches:
                async for batch in batches:
                    if batch.ids:
                        await alone.aclose()
                    yield batch

    async def _receive(self, request: EngineRequest, *, resumed: bool) -> AsyncGenerator[TokenBatch, None]:
        """What a replica sends, up to a batch with a finish reason; `lost` where it dies or falls silent.

        resumed: an engine has worked on it before, so it is not refused now because all are full.
        """
        response = self._engines.remote(encode(request))
        # Where there is no replica, one may have to start first.
        silence_s = _MAX_SILENCE_S if self.replicas.count else math.inf
        messages, finished, silence = aiter(response), False, Deadline()
        try:
            while not finished:
                batch = decode_tokens(await silence.wait(anext(messages), silence_s))
                silence_s = _MAX_SILENCE_S
                finished = batch.finish_reason != ""
                _raise_refusal(batch, "messages" if request.sampling.grammar is None else "response_format")
                yield batch
        except (TimeoutError, StopAsyncIteration, RayActorError):
            yield _LOST
        except (BackPressureError, DeploymentUnavailableError, RayTaskError) as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, BackPressureError):
                raise
            if not resumed:
                raise overloaded("All engines are busy. Try again shortly.") from error
            yield _LOST
        finally:
            silence.close()
            if not finished:
                response.cancel()

    @property
    def _shared_index(self) -> PrefixIndex | None:
        """The prefix index, while there are several replicas to choose from."""
        return self._prefix_index if self.replicas.count > 1 else None

    def _record_prefix(self, prompt_ids: Sequence[int], replica: str) -> None:
        if (index := self._shared_index) is not None:
            index.record(block_keys(prompt_ids[:-1]), replica)


_LOST = TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE)


def _raise_refusal(batch: TokenBatch, param: str) -> None:
    """Raises ApiError if the engine has refused a request. param: the field that an invalid request names."""
    if batch.finish_reason == "overloaded":
        raise overloaded("The KV cache cannot hold this request now. Try again, or shorten it.", retry_after_s=5)
    if batch.finish_reason == "invalid":
        raise ApiError(400, f"The engine refused the request: {batch.reason}", code="invalid_value", param=param)
