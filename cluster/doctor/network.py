"""Checks of ports, Redis servers and model hubs."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import redis

from cluster.doctor.finding import Finding, attempt
from cluster.launch.preflight import check_port, port_block
from cluster.launch.state import Record
from cluster.models.hubs import open_hub
from cluster.redis_client import RedisUrlError, connect, without_password
from cluster.redis_server import find_server
from cluster.settings import Settings

_MIRROR = "https://hf-mirror.com"
_HUB_TIMEOUT_S = 3.0


def check_ports(settings: Settings, record: Record | None) -> Iterator[Finding]:
    if record is not None:
        where = f"as part of {record.head}" if record.head else f"at {record.url}"
        yield Finding("ports", "passed", f"Dray already runs here, {where} (process {record.pid})")
        return

    def free(host: str, port: int) -> str:
        check_port(host, port)
        return f"{host}:{port} is free"

    yield attempt("ports", partial(free, settings.host, settings.port))
    chosen = settings.cluster
    for port in (chosen.port, *range(chosen.redis_port, chosen.redis_port + 3)) if chosen.head else ():
        yield attempt("ports", partial(free, "0.0.0.0", port))
    yield attempt("ports", _inner_ports)


def _inner_ports() -> str:
    with port_block() as ports:
        return f"{ports.start} to {ports.stop - 1} are free for Ray Serve and HAProxy"


def check_redis(settings: Settings) -> Iterator[Finding]:
    for name, url in (("cache.url", settings.cache.url), ("teams.url", settings.teams.url)):
        if url:
            yield _check_external_redis(name, url)
    if not (settings.cache.url and settings.teams.url):
        yield _check_own_redis()


def _check_own_redis() -> Finding:
    server = find_server()
    try:
        ended = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return Finding("Redis", "failed", f"{server} does not run ({error}); install redis-server or valkey-server")
    return Finding("Redis", "passed", ended.stdout.strip())


def _check_external_redis(name: str, url: str) -> Finding:
    shown = f"{name} {without_password(url)}"
    try:
        with connect(url) as client:
            client.ping()
            policy = client.info("memory").get("maxmemory_policy", "")
    except (redis.RedisError, RedisUrlError, OSError) as error:
        return Finding("Redis", "failed", f"{shown} does not answer: {error}; check its address, password and TLS")
    if name == "teams.url" and policy != "noeviction":
        return Finding("Redis", "warning", f"{shown} may evict teams and keys; set its maxmemory-policy to noeviction")
    return Finding("Redis", "passed", f"{shown} answers")


def check_hubs() -> Iterator[Finding]:
    """Asks all hubs at once. One that cannot be reached is only a warning, since models can be copied by hand."""
    addresses = dict.fromkeys((open_hub("huggingface").endpoint, _MIRROR, open_hub("modelscope").endpoint))
    with ThreadPoolExecutor(len(addresses)) as workers:
        yield from workers.map(_check_hub, addresses)


def _check_hub(address: str) -> Finding:
    try:
        status = httpx.head(address, timeout=_HUB_TIMEOUT_S, follow_redirects=True).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"{address} cannot be reached ({str(error) or type(error).__name__})"
        advice = "set HF_ENDPOINT to a mirror, use --source modelscope, or copy a model folder here"
        return Finding("hub", "warning", f"{reason}; {advice}")
    return Finding("hub", "passed", f"{address} answers (HTTP {status})")
