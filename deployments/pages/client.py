"""The chat page as a client of Dray's own HTTP API: it asks, and tells how far the answer has come."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import httpx

from cluster.sse import NO_DELTA, Event, EventParser, StreamError, error_message, refusal

_TIMEOUT = httpx.Timeout(10.0, read=None)
"""How long an answer may take is the server's to bound; a stream that is silent gets comments from it."""
_SHOWN_EVERY_S = 0.05


class ApiRefused(Exception):
    """The API's error: HTTP status, and what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status
        self.said = said


class ServerUnreachable(Exception):
    """The API cannot be reached, or went away. begun: in the middle of an answer."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__("no connection to the API")
        self.begun = begun


@dataclass(frozen=True, slots=True)
class ChatQuery:
    """A question with its conversation, and how it is to be answered. None: as the server does by itself."""

    model: str
    turns: tuple[Mapping[str, str], ...]
    temperature: float | None = None
    most_tokens: int | None = None

    def body(self) -> dict[str, Any]:
        """As POST /v1/chat/completions takes it."""
        said = {"temperature": self.temperature, "max_tokens": self.most_tokens}
        chosen = {name: value for name, value in said.items() if value is not None}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, "messages": list(self.turns), **chosen, **stream}


@dataclass(frozen=True, slots=True)
class Progress:
    """An answer as far as it has come. Times in seconds since it was asked; first: of the first token.

    cache: as X-Dray-Cache says it. finish: why it ended; empty while it goes on. tokens, reasoning_tokens: at the end.
    """

    thinking: str = ""
    text: str = ""
    cache: str = ""
    similar: bool = False
    finish: str = ""
    first_s: float = 0.0
    thought_s: float = 0.0
    took_s: float = 0.0
    tokens: int = 0
    reasoning_tokens: int = 0
    replica: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first; 0 where there was nothing to measure."""
        made_s = self.took_s - self.first_s
        return (self.tokens - 1) / made_s if made_s > 0 and self.tokens > 1 else 0.0


class ChatClient:
    """Dray's API at a base URL."""

    def __init__(self, url: str) -> None:
        """url: ends in /v1."""
        self._url = url
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, limits=httpx.Limits(max_connections=None))

    async def models(self, key: str) -> list[str]:
        """Names of the models that this key may ask for answers. Raises Refused, Away."""
        try:
            response = await self._http.get(f"{self._url}/models", headers=_headers(key))
        except httpx.HTTPError:
            raise ServerUnreachable(begun=False) from None
        if response.status_code != httpx.codes.OK:
            raise _error(response)
        return [one["id"] for one in response.json()["data"] if one["task"] == "generate"]

    async def ask(self, wish: ChatQuery, key: str) -> AsyncGenerator[Progress, None]:
        """The answer as it comes, a few dozen times a second at most; the last has its `finish`.

        Closing the generator closes the connection, and with it the work ends. Raises Refused, Away.
        """
        began, shown = time.perf_counter(), 0.0
        progress = Progress()
        url = f"{self._url}/chat/completions"
        try:
            async with self._http.stream("POST", url, json=wish.body(), headers=_headers(key)) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _error(response)
                progress = Progress(
                    cache=response.headers.get("x-dray-cache", ""),
                    similar=response.headers.get("x-dray-cache-match") == "similar",
                )
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        now = time.perf_counter() - began
                        progress = _after(progress, event, now)
                        if now - shown > _SHOWN_EVERY_S and progress.first_s:
                            shown = now
                            yield replace(progress, finish="")
        except (httpx.HTTPError, StreamError):
            raise ServerUnreachable(begun=bool(progress.first_s)) from None
        if not progress.finish:
            raise ServerUnreachable(begun=True)
        yield progress


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    parser = EventParser()
    async for data in response.aiter_bytes():
        for event in parser.feed(data):
            yield event


def _after(progress: Progress, event: Event, now: float) -> Progress:
    if event.error is not None:
        raise ApiRefused(500, error_message(event.error))
    for choice in event.choices or ():
        delta = choice.delta or NO_DELTA
        if delta.thinking or delta.content:
            progress = replace(
                progress,
                thinking=progress.thinking + delta.thinking,
                text=progress.text + (delta.content or ""),
                first_s=progress.first_s or now,
                thought_s=now if delta.thinking else progress.thought_s,
                took_s=now,
            )
        if choice.finish_reason:
            progress = replace(progress, finish=choice.finish_reason)
    if usage := event.usage:
        progress = replace(progress, tokens=usage.completion_tokens or 0, reasoning_tokens=usage.reasoning_tokens)
    return replace(progress, replica=event.replica or progress.replica)


def _error(response: httpx.Response) -> ApiRefused | ServerUnreachable:
    message = refusal(response.content)
    # Without one, a proxy answered: Dray is not behind it now.
    return ServerUnreachable(begun=False) if message is None else ApiRefused(response.status_code, message)
