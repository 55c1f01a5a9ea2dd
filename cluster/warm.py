"""Warms the answer cache: sends questions from a file at low priority, before people ask them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from tenacity import (
    AsyncRetrying,
    AttemptManager,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from cluster.sse import refusal

WarmOutcome = Literal["warmed", "already there", "not kept", "failed"]

_ATTEMPTS = 8
_TIMEOUT = httpx.Timeout(30.0, read=900.0)
_MAX_PAUSE_S = 60.0
_backoff = wait_exponential(multiplier=0.5, max=_MAX_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file. body: its request, or None if the line holds none; `problem` then gives the reason."""

    number: int
    body: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WarmResult:
    """The outcome of a line. reason: why the request failed or its answer was not stored."""

    line: int
    outcome: WarmOutcome
    reason: str = ""


class _Busy(Exception):
    """The server is unreachable or overloaded. retry_after_s: seconds until a retry, if the server sent them."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def read_lines(path: Path, model: str) -> Iterator[Line]:
    """The requests in a file of JSON Lines: each a question as a string, {"question": ...}, or a whole chat request.

    model: the model for lines without one.
    """
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _parse_line(number, text, model)


def _parse_line(number: int, text: str, model: str) -> Line:
    try:
        content = json.loads(text)
    except ValueError as error:
        return Line(number, None, f"not JSON: {error}")
    if isinstance(content, str):
        content = {"question": content}
    if isinstance(content, dict) and isinstance(content.get("question"), str):
        question = content.pop("question")
        content = {"messages": [{"role": "user", "content": question}], **content}
    if not isinstance(content, dict) or "messages" not in content:
        return Line(number, None, "expected a question or a request with messages")
    # Not streamed, and at lower priority than people's requests.
    return Line(number, {"model": model, **content, "stream": False, "service_tier": "flex"})


async def warm(
    url: str, key: str, lines: Iterator[Line], concurrency: int, on_result: Callable[[WarmResult], None]
) -> None:
    """Send the requests of all lines and report the outcome of each to `on_result`.

    Cached questions cost next to nothing, so an interrupted run can simply be started again.
    url: base URL of the API, ending in /v1. concurrency: maximum number of requests at a time.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits) as client:

        async def worker() -> None:
            for line in lines:  # shared between the workers
                on_result(await _warm_line(client, line))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())


async def _warm_line(client: httpx.AsyncClient, line: Line) -> WarmResult:
    if line.body is None:
        return WarmResult(line.number, "failed", line.problem)
    try:
        async for attempt in _attempts():
            with attempt:
                answer = await _post(client, line.body, {})
    except _Busy as error:
        return WarmResult(line.number, "failed", str(error))
    if answer.status_code != httpx.codes.OK:
        return WarmResult(line.number, "failed", _error_text(answer))
    if answer.headers.get("x-dray-cache") in ("hit", "curated"):
        return WarmResult(line.number, "already there")
    # Whether the answer was stored depends on the server's policy, so ask for the cached answer.
    try:
        cached = await _post(client, line.body, {"Cache-Control": "only-if-cached"})
    except _Busy as error:
        return WarmResult(line.number, "failed", str(error))
    if cached.status_code == httpx.codes.OK:
        return WarmResult(line.number, "warmed")
    return WarmResult(line.number, "not kept", "cut off at its maximum length, or sampled without a seed (cache.store)")


async def _post(client: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    try:
        answer = await client.post("/chat/completions", json=body, headers=headers)
    except httpx.TransportError as error:
        raise _Busy(f"no answer: {type(error).__name__}") from None
    if answer.status_code in (429, 500, 503):
        pause = answer.headers.get("retry-after", "")
        raise _Busy(_error_text(answer), float(pause) if pause.isdigit() else None)
    return answer


def _attempts() -> AsyncIterator[AttemptManager]:
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(_Busy), wait=_pause, stop=stop_after_attempt(_ATTEMPTS), reraise=True
    )
    return aiter(retrying)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Busy) and error.retry_after_s is not None:
        return min(error.retry_after_s, _MAX_PAUSE_S)
    return float(_backoff(state))


def _error_text(answer: httpx.Response) -> str:
    message = refusal(answer.content)
    return f"HTTP {answer.status_code}" if message is None else f"{answer.status_code}: {message}"
