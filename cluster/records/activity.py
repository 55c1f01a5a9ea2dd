"""What routers did lately, beside the teams in Redis: each router's last requests, its errors of the last hour, and
what it knows of the models and their replicas.

One hash has a packed record for each router, which replaces it every few seconds while it has something new. A sorted
set says when. What is older than an hour is removed, and so are the oldest records beyond MAX_ROUTERS.
"""

import zlib
from collections.abc import Iterable, Mapping

import msgspec

from cluster.records.client import BlockingRedis
from cluster.records.sealing import seal, unseal

_RECORDS, _TIMES = "dray:{teams}:activity", "dray:{teams}:activity-times"
KEYS = (_RECORDS, _TIMES)
KEPT_S = 3600
MAX_ROUTERS = 64
MAX_REQUESTS = 200
"""Of one router."""
_MAX_BYTES = 4 * 2**20

PUBLISH = f"""
local now = tonumber(ARGV[1])
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[2])
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - {KEPT_S})
local more = redis.call('ZCARD', KEYS[2]) - #old - {MAX_ROUTERS}
if more > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], #old, #old + more - 1)) do old[#old + 1] = name end
end
for _, name in ipairs(old) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
redis.call('EXPIRE', KEYS[1], {KEPT_S})
redis.call('EXPIRE', KEYS[2], {KEPT_S})
return 1
"""
"""KEYS: as KEYS has them. ARGV: Unix time, the router's name, its packed record."""


class RequestRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request that has ended.

    id: its X-Request-Id. time: Unix time of its start. api: its path. status: of the response. code: of its error;
    empty: none. cache: hit, curated, join, miss or bypass; empty: it got no answer. queue_s: seconds that it waited for
    an engine; first_token_s: until its first token; None: it did not come to that. total_s: until its end. prompt,
    completion: tokens. question, answer: how they begin; empty unless the settings keep texts (admin.request_texts_s).
    texts_until: Unix time until which these may be shown.
    """

    id: str
    time: float
    team: str
    model: str
    api: str
    status: int
    code: str
    cache: str
    stream: bool
    queue_s: float | None
    first_token_s: float | None
    total_s: float
    prompt: int
    completion: int
    question: str = ""
    answer: str = ""
    texts_until: float = 0.0

    def at(self, now: float) -> "RequestRecord":
        """The record as it may be shown at this Unix time."""
        if not self.texts_until or now < self.texts_until:
            return self
        return msgspec.structs.replace(self, question="", answer="", texts_until=0.0)


class ErrorCount(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Errors of one kind within the last hour. last: Unix time of the last one."""

    status: int
    code: str
    team: str
    model: str
    count: int
    last: float


class ReplicaState(msgspec.Struct, frozen=True, array_like=True):
    """A running replica, as its engine reports. cpus: of its lease. running: sequences. kv_used: share of its KV cache.
    restarts: of its engine process."""

    replica: str
    cpus: str
    running: int
    tokens_per_s: float
    kv_used: float
    restarts: int


class ModelState(msgspec.Struct, frozen=True, array_like=True):
    """A served model. waiting: requests in this router's queue. replicas: those of all machines of its Ray cluster."""

    model: str
    task: str
    context_tokens: int
    waiting: int
    replicas: list[ReplicaState]


class ScalingChange(msgspec.Struct, frozen=True, array_like=True):
    """A change of a model's number of replicas by autoscaling. time: Unix time. The rest is of the decision that led to
    it (cluster.scaling_metrics.Decision)."""

    time: float
    model: str
    before: int
    after: int
    reason: str
    waiting_tokens: float
    predicted_wait_s: float
    target_wait_s: float
    min_replicas: int
    max_replicas: int


Latency = tuple[float, float | None]
"""Seconds until the first token of an answer, and for each one after it; None: there was only one."""


class RouterActivity(msgspec.Struct, frozen=True, array_like=True):
    """What a router did. time: Unix time of this report. latencies: of the last answers that engines generated, by
    model. changes: the last ones by autoscaling, the oldest first. cluster: the name of its Ray cluster, whose replicas
    it knows."""

    router: str
    time: float
    requests: list[RequestRecord]
    errors: list[ErrorCount]
    models: list[ModelState] = []
    latencies: dict[str, list[Latency]] = {}
    changes: list[ScalingChange] = []
    cluster: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RouterActivity).decode


def pack_activity(activity: RouterActivity) -> bytes:
    """The record as it is stored, encrypted if that is on."""
    return seal(zlib.compress(_encode(activity), 1), _place(activity.router))


def read_activity(client: BlockingRedis, now: float) -> list[RouterActivity]:
    """The reports of all routers of the last hour. Leaves out those of another format. now: Unix time."""
    with client.pipeline(transaction=False) as pipe:
        pipe.hgetall(_RECORDS)
        [records] = pipe.execute()
    reports = [report for report in _unpacked(records) if report.time > now - KEPT_S]
    return [
        msgspec.structs.replace(report, requests=[request.at(now) for request in report.requests]) for report in reports
    ]


def merged_errors(reports: Iterable[RouterActivity], now: float) -> list[ErrorCount]:
    """The errors of all routers by kind, the most frequent first. now: Unix time."""
    kinds: dict[tuple[int, str, str, str], tuple[int, float]] = {}
    for report in reports:
        for error in report.errors:
            if error.last > now - KEPT_S:
                key = (error.status, error.code, error.team, error.model)
                count, last = kinds.get(key, (0, 0.0))
                kinds[key] = count + error.count, max(last, error.last)
    merged = [ErrorCount(*key, count, last) for key, (count, last) in kinds.items()]
    return sorted(merged, key=lambda error: (-error.count, -error.last))


def _place(router: str) -> str:
    return f"{_RECORDS} {router}"


def _unpacked(records: Mapping[bytes, bytes]) -> list[RouterActivity]:
    reports = []
    for name, record in records.items():
        try:
            body = unseal(record, _place(name.decode())) or b""
            reports.append(_decode(zlib.decompressobj().decompress(body, _MAX_BYTES)))
        except (zlib.error, msgspec.MsgspecError):
            continue
    return reports
