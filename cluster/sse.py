"""Answers of OpenAI-compatible servers: events of a stream, whole responses and errors, as any such server writes them.

Only the fields that a client of Dray reads are decoded. Servers differ: thinking is `reasoning_content` or `reasoning`,
fields that are absent for one are null for another, and a chunk may have no choice at all.
"""

import msgspec

MAX_LINE_BYTES = 1 << 20
_DATA = b"data:"
_DONE = b"[DONE]"


class StreamError(Exception):
    """The server's stream cannot be read any further; the message says why."""


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A part of a choice, or a whole message."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thinking(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class Logprobs(msgspec.Struct, frozen=True, gc=False):
    """Present or not; its content is not read."""


NO_DELTA = Delta()


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A choice in an event or response. text: of the older completions API."""

    delta: Delta | None = NO_DELTA
    message: Delta | None = NO_DELTA
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = 0


class CompletionDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: int | None = 0


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a request."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def cached_tokens(self) -> int:
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def reasoning_tokens(self) -> int:
        return (self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens) or 0


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event of a stream, or a whole response. id: the answer's. replica: Dray's own field."""

    choices: list[Choice] | None = []
    usage: Usage | None = None
    error: object = None
    id: str | None = None
    replica: str | None = None


_decode = msgspec.json.Decoder(Event).decode


class EventParser:
    """Parses the bytes of a stream, in pieces of any size, into events. done: whether `[DONE]` has arrived.

    Every event of this API is a single `data:` line, so an event is ready with its line; comments, other fields of
    server-sent events and blank lines are skipped.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. Raises StreamError, also for a line of more than MAX_LINE_BYTES."""
        received = self._rest + data
        *lines, self._rest = received.split(b"\n")
        if len(received) > MAX_LINE_BYTES and max(map(len, (*lines, self._rest))) > MAX_LINE_BYTES:
            raise StreamError(f"an event of more than {MAX_LINE_BYTES >> 20} MiB")
        events = []
        for line in lines:
            if line.startswith(_DATA):
                content = line[len(_DATA) :]
                if content.strip() == _DONE:
                    self.done = True
                else:
                    events.append(decode(content))
        return events


def decode(data: bytes) -> Event:
    """An event's data, or the body of a whole response. Raises StreamError where it is neither."""
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        raise StreamError(f"not an answer of this API: {error}") from None


def error_message(error: object) -> str:
    """The message in the `error` of an event or response, which is an object or, with some servers, a string."""
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)


def error_code(error: object) -> str:
    """The API's name for it; empty if it has none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""


def refusal(body: bytes) -> str | None:
    """The message of an error response; None where the body is not an error of this API."""
    error = error_of(body)
    return error_message(error) if error else None


def error_of(body: bytes) -> object:
    """The `error` of an error response; None where the body is not one of this API."""
    try:
        return msgspec.json.decode(body).get("error")
    except (msgspec.DecodeError, AttributeError):
        return None
