"""A server with OpenAI's API that sends meaningless tokens at a fixed rate and records when it sent them.

A load generator should measure what this server recorded.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Process
from typing import Any

import httpx

from cluster.ports import free_port

MODEL = "emitter"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TOKEN = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" to"}}]}\n\n'
_DONE = b"data: [DONE]\n\n"


class Emitter:
    """The server. first_s: time to the first token. gap_s: time between tokens. key: the required key; empty: none."""

    def __init__(self, first_s: float, gap_s: float, key: str = "") -> None:
        self._first_s, self._gap_s, self._key = first_s, gap_s, key
        self._ttft: list[float] = []
        self._tpot: list[float] = []
        self._asked: list[dict[str, Any]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                came = time.perf_counter()
                lines = head.lower().split("\r\n")
                length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                if self._key and f"authorization: bearer {self._key}" not in lines:
                    writer.write(_whole(401, {"error": {"message": "This key is not known."}}))
                elif lines[0].startswith("get /v1/models"):
                    writer.write(_whole(200, {"data": [{"id": MODEL}]}))
                elif lines[0].startswith("get /account"):
                    writer.write(_whole(200, {"ttft": self._ttft, "tpot": self._tpot, "asked": self._asked}))
                else:
                    await self._answer(body, writer, came)
                await writer.drain()
        writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter, came: float) -> None:
        tokens, text = body["max_tokens"], " ".join(one["content"] for one in body["messages"])
        self._asked.append({"text": text, "tokens": tokens, "at": came})
        # Two tokens per word, and ten for the template.
        usage = {"prompt_tokens": 10 + 2 * len(text.split()), "completion_tokens": tokens}
        if not body.get("stream"):
            await asyncio.sleep(self._first_s + self._gap_s * tokens)
            writer.write(_whole(200, {"choices": [{"message": {"content": " to" * tokens}}], "usage": usage}))
            return
        writer.write(_HEAD)
        first = now = 0.0
        for number in range(tokens):
            await asyncio.sleep(max(0.0, came + self._first_s + number * self._gap_s - time.perf_counter()))
            now = time.perf_counter()
            first = first or now
            writer.write(_chunk(_TOKEN))
        self._ttft.append(first - came)
        if tokens > 1:
            self._tpot.append((now - first) / (tokens - 1))
        last = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()
        writer.write(_chunk(last) + _chunk(_DONE) + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _whole(status: int, content: dict[str, Any]) -> bytes:
    data = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def serve(port: int, first_s: float, gap_s: float, key: str = "") -> None:
    """Serves until the process is killed."""

    async def go() -> None:
        emitter = Emitter(first_s, gap_s, key)
        server = await asyncio.start_server(emitter.handle, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    asyncio.run(go())


@contextmanager
def emitting(first_s: float, gap_s: float, key: str = "") -> Iterator[str]:
    """Runs an emitter in a separate process; yields its base URL."""
    port = free_port()
    process = Process(target=serve, args=(port, first_s, gap_s, key), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{port}/v1"
    deadline = time.monotonic() + 10
    while True:
        try:
            httpx.get(f"{url}/models")
            break
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    try:
        yield url
    finally:
        process.kill()
        process.join()


def account(url: str) -> dict[str, list[Any]]:
    """What the emitter recorded: seconds to each first token and between tokens, and the requests."""
    told: dict[str, list[Any]] = httpx.get(f"{url.removesuffix('/v1')}/account").json()
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("--first", type=float, default=0.05)
    parser.add_argument("--gap", type=float, default=0.02)
    args = parser.parse_args()
    serve(args.port, args.first, args.gap)
