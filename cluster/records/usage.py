"""What teams have used, by day and model, as it lies beside their keys in Redis: a hash of counters for each day."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec

_KEPT_S = 400 * 86_400
COUNTERS = ("requests", "hits", "prompt", "completion", "cached", "saved_prompt", "saved_completion")


class UsageRow(msgspec.Struct, frozen=True):
    """Of one team, model and day (UTC). Tokens that engines computed: prompt (cached: of it, found in a prefix cache)
    and completion. hits: requests answered by what was known or being made already; saved_*: their tokens."""

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


def today() -> str:
    """The day that counts now: UTC, ISO format."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def field_of(team: str, model: str, counter: str) -> str:
    """The field of a counter in its day's hash."""
    return f"{quote(team, safe='')}|{quote(model, safe='')}|{counter}"


def key_of(day: str) -> str:
    """The key of a day's hash."""
    return f"dray:{{teams}}:usage:{day}"


def add(pipe: Any, day: str, counts: Mapping[str, int]) -> None:
    """Puts into a pipeline what adds these counters, by field, to a day."""
    for name, count in counts.items():
        pipe.hincrby(key_of(day), name, count)
    pipe.expire(key_of(day), _KEPT_S)


def days_until_today(count: int) -> list[str]:
    """The last days, the oldest first."""
    end = datetime.datetime.now(datetime.UTC).date()
    return [(end - datetime.timedelta(days=back)).isoformat() for back in reversed(range(count))]


def ask(pipe: Any, count: int) -> list[str]:
    """Puts into a pipeline what reads the last days; gives their names, as `rows` takes them with what was read."""
    days = days_until_today(count)
    for day in days:
        pipe.hgetall(key_of(day))
    return days


def rows(days: Mapping[str, Mapping[bytes, bytes]], team: str | None = None) -> list[UsageRow]:
    """Rows of what lies in the days' hashes; of one team, or of all."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for day, counters in days.items():
        for who, model, counter, count in _parsed(counters):
            if team is None or who == team:
                found.setdefault((day, who, model), {})[counter] = count
    return [UsageRow(day, who, model, **counters) for (day, who, model), counters in sorted(found.items())]


def _parsed(counters: Mapping[bytes, bytes]) -> Iterator[tuple[str, str, str, int]]:
    for name, count in counters.items():
        team, model, counter = name.decode().split("|")
        if counter in COUNTERS:
            yield unquote(team), unquote(model), counter, int(count)
