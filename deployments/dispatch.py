"""From a router to the engines: which replica, streaming from it, and carrying on when it dies."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.engine.wire import Request, Tokens, decode_tokens, encode
from deployments.protocol import ApiError, overloaded

log = logging.getLogger("dray.dispatch")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.1
_PAUSE_GROWTH = 4
"""0.1, 0.4, 1.6, 6.4 s: long enough in all for Serve to notice a dead replica and start another."""


class Dispatcher:
    """Streams tokens from whichever engine replica takes the request."""

    def __init__(self, engines: Any, on_carried: Callable[[], None]) -> None:
        """engines: a Serve handle on the engine deployment. on_carried: called when a stream goes on elsewhere."""
        self._engines = engines.options(stream=True, method_name="generate")
        self._on_carried = on_carried

    async def stream(self, request: Request) -> AsyncGenerator[Tokens, None]:
        """Every token of the completion once, in order; the last message says why it ended.

        When an engine dies midway, another goes on from the tokens so far. Closing the generator cancels the
        work. Raises ApiError: 503 when all are full or the KV cache cannot hold it, 500 when engines keep dying.
        """
        made: list[int] = []
        for attempt in range(_ATTEMPTS):
            sampling = msgspec.structs.replace(request.sampling, max_tokens=request.sampling.max_tokens - len(made))
            rest = Request(request.prompt + made, sampling)
            async with aclosing(self._attempt(rest)) as stream:
                async for tokens in stream:
                    if tokens.finish == "lost":
                        break
                    made += tokens.ids
                    # A prompt that was carried on finds its own beginning in no cache the client would know of.
                    yield msgspec.structs.replace(tokens, cached=0) if attempt else tokens
                    if tokens.finish:
                        return
            if len(made) >= request.sampling.max_tokens:
                yield Tokens([], "length")
                return
            log.warning("engine lost a stream; carrying it on", extra={"attempt": attempt + 1, "tokens": len(made)})
            self._on_carried()
            await asyncio.sleep(_FIRST_PAUSE_S * _PAUSE_GROWTH**attempt)
        raise ApiError(500, "The engines failed on this request repeatedly.", code="engine_failed", kind="server_error")

    async def _attempt(self, request: Request) -> AsyncGenerator[Tokens, None]:
        response = self._engines.remote(encode(request))
        finished = False
        try:
            async for item in response:
                tokens = decode_tokens(item)
                finished = tokens.finish != ""
                _refuse(tokens)
                yield tokens
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise overloaded("All engines are busy. Try again shortly.") from error
        except RayActorError:
            yield Tokens([], "lost")
        except RayTaskError as error:
            if isinstance(error.cause, BackPressureError):
                raise overloaded("All engines are busy. Try again shortly.") from error
            raise
        finally:
            if not finished:
                response.cancel()


def _refuse(tokens: Tokens) -> None:
    if tokens.finish == "overloaded":
        raise overloaded("The KV cache cannot hold this request now. Try again, or shorten it.", retry_after_s=5)
    if tokens.finish == "invalid":
        raise ApiError(400, f"The engine refused the request: {tokens.reason}", code="invalid_value", param="messages")
