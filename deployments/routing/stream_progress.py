"""What one stream has delivered over all the engines that served it, and when to stop trying."""

import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from deployments.common.errors import ApiError, overloaded
from deployments.common.messages import KILLED_FROM_OUTSIDE, EngineRequest, TokenBatch

_MAX_CRASHES_IN_A_ROW = 2
"""Engine processes that may crash under a request without a new token in between."""
_MAX_CRASHES = 5
"""Engine processes that may crash under a request in all."""
_MAX_STALL_S = 60.0
"""Longest time of attempts without a new token. A new replica starts within it, where none is left."""
_MAX_AVOIDED = 5
MAX_REFUSALS = 3
"""Full replicas that a request may be refused by; the next one that it goes to queues it."""
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 2.0


class StreamProgress:
    """The state of one stream: the tokens delivered so far, and how its attempts ended."""

    def __init__(
        self, request: EngineRequest, delivered: Sequence[int] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """delivered: the first tokens of the completion, where another router has delivered them already."""
        self._request = request
        self._clock = clock
        self._delivered = list(delivered)
        self.resumed = bool(delivered)
        """Whether an engine has worked on it before."""
        self.replica = ""
        """The replica of the present attempt, once it has answered."""
        self._avoided: deque[str] = deque(maxlen=_MAX_AVOIDED)
        self._full: list[str] = []
        """Replicas that refused it because all of their places were taken."""
        self._crashes = self._crashes_in_a_row = 0
        self.losses = 0
        """Lost attempts since the last new token."""
        self._stalled_since = 0.0
        self._start = 0
        self._first_batch = True

    @property
    def tokens(self) -> int:
        """Tokens delivered."""
        return len(self._delivered)

    @property
    def complete(self) -> bool:
        """Whether all tokens are delivered. An engine may die between the last token and the end of its stream."""
        return self.tokens >= self._request.sampling.max_tokens

    @property
    def suspect(self) -> bool:
        """Whether an engine crashed under it since its last token, so that it may be the cause."""
        return self._crashes_in_a_row > 0

    def next_attempt(self, replicas: int = 1) -> EngineRequest:
        """Begins an attempt: the request for what is left to generate. replicas: how many there are."""
        # A prompt that is mostly cached there is better off waiting there.
        computed_anew = 2 * self._request.prefix_tokens < len(self._request.prompt_ids)
        may_refuse = computed_anew and len(self._full) < min(MAX_REFUSALS, replicas - 1)
        self._start = self.tokens
        self.replica, self._first_batch = "", True
        return msgspec.structs.replace(
            self._request,
            prompt_ids=self._request.prompt_ids + self._delivered,
            generated_tokens=self.tokens,
            # They come with the first token.
            prompt_logprobs=self._request.prompt_logprobs and not self._delivered,
            avoid_replicas=(*self._avoided, *(self._full if may_refuse else ())),
            may_refuse=may_refuse,
        )

    def deliver(self, batch: TokenBatch) -> TokenBatch | None:
        """Counts what an engine sent; gives what is for the client, or None for a sign of life.

        The first batch of an attempt names the replica.
        """
        self.replica = batch.replica or self.replica
        if not (batch.ids or batch.finish_reason):
            return None
        self._delivered += batch.ids
        if self._first_batch:
            self._first_batch = False
            # A resumed prompt contains its own completion: that is in no cache that the client would know of.
            if self.resumed:
                batch = msgspec.structs.replace(batch, cached_tokens=0, own_cached_tokens=0)
            batch = msgspec.structs.replace(batch, replica=self.replica)
        return batch

    def refused(self) -> None:
        """Ends an attempt whose replica has no place for the request."""
        self._full.append(self.replica)

    def lost(self, reason: str) -> None:
        """Ends an attempt whose engine or replica is gone. reason: as TokenBatch has it."""
        if self.replica:
            self._avoided.append(self.replica)
        crashed = reason != KILLED_FROM_OUTSIDE
        self._crashes += crashed
        if self.tokens > self._start:
            self._crashes_in_a_row, self.losses = 0, 1
        else:
            self._crashes_in_a_row += crashed
            self.losses += 1
        if self.losses == 1:
            self._stalled_since = self._clock()
        self.resumed = True

    def give_up_error(self) -> ApiError | None:
        """Why the stream is not tried again, if so: 500 when engines crash under it, 503 when none stays up."""
        if self._crashes_in_a_row >= _MAX_CRASHES_IN_A_ROW or self._crashes >= _MAX_CRASHES:
            return ApiError(
                500,
                "This request crashed several engines and is not tried again. Report it to the operator.",
                code="engine_failed",
                kind="server_error",
            )
        if self.losses > 1 and self._clock() - self._stalled_since > _MAX_STALL_S:
            return overloaded(f"No engine has stayed up for {_MAX_STALL_S:.0f} s. Try again shortly.", retry_after_s=5)
        return None

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next attempt: doubles with each one that brought no token."""
        return min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (self.losses - 1))
