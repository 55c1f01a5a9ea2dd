"""Filling the answer cache: a file of questions, asked at low priority before people ask them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

Outcome = Literal["warmed", "already there", "not kept", "failed"]

_ATTEMPTS = 8
_TIMEOUT = httpx.Timeout(30.0, read=900.0)
_LONGEST_PAUSE_S = 60.0
_backoff = wait_exponential(multiplier=0.5, max=_LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file: the request that it asks for, or why it is none."""

    number: int
    body: dict[str, Any] | None
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Warmed:
    """What has become of a line. why: of one that failed or was not kept."""

    line: int
    outcome: Outcome
    why: str = ""


class _Busy(Exception):
    """The server asks to come again. after_s: when, if it says."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


def read_lines(path: Path, model: str) -> Iterator[Line]:
    """The file's requests. A line is a question as JSON text, {"question": ...}, or a whole chat request."""
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                given = json.loads(text)
            except ValueError as error:
                yield Line(number, None, f"not JSON: {error}")
                continue
            if isinstance(given, str):
                given = {"question": given}
            if isinstance(given, dict) and isinstance(given.get("question"), str):
                question = given.pop("question")
                given = {"messages": [{"role": "user", "content": question}], **given}
            if not isinstance(given, dict) or "messages" not in given:
                yield Line(number, None, "neither a question nor a request with messages")
                continue
            # Not streamed, and after the people who ask meanwhile.
            yield Line(number, {"model": model, **given, "stream": False, "service_tier": "flex"})


async def warm(url: str, key: str, lines: Iterator[Line], at_a_time: int, on_done: Callable[[Warmed], None]) -> None:
    """Asks all lines, so many at a time. url: base URL, ending in /v1. What is there already costs next to nothing, so
    one that was interrupted is simply begun again."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=at_a_time)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits) as client:

        async def lane() -> None:
            for line in lines:  # shared: each line goes to whoever is free
                on_done(await _warm_one(client, line))

        async with asyncio.TaskGroup() as group:
            for _ in range(at_a_time):
                group.create_task(lane())


async def _warm_one(client: httpx.AsyncClient, line: Line) -> Warmed:
    if line.body is None:
        return Warmed(line.number, "failed", line.wrong)
    try:
        async for attempt in _attempts():
            with attempt:
                answer = await _ask(client, line.body, {})
    except _Busy as error:
        return Warmed(line.number, "failed", str(error))
    if answer.status_code != httpx.codes.OK:
        return Warmed(line.number, "failed", _said(answer))
    if answer.headers.get("x-dray-cache") == "hit":
        return Warmed(line.number, "already there")
    # Whether it was kept is the server's policy: ask for what is stored alone.
    try:
        stored = await _ask(client, line.body, {"Cache-Control": "only-if-cached"})
    except _Busy as error:
        return Warmed(line.number, "failed", str(error))
    if stored.status_code == httpx.codes.OK:
        return Warmed(line.number, "warmed")
    return Warmed(line.number, "not kept", "cut off, or drawn without a seed (see cache.store)")


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    try:
        answer = await client.post("/chat/completions", json=body, headers=headers)
    except httpx.TransportError as error:
        raise _Busy(f"no answer: {type(error).__name__}") from None
    if answer.status_code in (429, 500, 503):
        pause = answer.headers.get("retry-after", "")
        raise _Busy(_said(answer), float(pause) if pause.isdigit() else None)
    return answer


def _attempts() -> AsyncIterator[Any]:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(_Busy), wait=_pause, stop=stop_after_attempt(_ATTEMPTS), reraise=True
    )
    return aiter(retrying)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Busy) and error.after_s is not None:
        return min(error.after_s, _LONGEST_PAUSE_S)
    return float(_backoff(state))


def _said(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}: {answer.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
