"""What one router did lately: its last requests and its errors of the last hour, for administrators.

Requests only add to memory. Every few seconds, if there is something new, all of it goes to Redis with one call, so
that whichever router an administrator asks knows of all others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from cluster.records.activity import (
    KEPT_S,
    KEYS,
    MAX_REQUESTS,
    PUBLISH,
    ErrorCount,
    Latency,
    ModelState,
    RequestRecord,
    RouterActivity,
    ScalingChange,
    pack_activity,
)
from deployments.common.redis import RedisStore, RedisUnavailable

_PUBLISH_S, _REPEAT_S = 2.0, 15.0
"""What is new is published after this time at the latest, and what is not after the other one."""
_ROUNDS = 5
"""How often is published for each look at the changes by autoscaling."""
_GENERATED = ("miss", "bypass")
_BUCKET_S = 300
"""Errors are counted by five minutes."""
_MAX_KINDS = 200
_OTHER = "other"
"""The code of all errors beyond so many kinds."""

Kind = tuple[int, str, str, str]
"""Status, code, team, model."""


class ActivityLog:
    """The last requests and errors of one router."""

    def __init__(
        self,
        store: RedisStore,
        router: str,
        clock: Callable[[], float] = time.time,
        texts_s: float = 0.0,
        cluster: str = "",
    ) -> None:
        """store: that of the teams. router: the name of this one. texts_s: seconds for which texts are kept. cluster:
        the name of the router's Ray cluster."""
        self.models: Callable[[], list[ModelState]] = list
        """Says how the models are."""
        self.read_changes: Callable[[], list[ScalingChange]] = list
        """Reads the last changes by autoscaling. Runs in a thread."""
        self._changes: list[ScalingChange] = []
        self._states: list[ModelState] = []
        self._latencies: dict[str, deque[Latency]] = {}
        self._published_at = 0.0
        self._router, self._cluster = router, cluster
        self._texts_s = texts_s
        self._clock = clock
        self._publish = store.script(PUBLISH)
        self._requests: deque[RequestRecord] = deque(maxlen=MAX_REQUESTS)
        self._errors: dict[Kind, dict[int, int]] = {}
        self._last: dict[Kind, float] = {}
        self._changed = False

    def add(self, request: RequestRecord) -> None:
        """Adds a request that has ended."""
        if request.question or request.answer:
            request = msgspec.structs.replace(request, texts_until=self._clock() + self._texts_s)
        self._requests.append(request)
        self._changed = True
        if request.first_token_s is not None and request.cache in _GENERATED and not request.code:
            rest = request.completion - 1
            per_token = (request.total_s - request.first_token_s) / rest if rest > 0 else None
            latencies = self._latencies.setdefault(request.model, deque(maxlen=MAX_REQUESTS))
            latencies.append((request.first_token_s, per_token))

    def count_error(self, status: int, code: str, team: str, model: str) -> None:
        """Counts an error response."""
        kind, now = (status, code, team, model), self._clock()
        if kind not in self._errors and len(self._errors) >= _MAX_KINDS:
            kind = (status, _OTHER, "", "")
        buckets = self._errors.setdefault(kind, {})
        bucket = int(now / _BUCKET_S)
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self._last[kind] = now
        self._changed = True

    def report(self) -> RouterActivity:
        """All of it. Forgets the errors of more than an hour ago."""
        now, errors = self._clock(), []
        for kind, buckets in tuple(self._errors.items()):
            for bucket in [each for each in buckets if (each + 1) * _BUCKET_S <= now - KEPT_S]:
                del buckets[bucket]
            if buckets:
                errors.append(ErrorCount(*kind, sum(buckets.values()), self._last[kind]))
            else:
                del self._errors[kind], self._last[kind]
        latencies = {model: list(samples) for model, samples in self._latencies.items()}
        if self._texts_s:
            self._requests = deque((request.at(now) for request in self._requests), MAX_REQUESTS)
        requests = list(self._requests)
        return RouterActivity(
            self._router, now, requests, errors, self._states, latencies, self._changes, self._cluster
        )

    async def publish(self) -> None:
        """Replaces this router's report in Redis, if there is something new."""
        states, now = self.models(), self._clock()
        repeated = now - self._published_at < _REPEAT_S
        if not self._changed and repeated and states == self._states:
            return
        self._changed, self._states, self._published_at = False, states, now
        report = self.report()
        try:
            await self._publish(KEYS, report.time, self._router, pack_activity(report))
        except RedisUnavailable:
            self._changed = True

    async def publish_forever(self) -> None:
        """Publishes until cancelled."""
        while True:
            self._changes = await asyncio.to_thread(self.read_changes)
            for _ in range(_ROUNDS):
                await self.publish()
                await asyncio.sleep(_PUBLISH_S)

    async def close(self) -> None:
        """Publishes the last requests."""
        with suppress(RedisUnavailable):
            await self.publish()
