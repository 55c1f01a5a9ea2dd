"""A small client of a running Dray, or of another OpenAI-compatible server, for the commands that talk to one."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from cluster.sse import NO_DELTA, Event, EventParser, StreamError, error_message, refusal

_TIMEOUT = httpx.Timeout(10.0, read=600.0)


_NO_LIST = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED)


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class ServerError(Exception):
    """The server refused the request, failed or is unreachable; the message says how."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of a streamed answer. tokens: of the whole completion, in the part that has the usage; else 0.
    finish_reason: in the last part; else empty."""

    reasoning: str = ""
    text: str = ""
    tokens: int = 0
    finish_reason: str = ""


def stream_chat(url: str, key: str, model: str, messages: list[dict[str, str]]) -> Iterator[Delta]:
    """Requests a streamed answer and yields its parts as they arrive.

    url: the base URL, ending in /v1. key: empty if the server needs none. Raises ServerError, also where the stream
    ends before the answer does.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    parser, finished, started = EventParser(), False, False
    try:
        with httpx.stream("POST", f"{url}/chat/completions", json=body, headers=headers, timeout=_TIMEOUT) as response:
            if response.status_code != httpx.codes.OK:
                raise ServerError(refusal(response.read()) or f"HTTP {response.status_code}")
            for data in response.iter_bytes():
                for event in parser.feed(data):
                    started = True
                    finished = finished or any(choice.finish_reason for choice in event.choices or ())
                    yield _delta(event)
    except httpx.HTTPError as error:
        raise ServerError(f"{url} {'broke the stream off' if started else 'does not answer'}: {error}") from None
    except StreamError as error:
        raise ServerError(f"{url}: {error}") from None
    if not parser.done and not finished:
        raise ServerError(f"{url} ended the stream before the answer was complete")


def served_models(url: str, key: str) -> tuple[str, ...]:
    """The names of the server's models; none where it has no such list.

    url: the base URL, ending in /v1. key: empty if the server needs none. Raises ServerError.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(f"{url}/models", headers=headers, timeout=_TIMEOUT)
    except httpx.HTTPError as error:
        raise ServerError(f"{url} does not answer: {error}") from None
    if response.status_code in _NO_LIST:
        return ()
    if response.status_code != httpx.codes.OK:
        raise ServerError(refusal(response.content) or f"HTTP {response.status_code}")
    try:
        return tuple(model.id for model in msgspec.json.decode(response.content, type=_Models).data)
    except msgspec.DecodeError as error:
        raise ServerError(f"{url}/models is not a list of models: {error}") from None


def metrics(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample of a running Dray by its name, with labels. url: the base URL. Raises ServerError."""
    try:
        text = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=5.0).raise_for_status().text
    except httpx.HTTPError as error:
        raise ServerError(f"{url} does not answer: {error}") from None
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def _delta(event: Event) -> Delta:
    if event.error is not None:
        raise ServerError(error_message(event.error))
    deltas = [choice.delta or NO_DELTA for choice in event.choices or ()]
    return Delta(
        "".join(delta.thinking for delta in deltas),
        "".join(delta.content or "" for delta in deltas),
        (event.usage.completion_tokens or 0) if event.usage else 0,
        next((choice.finish_reason for choice in event.choices or () if choice.finish_reason), ""),
    )
