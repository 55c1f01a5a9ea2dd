"""A server that is measured: what it serves, and how it counts tokens."""

from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from cluster.bench.client import ask, error_line, failure
from cluster.bench.workload import Scale, words

_FEW, _MANY = 20, 220
"""Words of the two requests that tell how many tokens a word is."""


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

    def body(self, messages: list[dict[str, str]], output: int) -> dict[str, Any]:
        """A request for so many tokens."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": output, "temperature": 0}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body | self.extra


async def first_model(http: aiohttp.ClientSession, url: str) -> str:
    """The first model that the server names. Raises TargetError."""
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
        raise TargetError(f"{url} serves no model that it names; give --model, and a URL that ends in /v1") from None


async def calibrated(http: aiohttp.ClientSession, target: Target, run: str) -> Scale:
    """How the server counts, from the `usage` of two short requests. run: makes their words new. Raises TargetError."""
    counts = []
    for count in (_FEW, _MANY):
        message = {"role": "user", "content": words(count, f"{run}/calibration/{count}")}
        body = target.body([message], 1)
        outcome = await ask(http, target.url, body)
        if outcome.error:
            raise TargetError(f"{target.url} refuses the model {target.model!r}: {outcome.error}")
        counts.append(outcome.prompt)
    per_word = (counts[1] - counts[0]) / (_MANY - _FEW)
    if per_word <= 0:
        # A server that tells no usage: most vocabularies have a token for each of these words.
        return Scale(0.0, 1.0)
    return Scale(counts[0] - per_word * _FEW, per_word)
