"""What teams have used, by day and model, beside their keys in Redis: a hash of counters for each day."""

import datetime
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

import msgspec

from cluster.records.client import BlockingRedis, Pipeline

KEPT_S = 400 * 86_400
"""Seconds that a day's counters are kept after their last change."""
COUNTERS = (
    "requests",
    "hits",
    "joins",
    "curated",
    "prompt",
    "completion",
    "cached",
    "saved_prompt",
    "saved_completion",
)


class UsageRow(msgspec.Struct, frozen=True):
    """The use of one model by one team on one day (UTC).

    requests: all that were answered. hits: those for which nothing was generated; of these, `joins` got the answer of
    another request in progress, and `curated` a curated one. prompt, completion: tokens that engines computed. cached:
    the part of `prompt` found in a prefix cache. saved_prompt, saved_completion: tokens of the hits.
    """

    day: str
    team: str
    model: str
    requests: int = 0
    hits: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    saved_prompt: int = 0
    saved_completion: int = 0
    joins: int = 0
    curated: int = 0


def today() -> str:
    """The present day: UTC, ISO format."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def field_of(team: str, model: str, counter: str) -> str:
    """The field of a counter in its day's hash."""
    return f"{quote(team, safe='')}|{quote(model, safe='')}|{counter}"


def key_of(day: str) -> str:
    """The key of a day's hash."""
    return f"dray:{{teams}}:usage:{day}"


def days_until_today(count: int) -> list[str]:
    """The last `count` days, the oldest first."""
    end = datetime.datetime.now(datetime.UTC).date()
    return [(end - datetime.timedelta(days=back)).isoformat() for back in reversed(range(count))]


def queue_reads(pipe: Pipeline, count: int) -> list[str]:
    """Queues the commands that read the last `count` days; returns the days in that order. `rows` takes both."""
    days = days_until_today(count)
    for day in days:
        pipe.hgetall(key_of(day))
    return days


def read_rows(client: BlockingRedis, count: int, team: str | None = None) -> list[UsageRow]:
    """The rows of the last `count` days, of one team or of all."""
    with client.pipeline() as pipe:
        days = queue_reads(pipe, count)
        return rows(dict(zip(days, pipe.execute(), strict=True)), team)


def rows(days: Mapping[str, Mapping[bytes, bytes]], team: str | None = None) -> list[UsageRow]:
    """The rows of these days' hashes, of one team or of all, sorted by day, team and model."""
    counters: dict[tuple[str, str, str], dict[str, int]] = {}
    for day, fields in days.items():
        for owner, model, counter, count in _parsed(fields):
            if team is None or owner == team:
                counters.setdefault((day, owner, model), {})[counter] = count
    return [UsageRow(day, owner, model, **counts) for (day, owner, model), counts in sorted(counters.items())]


def _parsed(fields: Mapping[bytes, bytes]) -> Iterator[tuple[str, str, str, int]]:
    for name, count in fields.items():
        team, model, counter = name.decode().split("|")
        if counter in COUNTERS:
            yield unquote(team), unquote(model), counter, int(count)
