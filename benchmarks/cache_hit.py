"""Cache hits a second through HAProxy and the router beside a bare uvicorn route that does the same Redis read."""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from urllib.parse import urlsplit

import httpx

from benchmarks.service import Service, report, running
from cluster.preflight import free_port

QUESTION = "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?"


async def hammer(url: str, body: bytes, connections: int, seconds: float) -> list[float]:
    """Latencies in seconds of POST requests over kept-alive connections. Raw sockets: the client must cost little."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request, latencies, deadline = head.encode() + body, [], time.perf_counter() + seconds

    async def lane() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while (began := time.perf_counter()) < deadline:
            writer.write(request)
            header = await reader.readuntil(b"\r\n\r\n")
            if not header.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(header.decode())
            length = int(header.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(lane() for _ in range(connections)))
    return latencies


def measured(url: str, body: bytes, connections: int, seconds: float) -> tuple[float, float, float]:
    """Requests a second, p50 and p99 in milliseconds, from a client process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.cache_hit", "--client", url, str(connections), str(seconds)],
        input=body,
        capture_output=True,
        check=True,
    )
    latencies = json.loads(ended.stdout)
    cuts = quantiles(latencies, n=100)
    return len(latencies) / seconds, 1000 * cuts[49], 1000 * cuts[98]


@contextmanager
def bare_route(redis_url: str, key: str) -> Iterator[str]:
    """A uvicorn process with one Starlette route; gives its URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare_route", str(port), redis_url, key])
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.post(url, content=b"{}").raise_for_status()
                break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def compare(service: Service, args: argparse.Namespace) -> str:
    import redis

    body = json.dumps(
        {"model": service.status()["models"][0], "messages": [{"role": "user", "content": QUESTION}]},
        ensure_ascii=False,
    ).encode()
    url = f"{service.url}/chat/completions"
    answers = [httpx.post(url, content=body, timeout=60) for _ in range(2)]
    assert answers[1].headers["x-dray-cache"] == "hit"
    redis_url = f"unix://{service.folder}/s/redis/redis.sock"
    with redis.Redis.from_url(redis_url) as client:
        client.set("bench:answer", answers[1].content)
    through, alone = [], []
    with bare_route(redis_url, "bench:answer") as bare:
        for _ in range(args.rounds):
            through.append(measured(url, body, args.connections, args.seconds))
            alone.append(measured(bare, body, args.connections, args.seconds))
    rows = [
        [name, *(f"{median(one[column] for one in runs):.{digits}f}" for column, digits in ((0, 0), (1, 2), (2, 2)))]
        for name, runs in (("Dray", through), ("bare uvicorn route", alone))
    ]
    ratio = median(one[0] / other[0] for one, other in zip(through, alone, strict=True))
    rows.append(["ratio", f"{ratio:.3f}", "", ""])
    return report(f"Cache hits, {args.connections} connections", ["server", "requests/s", "p50 ms", "p99 ms"], rows)


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        url, connections, seconds = sys.argv[2:5]
        latencies = asyncio.run(hammer(url, sys.stdin.buffer.read(), int(connections), float(seconds)))
        json.dump(latencies, sys.stdout)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with running() as service:
        print(compare(service, args))


if __name__ == "__main__":
    main()
