"""From a router to the engines: which replica, streaming from it, and carrying on when it dies."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.common.deadlines import Deadline
from deployments.common.errors import ApiError, overloaded
from deployments.common.messages import (
    HEARTBEAT_S,
    KILLED_FROM_OUTSIDE,
    EngineRequest,
    TokenBatch,
    decode_tokens,
    encode,
)
from deployments.common.prefix import block_keys
from deployments.observability.tracing import current
from deployments.routing import policy
from deployments.routing.prefix_index import PrefixIndex

log = logging.getLogger("dray.dispatch")

_MOST_DEATHS = 2
"""Engine processes that may crash under a request before its next token; it is not tried again."""
_MOST_CRASHES = 5
"""Those that may crash under it in all."""
_PATIENCE_S = 60.0
"""For so long it is tried again without a new token: a replica starts in the meantime, where none is left."""
_MOST_AVOIDED = 5
_LONGEST_SILENCE_S = 4 * HEARTBEAT_S
"""After so long without a word the replica is taken for gone: its node has died, or the network is parted."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

_numbers = itertools.count(1)


class Dispatcher:
    """Streams tokens from whichever engine replica takes the request."""

    def __init__(
        self, engines: Any, application: str, on_carried: Callable[[], None], homes: PrefixIndex | None = None
    ) -> None:
        """engines: a Serve handle on the engine deployment of this application. on_carried: called when a stream goes
        on elsewhere. homes: what other routers have told of replicas' caches; None: nothing is."""
        self.application = application
        self._homes = homes
        self._engines = engines.options(stream=True, method_name="generate")
        self._on_carried = on_carried
        self._suspect = asyncio.Lock()

    async def stream(self, request: EngineRequest, before: Sequence[int] = ()) -> AsyncGenerator[TokenBatch, None]:
        """Every token of the completion once, in order; the last message says why it ended.

        before: its first tokens, where they have been made; it goes on behind them. When an engine dies midway,
        another goes on from the tokens so far. Closing the generator cancels the work. Raises ApiError: 503 when all
        are full or gone or the KV cache cannot hold it, 500 when engines crash under it.
        """
        made, avoid = list(before), list[str]()
        deaths = crashes = tries = 0
        stalled = time.monotonic()
        carried = bool(before)
        homes = self._homes if policy.replicas_of(self.application) > 1 else None
        blocks = block_keys(request.prompt_ids[:-1]) if homes else []
        home, held = await homes.lookup(blocks) if homes else ("", 0)
        while True:
            if len(made) >= request.sampling.max_tokens:
                yield TokenBatch([], "length")
                return
            again = len(made) if request.sampling.grammar is not None else 0
            start, lost, replica, named = len(made), "", "", False
            work = msgspec.structs.replace(
                _rest(request, made),
                router=policy.ROUTER_ID,
                avoid_replicas=tuple(avoid),
                traceparent=current.get().traceparent,
                attempt_id=next(_numbers),
                prefix_replica=home,
                prefix_tokens=held,
            )
            async with aclosing(self._tried(work, suspect=deaths > 0, again=carried)) as stream:
                async for tokens in stream:
                    replica = tokens.replica or replica
                    if not (tokens.ids or tokens.finish_reason):
                        continue
                    policy.record_tokens(work.attempt_id, len(tokens.ids))
                    if tokens.finish_reason == "lost":
                        lost = tokens.reason
                        break
                    if again:
                        tokens, again = _news(tokens, made, again)
                    made += tokens.ids
                    if not named:
                        # A prompt that was carried on finds its own beginning in no cache the client would know of.
                        cached = 0 if carried else tokens.cached_tokens
                        tokens, named = msgspec.structs.replace(tokens, cached_tokens=cached, replica=replica), True
                        if homes:
                            homes.record(blocks, replica)
                    yield tokens
                    if tokens.finish_reason:
                        return
            if replica:
                avoid = [*avoid, replica][-_MOST_AVOIDED:]
            crashed, further, carried = lost != KILLED_FROM_OUTSIDE, len(made) > start, True
            crashes += crashed
            deaths, tries = (0, 1) if further else (deaths + crashed, tries + 1)
            if deaths >= _MOST_DEATHS or crashes >= _MOST_CRASHES:
                raise ApiError(500, "Engines crash on this request.", code="engine_failed", kind="server_error")
            if tries == 1:
                stalled = time.monotonic()
            elif time.monotonic() - stalled > _PATIENCE_S:
                raise overloaded(
                    f"No engine has stayed up for {_PATIENCE_S:.0f} s. Try again shortly.", retry_after_s=5
                )
            log.warning("engine lost a stream; carrying it on", extra={"attempt": tries, "tokens": len(made)})
            self._on_carried()
            current.get().event("carried on", {"dray.replica": replica, "dray.tokens": len(made)})
            await asyncio.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (tries - 1)))

    async def _tried(self, request: EngineRequest, *, suspect: bool, again: bool) -> AsyncGenerator[TokenBatch, None]:
        """One attempt. suspect: the request was there when an engine died, and may be why. Such are tried one by one,
        each until its first token, so that the next death tells which it was."""
        async with AsyncExitStack() as alone:
            if suspect:
                await alone.enter_async_context(self._suspect)
            async with aclosing(self._attempt(request, again=again)) as stream:
                async for tokens in stream:
                    if tokens.ids:
                        await alone.aclose()
                    yield tokens

    async def _attempt(self, request: EngineRequest, *, again: bool) -> AsyncGenerator[TokenBatch, None]:
        """again: it was taken before, and is not refused now because all are full."""
        response = self._engines.remote(encode(request))
        # Where there is no replica, one may have to start first.
        silence_s = _LONGEST_SILENCE_S if policy.replicas_of(self.application) else math.inf
        messages, finished, silence = aiter(response), False, Deadline()
        try:
            while not finished:
                item = await silence.wait(anext(messages), silence_s)
                silence_s = _LONGEST_SILENCE_S
                tokens = decode_tokens(item)
                finished = tokens.finish_reason != ""
                _refuse(tokens)
                yield tokens
        except (TimeoutError, StopAsyncIteration):
            yield TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE)
        except RayActorError:
            yield TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE)
        except (BackPressureError, DeploymentUnavailableError, RayTaskError) as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, BackPressureError):
                raise
            if not again:
                raise overloaded("All engines are busy. Try again shortly.") from error
            yield TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE)
        finally:
            silence.close()
            if not finished:
                response.cancel()


