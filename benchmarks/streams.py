"""Streams through HTTP, a number at a time: the client side of the throughput measurements."""

import asyncio
import json
import secrets
import time
from dataclasses import dataclass

import httpx

from benchmarks.service import Service


@dataclass
class Tally:
    """Completion tokens of finished streams, and seconds that all of it took."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def words(count: int) -> str:
    """A question of `count` random digits, so that neither the prefix cache nor the answer cache knows it."""
    return " ".join(str(secrets.randbelow(10)) for _ in range(count))


async def chat_streams(service: Service, streams: int, *, rounds: int, prompt: int, tokens: int) -> Tally:
    """Runs `streams` at a time, `rounds` times each. prompt: length in words. tokens: most to complete."""
    model = service.status()["models"][0]
    tally = Tally()

    async def one(http: httpx.AsyncClient) -> None:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": words(prompt)}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        last = ""
        async with http.stream("POST", f"{service.url}/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    last = line
        tally.tokens += json.loads(last[6:])["usage"]["completion_tokens"]

    async def lane(http: httpx.AsyncClient) -> None:
        for _ in range(rounds):
            await one(http)

    async with httpx.AsyncClient(timeout=900) as http:
        began = time.perf_counter()
        await asyncio.gather(*(lane(http) for _ in range(streams)))
        tally.seconds = time.perf_counter() - began
    return tally
