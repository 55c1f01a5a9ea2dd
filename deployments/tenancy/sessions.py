"""Sessions of admins who have signed on to the console: a cookie of the browser, and a record in the teams' Redis.

The record has a digest of the cookie's secret, so that nobody who reads Redis gets in. The console sends the secret to
the admin API in a key's place; every router looks it up, so that a logout holds at once.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie

import msgspec

from cluster.records.sealing import seal, unseal
from deployments.common.errors import ApiError
from deployments.common.redis import RedisStore, RedisUnavailable
from deployments.tenancy.identity import Identity

PREFIX = "dray-session-"
_SECRET_CHARACTERS = 43
_FRESH_S = 5.0
"""How long what was read for a request is valid for it."""
_MAX_READ = 1000
_MAX_COOKIES = 16_384


class Session(msgspec.Struct, frozen=True):
    """Who is signed on. ends: Unix time."""

    subject: str
    team: str
    admin: bool
    ends: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Session).decode


class Sessions:
    """One router's access to the sessions."""

    def __init__(self, store: RedisStore, lifetime_s: int, clock: Callable[[], float] = time.time) -> None:
        """store: of the teams. clock: Unix time."""
        self._store = store
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._read: OrderedDict[str, tuple[float, Identity | None]] = OrderedDict()

    async def create(self, identity: Identity) -> str:
        """The secret of a new session. Raises RedisUnavailable."""
        secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
        session = Session(identity.subject, identity.team, identity.admin, self._clock() + self._lifetime_s)
        key = _key(secret)
        await self._store.execute("SET", key, seal(_encode(session), key), "EX", self._lifetime_s)
        return secret

    async def end(self, secret: str) -> None:
        """Ends a session, if it is one. Raises RedisUnavailable."""
        self._read.pop(_key(secret), None)
        await self._store.execute("DEL", _key(secret))

    async def prepare(self, secret: str) -> None:
        """Reads a session, for the `identity` that follows."""
        found: Identity | None = None
        try:
            stored = await self._store.get(key := _key(secret))
            if stored is not None and (record := unseal(stored, key)) is not None:
                session = _decode(record)
                found = Identity(session.subject, session.team, session.admin, session.ends)
        except msgspec.MsgspecError:
            pass  # of another version
        except RedisUnavailable:
            return
        self._read[key] = (self._clock(), found)
        self._read.move_to_end(key)
        if len(self._read) > _MAX_READ:
            self._read.popitem(last=False)

    def identity(self, secret: str) -> Identity:
        """Who has the session. Raises ApiError 401, and 503 where it could not be read."""
        read_at, found = self._read.get(_key(secret), (0.0, None))
        if self._clock() - read_at > _FRESH_S:
            message = "The session cannot be read: the Redis that keeps it does not answer. Try again shortly."
            raise ApiError(503, message, code="teams_unreachable", kind="server_error", retry_after_s=1)
        if found is None or found.ends <= self._clock():
            error = ApiError(401, "The session has ended. Sign on again.", code="invalid_session")
            error.headers["WWW-Authenticate"] = "Bearer"
            raise error
        return found


def is_session(presented: str) -> bool:
    """Whether this has the form of a session's secret."""
    return presented.startswith(PREFIX) and len(presented) == len(PREFIX) + _SECRET_CHARACTERS


def cookie_name(*, secure: bool) -> str:
    """Of the session. secure: browsers reach Dray over TLS; then no other host of the domain can set it."""
    return "__Host-dray-console" if secure else "dray-console"


def session_of_browser(headers: Mapping[str, str]) -> str:
    """The secret in a request of the console's own page; empty if nobody is signed on, or another site's page sent it.

    headers: names in lower case, of a POST. A browser adds the cookie by itself, so this looks which page made it send
    the request. Give the secret to the admin API as Authorization: Bearer SECRET.
    """
    scheme, _, authority = headers.get("origin", "").partition("://")
    if authority != headers.get("host") or headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return ""
    secret = cookies_of(headers).get(cookie_name(secure=scheme == "https"), "")
    return secret if is_session(secret) else ""


def session_of_reader(headers: Mapping[str, str]) -> str:
    """The secret in a request that reads and changes nothing, such as a GET of the status page's own script.

    headers: names in lower case. A page of another site cannot see the answer, so older browsers, which do not say
    which page made them send the request, are trusted too.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return ""
    cookies = cookies_of(headers)
    secret = cookies.get(cookie_name(secure=True)) or cookies.get(cookie_name(secure=False), "")
    return secret if is_session(secret) else ""


def cookies_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The cookies of a request, by name."""
    try:
        cookies = SimpleCookie(headers.get("cookie", "")[:_MAX_COOKIES])
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in cookies.items()}


def _key(secret: str) -> str:
    return f"dray:{{teams}}:session:{hashlib.sha256(secret.encode()).hexdigest()}"
