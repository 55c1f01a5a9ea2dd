"""A server under measurement: the model that it serves, and how it counts tokens."""

from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from cluster.bench.client import ask, error_line, failure
from cluster.bench.workload import Scale, words

_SHORT_WORDS, _LONG_WORDS = 20, 220
"""Lengths of the two requests that show how many tokens a word takes."""


class TargetError(Exception):
    """The server cannot be measured; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server. url: its base URL, ending in /v1. extra: further fields of every request."""

    url: str
    key: str
    model: str
    stream: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """A chat request."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body | self.extra


async def first_model(http: aiohttp.ClientSession, url: str) -> str:
    """The first model that the server lists. Raises TargetError."""
    try:
        async with http.get(f"{url}/models") as response:
            data = await response.read()
            if response.status != 200:
                raise TargetError(f"{url} refuses ({response.status}): {error_line(data)}")
    except TimeoutError:
        raise TargetError(f"{url} does not answer in time") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise TargetError(f"{url} does not answer: {failure(error)}") from None
    try:
        return str(msgspec.json.decode(data)["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise TargetError(f"{url}/models lists no model; give --model, and a URL that ends in /v1") from None


async def calibrated(http: aiohttp.ClientSession, target: Target, run_id: str) -> Scale:
    """How the server counts tokens, from the `usage` of two short requests. Raises TargetError.

    run_id: makes their words new, so that no cache knows them.
    """
    counts = []
    for count in (_SHORT_WORDS, _LONG_WORDS):
        message = {"role": "user", "content": words(count, f"{run_id}/calibration/{count}")}
        outcome = await ask(http, target.url, target.body([message], 1))
        if outcome.error:
            raise TargetError(f"{target.url} refuses the model {target.model!r}: {outcome.error}")
        counts.append(outcome.prompt)
    per_word = (counts[1] - counts[0]) / (_LONG_WORDS - _SHORT_WORDS)
    if per_word <= 0:
        # The server reports no usage: most vocabularies have a token for each of these words.
        return Scale(0.0, 1.0)
    return Scale(counts[0] - per_word * _SHORT_WORDS, per_word)
