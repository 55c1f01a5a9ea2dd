"""The tokens of one request between the engine process and whoever reads them."""

import asyncio
import time

from deployments.common.messages import EngineRequest, TokenBatch

_MIN_BATCH_INTERVAL_S = 0.033


class Stream:
    """Tokens generated for one request that nobody has read yet.

    The first tokens are passed on at once, later ones at most every `_MIN_BATCH_INTERVAL_S`: a message costs router,
    replica and HAProxy as much as several tokens, and no person reads faster.
    """

    __slots__ = ("_next_batch_at", "_timer_set", "arrived", "ended", "generated", "pending", "request")

    def __init__(self, request: EngineRequest) -> None:
        self.arrived = asyncio.Event()
        self.ended = False
        """The last batch has arrived, though perhaps nobody has read it."""
        self.generated = 0
        """Tokens so far."""
        self.pending: TokenBatch | None = None
        self.request = request
        self._next_batch_at = 0.0
        self._timer_set = False

    def put(self, batch: TokenBatch) -> None:
        """Appends a batch to the unread one, so that a slow reader gets fewer, larger batches."""
        self.generated += len(batch.ids)
        if self.pending is not None:
            unread = self.pending
            if unread.finish_reason:
                return  # the stream has ended: drop heartbeats and the engine's death
            batch = TokenBatch(
                unread.ids + batch.ids,
                batch.finish_reason,
                unread.cached_tokens or batch.cached_tokens,
                batch.reason,
                unread.logprobs + batch.logprobs,
                own_cached_tokens=unread.own_cached_tokens or batch.own_cached_tokens,
                prompt_logprobs=unread.prompt_logprobs or batch.prompt_logprobs,
            )
        self.pending = batch
        self.ended = self.ended or batch.finish_reason != ""
        if batch.finish_reason or (now := time.monotonic()) >= self._next_batch_at:
            self.arrived.set()
        elif not self._timer_set:
            self._timer_set = True
            asyncio.get_running_loop().call_later(self._next_batch_at - now, self._notify)

    def _notify(self) -> None:
        self._timer_set = False
        if self.pending is not None:
            self.arrived.set()

    def take(self) -> TokenBatch:
        """The unread tokens as one batch."""
        assert self.pending is not None
        batch, self.pending = self.pending, None
        self.arrived.clear()
        self._next_batch_at = time.monotonic() + _MIN_BATCH_INTERVAL_S
        return batch

    def pending_tokens(self, typical_length: float) -> tuple[int, int]:
        """Tokens still to compute, of the prompt and of the completion. typical_length: of a completion, in tokens."""
        completion = max(1, min(self.request.max_new_tokens, round(typical_length)) - self.generated)
        return 0 if self.generated else len(self.request.prompt_ids), completion
