"""One request to an OpenAI-compatible server, and when its tokens came.

Reading is kept cheap, as what the client takes for itself is seen as the server's: bytes are taken as they come, and
each event is decoded into the few fields that are looked at.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

_LONGEST_EVENT = 1 << 20
_IDLE_S = 2.0
_AT_ONCE_S = 0.02
"""A connection that fails within this time had been closed before."""
_SAID = 200
"""Characters that are kept of what a server says of an error."""


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    """Only whether they are there is looked at."""


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    text: str | None = None
    logprobs: _Logprobs | None = None
    message: _Delta = _Delta()


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class Outcome:
    """What has become of a request. Times in seconds on the clock of time.perf_counter; 0 for what never came.

    cached: prompt tokens that the server says it found computed. pieces: events that brought some of the answer.
    hit: whether Dray says that the answer was stored or being made.
    """

    began: float
    first: float = 0.0
    last: float = 0.0
    ended: float = 0.0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    pieces: int = 0
    hit: bool = False
    error: str = ""
    text: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first - self.began

    @property
    def tpot_s(self) -> float | None:
        """None where there was one token, or all came at once."""
        return (self.last - self.first) / (self.completion - 1) if self.completion > 1 and self.pieces > 1 else None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], *, text: bool = False) -> Outcome:
    """Asks, and reads the answer to its end. url: the base URL, ending in /v1. text: whether to keep what was said.

    What goes wrong is in the outcome's `error`.
    """
    outcome = Outcome(time.perf_counter())
    try:
        async with await _posted(session, f"{url}/chat/completions", body) as response:
            outcome.hit = response.headers.get("x-dray-cache") in ("hit", "join")
            if response.status != 200:
                outcome.error = f"{response.status}: {sse_data(await response.read())}"
            elif body.get("stream"):
                await _read_stream(response, outcome, keep=text)
            else:
                _take_whole(await response.read(), outcome)
    except TimeoutError:
        outcome.error = "no answer in time"
    except (aiohttp.ClientError, OSError) as error:
        outcome.error = f"connection: {failure(error)}"
    except msgspec.DecodeError as error:
        outcome.error = f"not an answer of this API: {error}"
    outcome.ended = time.perf_counter()
    if not outcome.error and not outcome.pieces and not outcome.completion:
        outcome.error = "the answer was empty"
    # Without usage, an event is taken for a token. Where no token was a character, its time is that of the end.
    outcome.completion = outcome.completion or outcome.pieces
    outcome.first = outcome.first or outcome.ended
    outcome.last = outcome.last or outcome.ended
    return outcome


async def _posted(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
    """The response. A server may close a connection between two requests: then another is taken."""
    began = time.perf_counter()
    try:
        return await session.post(url, json=body)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
        if time.perf_counter() - began > _AT_ONCE_S:
            raise
        return await session.post(url, json=body)


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome, *, keep: bool) -> None:
    rest, texts, whole = b"", list[str](), False
    async for data in response.content.iter_any():
        now = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST_EVENT:
            outcome.error = "an event of more than 1 MiB"
            return
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line.startswith(b"data: [DONE]"):
                whole = True
                continue
            event = _decode(line[5:])
            if event.error is not None:
                outcome.error = f"in the stream: {sse_data(line[5:])}"
            _take_usage(event, outcome)
            for choice in event.choices:
                delta = choice.delta
                made = delta.content or delta.reasoning_content or delta.reasoning or choice.text or ""
                # With logprobs a token is told even where it is no character.
                if made or choice.logprobs is not None:
                    outcome.first = outcome.first or now
                    outcome.last = now
                    outcome.pieces += 1
                    if keep:
                        texts.append(delta.content or choice.text or "")
    if not whole and not outcome.error:
        outcome.error = "the stream broke off"
    outcome.text = "".join(texts)


def _take_whole(data: bytes, outcome: Outcome) -> None:
    event = _decode(data)
    _take_usage(event, outcome)
    outcome.text = "".join(choice.message.content or choice.text or "" for choice in event.choices)


def _take_usage(event: _Event, outcome: Outcome) -> None:
    if event.usage is not None:
        outcome.prompt, outcome.completion = event.usage.prompt_tokens, event.usage.completion_tokens
        details = event.usage.prompt_tokens_details
        outcome.cached = (details.cached_tokens or 0) if details else 0


def sse_data(data: bytes) -> str:
    """What a server says of an error, in one short line."""
    return next(_said(data), "") or data.decode(errors="replace")[:_SAID].replace("\n", " ") or "nothing said"


def _said(data: bytes) -> Iterator[str]:
    try:
        error = msgspec.json.decode(data).get("error")
    except (msgspec.DecodeError, AttributeError):
        return
    yield str(error.get("message") if isinstance(error, dict) else error)[:_SAID]


def failure(error: Exception) -> str:
    """What went wrong with a connection, in a few words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def session(key: str, at_a_time: int, timeout_s: float) -> aiohttp.ClientSession:
    """A pool of connections. key: empty where none is needed. at_a_time: at most; 0: any number."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 10.0))
    # Servers close idle connections after 5 s or so: one that is about to be closed must not be taken.
    pool = aiohttp.TCPConnector(limit=at_a_time, keepalive_timeout=_IDLE_S)
    return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=pool, read_bufsize=1 << 20)
