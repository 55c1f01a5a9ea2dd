"""One request to an OpenAI-compatible server, and when its tokens arrived.

Reading is kept cheap, because the client's own time would count as the server's: aiohttp parses HTTP in C, and bytes
are taken as they arrive.
"""

import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from cluster.sse import NO_DELTA, Event, EventParser, StreamError, decode, error_message, refusal

_IDLE_S = 2.0
_AT_ONCE_S = 0.02
"""A pooled connection that fails within this time had already been closed by the server."""
_MAX_ERROR_CHARS = 200


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times in seconds on the clock of time.perf_counter; 0 for what never happened.

    cached: prompt tokens that the server reports as cached. pieces: events that carried a part of the answer.
    hit: whether Dray reports that the answer was cached, or already being generated. text: kept only on request.
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
        """None for a single token, and where all tokens arrived at once."""
        return (self.last - self.first) / (self.completion - 1) if self.completion > 1 and self.pieces > 1 else None

    @property
    def seconds(self) -> float:
        return self.ended - self.began


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], *, text: bool = False) -> Outcome:
    """Sends a request and reads the answer to its end; a failure is in the outcome's `error`.

    url: the base URL, ending in /v1. text: whether to keep the answer's text.
    """
    outcome = Outcome(time.perf_counter())
    try:
        async with await _post(session, f"{url}/chat/completions", body) as response:
            outcome.hit = response.headers.get("x-dray-cache") in ("hit", "curated", "join")
            if response.status != 200:
                outcome.error = f"{response.status}: {error_line(await response.read())}"
            elif body.get("stream"):
                await _read_stream(response, outcome, keep=text)
            else:
                _read_whole(await response.read(), outcome)
    except TimeoutError:
        outcome.error = "no answer in time"
    except (aiohttp.ClientError, OSError) as error:
        outcome.error = f"connection: {failure(error)}"
    except StreamError as error:
        outcome.error = str(error)
    outcome.ended = time.perf_counter()
    if not outcome.error and not outcome.pieces and not outcome.completion:
        outcome.error = "the answer was empty"
    # Without usage, each event counts as a token. Where no token was a character, its time is that of the end.
    outcome.completion = outcome.completion or outcome.pieces
    outcome.first = outcome.first or outcome.ended
    outcome.last = outcome.last or outcome.ended
    return outcome


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
    """The response. Where the server had closed the pooled connection between two requests, tries another one."""
    start = time.perf_counter()
    try:
        return await session.post(url, json=body)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
        if time.perf_counter() - start > _AT_ONCE_S:
            raise
        return await session.post(url, json=body)


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome, *, keep: bool) -> None:
    parser, texts = EventParser(), list[str]()
    async for data in response.content.iter_any():
        now = time.perf_counter()
        for event in parser.feed(data):
            if event.error is not None:
                outcome.error = f"in the stream: {_one_line(error_message(event.error))}"
            _note_usage(event, outcome)
            for choice in event.choices or ():
                delta = choice.delta or NO_DELTA
                piece = delta.content or delta.reasoning_content or delta.reasoning or choice.text
                # With logprobs, a token has an event even where it is no character yet.
                if piece or choice.logprobs is not None:
                    outcome.first = outcome.first or now
                    outcome.last = now
                    outcome.pieces += 1
                    if keep:
                        texts.append(delta.content or choice.text or "")
    if not parser.done and not outcome.error:
        outcome.error = "the stream broke off"
    outcome.text = "".join(texts)


def _read_whole(data: bytes, outcome: Outcome) -> None:
    event = decode(data)
    _note_usage(event, outcome)
    outcome.text = "".join((choice.message or NO_DELTA).content or choice.text or "" for choice in event.choices or ())


def _note_usage(event: Event, outcome: Outcome) -> None:
    if (usage := event.usage) is not None:
        outcome.prompt, outcome.completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        outcome.cached = usage.cached_tokens


def error_line(body: bytes) -> str:
    """What an error response says, in one short line."""
    return _one_line(refusal(body) or body.decode(errors="replace")) or "no message"


def _one_line(text: str) -> str:
    return text[:_MAX_ERROR_CHARS].replace("\n", " ")


def failure(error: Exception) -> str:
    """What went wrong with a connection, in a few words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def session(key: str, max_connections: int, timeout_s: float) -> aiohttp.ClientSession:
    """A pool of connections. key: empty if the server needs none. max_connections: 0 for no limit."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, 10.0))
    # Servers close idle connections after about 5 s; this pool drops them earlier, so that none is closed while in use.
    pool = aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_IDLE_S)
    return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=pool, read_bufsize=1 << 20)
