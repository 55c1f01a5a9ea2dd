"""Cache hits per second through HAProxy and the router, compared with a bare uvicorn route with the same Redis read.

With --curated, also compared with curated answers of the same length. With --litellm, also compared with LiteLLM's
proxy, whose Redis cache holds an answer of the same length:
`python -m venv L && L/bin/pip install 'litellm[proxy]'`, then `--litellm L/bin/litellm`.
"""

import argparse
import asyncio
import base64
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx

from benchmarks.service import Service, report, running
from cluster.ports import free_port
from cluster.redis_server import Listen, OwnRedis
from cluster.settings import PRIVACY_KEYS

_JSON = {"Content-Type": "application/json"}
QUESTION = "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?"


async def hammer(url: str, body: bytes, connections: int, seconds: float) -> list[float]:
    """Latencies in seconds of POST requests over keep-alive connections. Raw sockets keep the client cheap."""
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
    """Requests per second, and p50 and p99 in milliseconds, from a separate client process."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.cache_hit", "--client", url, str(connections), str(seconds)],
        input=body,
        stdout=subprocess.PIPE,
        check=True,
    )
    latencies = json.loads(ended.stdout)
    cuts = quantiles(latencies, n=100)
    return len(latencies) / seconds, 1000 * cuts[49], 1000 * cuts[98]


@contextmanager
def bare_route(redis_url: str, key: str) -> Iterator[str]:
    """Runs uvicorn with one Starlette route; yields its URL."""
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


@contextmanager
def litellm_proxy(command: str, answer: str) -> Iterator[str]:
    """Runs LiteLLM's proxy with its own Redis and a model that always gives the answer; yields its URL."""
    with TemporaryDirectory(prefix="dray-b-") as folder:
        port, listen = free_port(), Listen("127.0.0.1", free_port(), secrets.token_hex(8))
        store = OwnRedis(Path(folder) / "r", 64, listen=listen)
        store.start()
        cache = {"type": "redis", "host": listen.address, "port": listen.port, "password": listen.password}
        model = {"model": "openai/any", "api_key": "none", "mock_response": answer}
        config = {
            "model_list": [{"model_name": "any", "litellm_params": model}],
            "litellm_settings": {"cache": True, "cache_params": cache},
            # Without keys, which is less work for it.
            "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
        }
        (Path(folder) / "config.yaml").write_text(json.dumps(config))
        process = subprocess.Popen(
            [command, "--config", f"{folder}/config.yaml", "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{port}/v1/chat/completions"
        finally:
            process.terminate()
            process.wait()
            store.stop()


def compare_with_litellm(url: str, body: bytes, answer: str, args: argparse.Namespace) -> str:
    ours, theirs = [], []
    with litellm_proxy(args.litellm, answer) as other:
        asked = json.dumps({"model": "any", "messages": [{"role": "user", "content": QUESTION}]}).encode()
        deadline = time.monotonic() + 120
        while True:
            try:
                given = httpx.post(other, content=asked, timeout=60)
            except httpx.TransportError:
                given = None
            if given is not None and given.status_code == 200 and given.json()["choices"][0]["message"]["content"]:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"LiteLLM does not answer: {given and given.text}")
            time.sleep(0.5)
        first, second = (httpx.post(other, content=asked, timeout=60).json()["id"] for _ in range(2))
        if first != second:
            raise RuntimeError("LiteLLM's answers do not come from its cache")
        for _ in range(args.rounds):
            ours.append(measured(url, body, args.connections, args.seconds))
            theirs.append(measured(other, asked, args.connections, args.seconds))
    ratio = median(one[0] / other[0] for one, other in zip(ours, theirs, strict=True))
    rows = [*_rows({"Dray": ours, "LiteLLM's proxy": theirs}), ["ratio", f"{ratio:.1f}", "", ""]]
    return report(f"Cache hits beside LiteLLM, {args.connections} connections", _HEADS, rows)


def compare_with_curated(service: Service, url: str, body: bytes, answer: str, args: argparse.Namespace) -> str:
    question = f"{QUESTION} (curated)"
    asked = json.dumps(json.loads(body) | {"messages": [{"role": "user", "content": question}]}).encode()
    file = service.folder / "answers.jsonl"
    file.write_text(json.dumps({"question": question, "answer": answer}), encoding="utf-8")
    service.run("answers", "import", str(file))
    deadline = time.monotonic() + 20
    while httpx.post(url, content=asked, headers=_JSON, timeout=60).headers["x-dray-cache"] != "curated":
        if time.monotonic() > deadline:
            raise RuntimeError("the curated answer is not given")
        time.sleep(0.1)
    cached: list[tuple[float, float, float]] = []
    curated: list[tuple[float, float, float]] = []
    for number in range(args.rounds):
        # In turn, and each first in every other round.
        for runs, sent in ((cached, body), (curated, asked))[:: -1 if number % 2 else 1]:
            runs.append(measured(url, sent, args.connections, args.seconds))
    ratio = median(one[0] / other[0] for one, other in zip(curated, cached, strict=True))
    rows = [*_rows({"curated": curated, "cached": cached}), ["ratio", f"{ratio:.2f}", "", ""]]
    return report(f"Curated answers beside cache hits, {args.connections} connections", ["answer", *_HEADS[1:]], rows)


_HEADS = ["server", "requests/s", "p50 ms", "p99 ms"]


def _rows(runs: dict[str, list[tuple[float, float, float]]]) -> list[list[str]]:
    return [
        [name, *(f"{median(one[column] for one in seen):.{digits}f}" for column, digits in ((0, 0), (1, 2), (2, 2)))]
        for name, seen in runs.items()
    ]


def compare(service: Service, args: argparse.Namespace) -> None:
    import redis

    body = json.dumps(
        {"model": service.status()["models"][0], "messages": [{"role": "user", "content": QUESTION}]},
        ensure_ascii=False,
    ).encode()
    url = f"{service.url}/chat/completions"
    answers = [httpx.post(url, content=body, headers=_JSON, timeout=60) for _ in range(2)]
    assert answers[1].headers["x-dray-cache"] == "hit"
    redis_url = f"unix://{service.folder}/s/redis/redis.sock"
    with redis.Redis.from_url(redis_url) as client:
        client.set("bench:answer", answers[1].content)
    through, alone = [], []
    with bare_route(redis_url, "bench:answer") as bare:
        for _ in range(args.rounds):
            through.append(measured(url, body, args.connections, args.seconds))
            alone.append(measured(bare, body, args.connections, args.seconds))
    ratio = median(one[0] / other[0] for one, other in zip(through, alone, strict=True))
    rows = [*_rows({"Dray": through, "bare uvicorn route": alone}), ["ratio", f"{ratio:.3f}", "", ""]]
    print(report(f"Cache hits, {args.connections} connections", _HEADS, rows))
    answer = answers[1].json()["choices"][0]["message"]
    text = (answer.get("reasoning_content") or "") + answer["content"]
    if args.curated:
        print(compare_with_curated(service, url, body, text, args))
    if args.litellm:
        print(compare_with_litellm(url, body, text, args))


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
    parser.add_argument("--curated", action="store_true", help="compare with curated answers")
    parser.add_argument("--litellm", default="", help="command of the LiteLLM to compare with")
    parser.add_argument("--encrypted", action="store_true", help="encrypt what Redis keeps")
    args = parser.parse_args()
    keys = {PRIVACY_KEYS: base64.b64encode(secrets.token_bytes(32)).decode()} if args.encrypted else {}
    with running(**keys) as service:
        compare(service, args)


if __name__ == "__main__":
    main()
