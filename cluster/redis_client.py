"""Clients for every form of Redis URL: TCP, Unix socket, TLS, Sentinel, Cluster.

    redis://[user:password@]host:port/db          rediss:// with TLS
    unix:///path/to/socket
    redis+sentinel://[user:password@]host:port,host:port/service[/db]
    redis+cluster://[user:password@]host:port,host:port        rediss+... for both with TLS

The query holds the paths of certificates: ?ssl_ca_certs=PATH&ssl_certfile=PATH&ssl_keyfile=PATH. It also holds the
user and password of the sentinels themselves: ?sentinel_username=NAME&sentinel_password=SECRET.
"""

import asyncio
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
    """An invalid or unsupported Redis URL. The message omits its password."""


@dataclass(frozen=True, slots=True)
class _MultiHostUrl:
    """A parsed URL with several hosts.

    kind: "sentinel" or "cluster". service: the sentinels' name for the master. options: for the connection to Redis.
    sentinel: for the connection to the sentinels.
    """

    kind: str
    hosts: list[tuple[str, int]]
    service: str
    options: dict[str, Any] = field(default_factory=dict)
    sentinel: dict[str, str] = field(default_factory=dict)


def check_url(url: str) -> None:
    """Raises RedisUrlError if no client can be created for the URL."""
    scheme = url.partition("://")[0]
    if scheme in _SIMPLE:
        try:
            redis.ConnectionPool.from_url(url)
        except (ValueError, TypeError) as error:
            raise RedisUrlError(f"{without_password(url)}: {error}") from None
        return
    _parse_multi_host(url)


def without_password(url: str) -> str:
    """The URL with its passwords masked, for messages and logs."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    masked = f"{credentials.partition(':')[0]}:***{at}" if ":" in credentials else credentials + at
    query = "&".join(
        f"{name}={'***' if 'password' in name else value}"
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    if "***" not in masked + query:
        return url  # urlunsplit would take the slashes from unix:///run/redis.sock
    return urlunsplit((parts.scheme, masked + hosts, parts.path, query, ""))


def public_url(url: str) -> str:
    """The URL; empty if it contains a password, which then comes from a process's environment."""
    return url if url == without_password(url) else ""


def connect(url: str, *, timeout_s: float = 2.0) -> Any:
    """A blocking client, for the commands; the caller closes it. Raises RedisUrlError."""
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 3}
    if url.partition("://")[0] in _SIMPLE:
        return redis.Redis.from_url(url, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 1), **options)
    target = _parse_multi_host(url)
    if target.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(*host) for host in target.hosts]  # type: ignore[no-untyped-call]
        return redis.cluster.RedisCluster(startup_nodes=nodes, **options, **target.options)
    sentinel: Any = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        target.hosts, sentinel_kwargs=_sentinel_options(target, options)
    )
    return sentinel.master_for(target.service, **options, **target.options)


def connect_async(url: str, *, max_connections: int) -> Any:
    """A client for an event loop. The caller closes it and sets timeouts on calls. Raises RedisUrlError."""
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "protocol": 3,
        # One immediate retry: a pooled connection may belong to a server that has stopped since. The default would
        # retry for seconds.
        "retry": redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 1),
        "max_connections": max_connections,
    }
    if url.partition("://")[0] in _SIMPLE:
        return redis.asyncio.Redis.from_url(url, **options)
    target = _parse_multi_host(url)
    if target.kind == "cluster":
        cluster_nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in target.hosts]
        return redis.asyncio.cluster.RedisCluster(startup_nodes=cluster_nodes, **options, **target.options)
    sentinel: Any = _Sentinel(target.hosts, sentinel_kwargs=_sentinel_options(target, options))  # type: ignore[no-untyped-call]
    return sentinel.master_for(target.service, **options, **target.options)


class _Sentinel(redis.asyncio.sentinel.Sentinel):
    """Asks another sentinel first once a caller's time is over before one has answered.

    redis-py (8.1) asks them in turn and remembers the one that answers. A call that ends before would begin with the
    same hanging sentinel each time, and never come to the next one.
    """

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        try:
            found: tuple[str, int] = await super().discover_master(service_name)
            return found
        except asyncio.CancelledError:
            self.sentinels.append(self.sentinels.pop(0))
            raise


def _sentinel_options(target: _MultiHostUrl, options: dict[str, Any]) -> dict[str, Any]:
    # An unreachable sentinel must not use up the time for asking the next one.
    timeouts = {name: options[name] or _SENTINEL_S for name in ("socket_timeout", "socket_connect_timeout")}
    tls = {name: value for name, value in target.options.items() if name.startswith("ssl")}
    return timeouts | tls | target.sentinel


def _parse_multi_host(url: str) -> _MultiHostUrl:
    parts = urlsplit(url)
    scheme, plus, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or not plus or kind not in _PORTS:
        raise RedisUrlError(
            f"{without_password(url)}: a Redis URL must start with redis://, rediss://, unix://, "
            "redis+sentinel://, rediss+sentinel://, redis+cluster:// or rediss+cluster://"
        )
    credentials, _, locations = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    try:
        hosts = [_parse_host(location, _PORTS[kind]) for location in locations.split(",")]
        service, _, db = parts.path.strip("/").partition("/")
        options: dict[str, Any] = {"db": int(db)} if db else {}
    except ValueError:
        raise RedisUrlError(
            f"{without_password(url)}: write hosts as host:port,host:port and the database as a number"
        ) from None
    if (kind == "sentinel") != bool(service):
        rule = "needs the service's name after the hosts" if kind == "sentinel" else "must have no path"
        raise RedisUrlError(f"{without_password(url)}: a URL of this kind {rule}")
    options |= {"username": unquote(user)} if user else {}
    options |= {"password": unquote(password)} if password else {}
    options |= {"ssl": True} if scheme == "rediss" else {}
    query = dict(parse_qsl(parts.query))
    sentinel = {
        name.removeprefix("sentinel_"): query.pop(name) for name in tuple(query) if name.startswith("sentinel_")
    }
    if unknown := [name for name in query if not name.startswith("ssl_")]:
        raise RedisUrlError(f"{without_password(url)}: unknown option {unknown[0]}")
    return _MultiHostUrl(kind, hosts, service, options | query, sentinel)


def _parse_host(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    address = (host, int(port)) if colon else (text, default_port)
    if not address[0]:
        raise ValueError(text)
    return address
