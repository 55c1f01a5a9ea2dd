"""A small client of a running Dray, for the commands that talk to it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT = httpx.Timeout(10.0, read=600.0)


class ServerError(Exception):
    """The server refused or cannot be reached; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer. usage: only in the last."""

    reasoning: str = ""
    text: str = ""
    usage: dict[str, Any] | None = None


def stream_chat(url: str, key: str, model: str, messages: list[dict[str, str]]) -> Iterator[Delta]:
    """Asks and yields the answer as it comes. url: the base URL, ending in /v1. key: empty where none is needed.

    Raises ServerError.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    try:
        with httpx.stream("POST", f"{url}/chat/completions", json=body, headers=headers, timeout=_TIMEOUT) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise ServerError(_said(response))
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _delta(json.loads(line[6:]))
    except httpx.HTTPError as error:
        raise ServerError(f"{url} does not answer: {error}") from None


def metrics(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample of a running Dray by its name, with labels. url: the base URL. Raises ServerError."""
    try:
        text = httpx.get(f"{url.removesuffix('/v1')}/metrics", timeout=5.0).raise_for_status().text
    except httpx.HTTPError as error:
        raise ServerError(f"{url} does not answer: {error}") from None
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _delta(event: dict[str, Any]) -> Delta:
    if "error" in event:
        raise ServerError(event["error"]["message"])
    delta = event["choices"][0]["delta"] if event["choices"] else {}
    return Delta(delta.get("reasoning_content", ""), delta.get("content", ""), event.get("usage"))


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