def _rest(request: EngineRequest, made: list[int]) -> EngineRequest:
    """What is left to do. A grammar begins at its beginning: then all is made again, by the same seed."""
    sampling = request.sampling
    if not made or sampling.grammar is not None:
        return request
    left = msgspec.structs.replace(
        sampling,
        max_tokens=sampling.max_tokens - len(made),
        min_tokens=max(0, sampling.min_tokens - len(made)),
    )
    return EngineRequest(request.prompt_ids + made, left)


def _news(tokens: TokenBatch, made: list[int], again: int) -> tuple[TokenBatch, int]:
    """Of tokens that are being made again, what is new, and how many are still to come again.

    Raises ApiError 500 where they are others: the client has the first ones.
    """
    start = len(made) - again
    repeated = min(again, len(tokens.ids))
    if tokens.ids[:repeated] != made[start : start + repeated]:
        raise ApiError(
            500,
            "An engine failed in the middle of this answer, and another made it differently.",
            code="engine_failed",
            kind="server_error",
        )
    rest = msgspec.structs.replace(tokens, ids=tokens.ids[repeated:], logprobs=tokens.logprobs[repeated:])
    return rest, again - repeated


def _refuse(tokens: TokenBatch) -> None:
    if tokens.finish_reason == "overloaded":
        raise overloaded("The KV cache cannot hold this request now. Try again, or shorten it.", retry_after_s=5)
    if tokens.finish_reason == "invalid":
        raise ApiError(400, f"The engine refused the request: {tokens.reason}", code="invalid_value", param="messages")
