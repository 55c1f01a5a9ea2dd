"""The chat page's client of Dray's own HTTP API."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import unquote

import httpx

from cluster.sse import NO_DELTA, Event, EventParser, StreamError, error_code, error_message, error_of

_TIMEOUT = httpx.Timeout(10.0, read=None)
"""No read timeout: the server limits how long an answer takes, and keeps silent streams alive with comments."""
_UPDATE_INTERVAL_S = 0.05


class ApiRefused(Exception):
    """The API answered with an error. status: HTTP status. code: the API's name for the error; may be empty."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class ServerUnreachable(Exception):
    """The API cannot be reached. begun: the connection was lost in the middle of an answer."""

    def __init__(self, *, mid_answer: bool) -> None:
        super().__init__("no connection to the API")
        self.mid_answer = mid_answer


@dataclass(frozen=True, slots=True)
class PageModel:
    """A model to choose. temperature, top_p: what the server takes where a request sets none. context_tokens: how many
    a prompt and its answer may have."""

    name: str
    temperature: float = 0.0
    top_p: float = 1.0
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChatQuery:
    """A conversation that ends with a question, and how to answer it. None: the server's default.

    effort: maximum thinking, as the API's `reasoning_effort`. fresh: generate a new answer, even if one is cached.
    """

    model: str
    messages: tuple[Mapping[str, str], ...]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    effort: str | None = None
    fresh: bool = False

    def body(self) -> dict[str, Any]:
        """The body for POST /v1/chat/completions."""
        optional = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "reasoning_effort": self.effort,
        }
        options = {name: value for name, value in optional.items() if value is not None}
        # The usage in each chunk is what the page counts while an answer arrives.
        stream = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        return {"model": self.model, "messages": list(self.messages), **options, **stream}


@dataclass(frozen=True, slots=True)
class Rating:
    """What a person thinks of an answer, for POST /v1/feedback. id: the answer's. rating: "up" or "down"."""

    id: str
    rating: str
    reason: str | None = None
    correction: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What has arrived of an answer.

    cache: value of X-Dray-Cache. finish: finish reason; empty until the end. first_s, thought_s, took_s: seconds from
    the question to the first token, the end of the thinking, and the last token. tokens, reasoning_tokens: so far.
    id: the answer's, as the API has it. author: of a curated answer, if known.
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
    id: str = ""
    author: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first token; 0 if there are none."""
        seconds = self.took_s - self.first_s
        return (self.tokens - 1) / seconds if seconds > 0 and self.tokens > 1 else 0.0


class ChatClient:
    """Sends requests to Dray's API."""

    def __init__(self, url: str) -> None:
        """url: base URL, ending in /v1."""
        self._url = url
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, limits=httpx.Limits(max_connections=None))

    async def models(self, key: str) -> list[PageModel]:
        """The generating models that this key may use. Raises ApiRefused, ServerUnreachable."""
        try:
            response = await self._http.get(f"{self._url}/models", headers=_headers(key))
        except httpx.HTTPError:
            raise ServerUnreachable(mid_answer=False) from None
        if response.status_code != httpx.codes.OK:
            raise _error(response)
        entries = [entry for entry in response.json()["data"] if entry["task"] == "generate"]
        defaults = [(entry["id"], entry["default_parameters"], entry["max_model_len"]) for entry in entries]
        return [PageModel(name, each["temperature"], each["top_p"], context) for name, each, context in defaults]

    async def count_tokens(self, model: str, text: str, key: str) -> int | None:
        """How many tokens the text has; None if they do not fit the context. Raises ApiRefused, ServerUnreachable."""
        url = f"{self._url.removesuffix('/v1')}/tokenize"
        try:
            response = await self._http.post(url, json={"model": model, "prompt": text}, headers=_headers(key))
        except httpx.HTTPError:
            raise ServerUnreachable(mid_answer=False) from None
        if response.status_code == httpx.codes.OK:
            return int(response.json()["count"])
        error = _error(response)
        if isinstance(error, ApiRefused) and error.code == "context_length_exceeded":
            return None
        raise error

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def rate(self, rating: Rating, key: str) -> None:
        """Sends what a person thinks of an answer. Raises ApiRefused (404: none are kept), ServerUnreachable."""
        try:
            response = await self._http.post(f"{self._url}/feedback", json=asdict(rating), headers=_headers(key))
        except httpx.HTTPError:
            raise ServerUnreachable(mid_answer=False) from None
        if not response.is_success:
            raise _error(response)

    async def ask(self, query: ChatQuery, key: str) -> AsyncGenerator[Progress, None]:
        """The answer while it arrives, at most 20 times a second; the last progress has a `finish`.

        Closing the generator closes the connection, which cancels the answer. Raises ApiRefused, ServerUnreachable.
        """
        start, updated_s = time.perf_counter(), -_UPDATE_INTERVAL_S
        progress = Progress()
        url = f"{self._url}/chat/completions"
        headers = _headers(key) | ({"Cache-Control": "no-cache"} if query.fresh else {})
        try:
            async with self._http.stream("POST", url, json=query.body(), headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _error(response)
                progress = Progress(
                    cache=response.headers.get("x-dray-cache", ""),
                    similar=response.headers.get("x-dray-cache-match") == "similar",
                    author=unquote(response.headers.get("x-dray-curated-author", "")),
                )
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        now = time.perf_counter() - start
                        progress = _after(progress, event, now)
                        if now - updated_s > _UPDATE_INTERVAL_S and progress.first_s:
                            updated_s = now
                            yield replace(progress, finish="")
        except (httpx.HTTPError, StreamError):
            raise ServerUnreachable(mid_answer=bool(progress.first_s)) from None
        if not progress.finish:
            raise ServerUnreachable(mid_answer=True)
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
        raise ApiRefused(500, error_message(event.error), error_code(event.error))
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
    return replace(progress, replica=event.replica or progress.replica, id=event.id or progress.id)


def _error(response: httpx.Response) -> ApiRefused | ServerUnreachable:
    error = error_of(response.content)
    # Without one, a proxy answered: Dray is not behind it now.
    if not error:
        return ServerUnreachable(mid_answer=False)
    return ApiRefused(response.status_code, error_message(error), error_code(error))
