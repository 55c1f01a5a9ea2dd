"""Clients for every form of Redis URL: a server, its Unix socket, TLS, Sentinel, Cluster.

    redis://[user:password@]host:port/db          rediss:// with TLS
    unix:///path/to/socket
    redis+sentinel://[user:password@]host:port,host:port/service[/db]
    redis+cluster://[user:password@]host:port,host:port        rediss+... of both with TLS

Certificates are named in the query: ?ssl_ca_certs=PATH&ssl_certfile=PATH&ssl_keyfile=PATH. A Sentinel's own user and
password too: ?sentinel_username=NAME&sentinel_password=SECRET.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.backoff
import redis.cluster
import redis.retry
import redis.sentinel

_PORTS = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_S = 0.2
_SIMPLE = ("redis", "rediss", "unix")


class RedisUrlError(ValueError):
    """The URL is none that a client can be made for. The message does not hold its password."""


@dataclass(frozen=True, slots=True)
class _Several:
    """A URL of several hosts. kind: "sentinel" or "cluster"."""

    kind: str
    hosts: list[tuple[str, int]]
    service: str
    options: dict[str, Any] = field(default_factory=dict)
    sentinel: dict[str, str] = field(default_factory=dict)


def check_url(url: str) -> None:
    """Raises RedisUrlError for a URL of another form."""
    scheme = url.partition("://")[0]
    if scheme in _SIMPLE:
        try:
            redis.ConnectionPool.from_url(url)
        except (ValueError, TypeError) as error:
            raise RedisUrlError(f"{without_password(url)}: {error}") from None
        return
    _several(url)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    who, at, where = parts.netloc.rpartition("@")
    shown = f"{who.partition(':')[0]}:***{at}" if ":" in who else who + at
    query = "&".join(
        f"{name}={'***' if 'password' in name else value}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    return urlunsplit((parts.scheme, shown + where, parts.path, query, ""))


def connect(url: str, *, timeout_s: float = 2.0) -> Any:
    """A client that blocks, for commands; close it. Raises RedisUrlError."""
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 3}
    if url.partition("://")[0] in _SIMPLE:
        return redis.Redis.from_url(url, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 1), **options)
    found = _several(url)
    if found.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(*one) for one in found.hosts]  # type: ignore[no-untyped-call]
        return redis.cluster.RedisCluster(startup_nodes=nodes, **options, **found.options)
    sentinel: Any = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        found.hosts, sentinel_kwargs=_towards_sentinels(found, options)
    )
    return sentinel.master_for(found.service, **options, **found.options)


def connect_async(url: str, *, most_connections: int) -> Any:
    """A client for an event loop; close it. Who calls bounds the time of a call. Raises RedisUrlError."""
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "protocol": 3,
        # Once more and at once: a connection in the pool may be of a server that has gone since. The default would
        # try for seconds.
        "retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 1),
        "max_connections": most_connections,
    }
    if url.partition("://")[0] in _SIMPLE:
        return redis.asyncio.Redis.from_url(url, **options)
    found = _several(url)
    if found.kind == "cluster":
        cluster_nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in found.hosts]
        return redis.asyncio.cluster.RedisCluster(startup_nodes=cluster_nodes, **options, **found.options)
    sentinel: Any = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        found.hosts, sentinel_kwargs=_towards_sentinels(found, options)
    )
    return sentinel.master_for(found.service, **options, **found.options)


def _towards_sentinels(found: _Several, options: dict[str, Any]) -> dict[str, Any]:
    # One sentinel that is gone must not cost the time of asking the next.
    times = {name: options[name] or _SENTINEL_S for name in ("socket_timeout", "socket_connect_timeout")}
    tls = {name: value for name, value in found.options.items() if name.startswith("ssl")}
    return times | tls | found.sentinel


def _several(url: str) -> _Several:
    parts = urlsplit(url)
    scheme, plus, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or not plus or kind not in _PORTS:
        raise RedisUrlError(
            f"{without_password(url)}: a Redis URL begins with redis://, rediss://, unix://, redis+sentinel://, "
            "rediss+sentinel://, redis+cluster:// or rediss+cluster://"
        )
    who, _, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    try:
        hosts = [_host(one, _PORTS[kind]) for one in where.split(",")]
        service, _, db = parts.path.strip("/").partition("/")
        options: dict[str, Any] = {"db": int(db)} if db else {}
    except ValueError:
        raise RedisUrlError(f"{without_password(url)}: hosts are host:port,host:port, a database a number") from None
    if (kind == "sentinel") != bool(service):
        need = "the service's name behind the hosts" if kind == "sentinel" else "no path"
        raise RedisUrlError(f"{without_password(url)}: such a URL has {need}")
    options |= {"username": unquote(user)} if user else {}
    options |= {"password": unquote(password)} if password else {}
    options |= {"ssl": True} if scheme == "rediss" else {}
    query = dict(parse_qsl(parts.query))
    sentinel = {
        name.removeprefix("sentinel_"): query.pop(name) for name in tuple(query) if name.startswith("sentinel_")
    }
    if strange := [name for name in query if not name.startswith("ssl_")]:
        raise RedisUrlError(f"{without_password(url)}: unknown option {strange[0]}")
    return _Several(kind, hosts, service, options | query, sentinel)


def _host(text: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    found = (host, int(number)) if colon else (text, port)
    if not found[0]:
        raise ValueError(text)
    return found
