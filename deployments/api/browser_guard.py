"""Keeps web pages away from a Dray that needs no key.

A browser sends requests to this machine for any page that it shows, and without keys they look like a local program's.
These rules tell them apart:

- The Host header names this machine. A page whose own name leads to 127.0.0.1 (DNS rebinding) sends that name.
- Origin and Sec-Fetch-Site, which a page cannot forge, name no other site. A link that a person follows is fine.
- A body is declared as JSON. For that a browser first asks with OPTIONS if the page is another site's, and is refused.

With keys the rules are off: a browser never adds a key to a request by itself.
"""

import re
from collections.abc import Collection, Mapping

from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.settings import is_loopback
from deployments.api.http import api_error, check_json
from deployments.common.errors import ApiError
from deployments.tenancy.auth import Authenticator

_READ = frozenset(
    {
        *(b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"),
        *(b"content-type", b"content-length", b"transfer-encoding"),
    }
)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:@/\\\[\]]+))(?::\d*)?")
_MAX_SHOWN = 80
_UPLOADS = "/v1/files"
"""Takes a form, as OpenAI's clients send it. A browser names the page's origin with every form that it sends."""


class BrowserGuard:
    """Refuses what a web page could have sent, while no key is needed."""

    def __init__(
        self, authenticator: Authenticator, host: str, allowed_hosts: Collection[str], origins: Collection[str] = ()
    ) -> None:
        """host: the address that Dray listens on. allowed_hosts: more names that it is reached by. origins: of web
        pages that may ask; * means nothing here."""
        self._authenticator = authenticator
        self._host = host
        self._allowed_hosts = frozenset(allowed_hosts)
        self._origins = frozenset(origins)

    def check(self, scope: Scope) -> None:
        """Raises ApiError 421, 403 or 415; 503 until keys are loaded."""
        if self._authenticator.needs_key:
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        try:
            self._check_host(headers)
            self._check_origin(scope["method"], headers)
            if scope["path"] != _UPLOADS:
                _check_content_type(scope["method"], headers)
        except ApiError:
            self._authenticator.check_loaded()
            raise

    def _check_host(self, headers: Mapping[bytes, str]) -> None:
        host = headers.get(b"host")
        # Every browser sends the header; health checks by HTTP/1.0 do not.
        if host is None or self._is_own_name(name := host_name(host)):
            return
        message = (
            f"{host[:_MAX_SHOWN]!r} in the Host header is not a name of this machine. While no API key is needed, Dray "
            "answers only as localhost or a loopback address, so that no web page can reach it under a name of its "
            f"own. If {name[:_MAX_SHOWN] or 'the name'} is yours, add it to server.allowed_hosts, or create a key: "
            "dray keys create TEAM."
        )
        raise ApiError(421, message, code="host_not_allowed")

    def _check_origin(self, method: str, headers: Mapping[bytes, str]) -> None:
        origin = headers.get(b"origin")
        authority = "" if origin is None else origin.partition("://")[2].lower()
        if host_name(authority) in self._allowed_hosts or origin in self._origins:
            return
        foreign = origin is not None and authority != headers.get(b"host", "").lower()
        if not foreign and (headers.get(b"sec-fetch-site") != "cross-site" or _is_followed_link(method, headers)):
            return
        sender = "another site" if origin is None else repr(origin[:_MAX_SHOWN])
        message = (
            f"A web page of {sender} sent this request. While no API key is needed, Dray answers only its own pages. "
            "If you trust that site, add its origin to cors.origins."
        )
        raise ApiError(403, message, code="origin_not_allowed")

    def _is_own_name(self, name: str) -> bool:
        return is_loopback(name) or name == self._host.lower() or name in self._allowed_hosts


class BrowserGuardMiddleware:
    """ASGI middleware that answers what the guard refuses."""

    def __init__(self, app: ASGIApp, guard: BrowserGuard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._guard.check(scope)
            except ApiError as error:
                await api_error(HttpRequest(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(authority: str) -> str:
    """The host of `host:port`, in lower case; empty if it is none."""
    parts = _AUTHORITY.fullmatch(authority)
    return (parts[1] or parts[2].removesuffix(".")).lower() if parts else ""


def _is_followed_link(method: str, headers: Mapping[bytes, str]) -> bool:
    """Whether a person opens a page of Dray from another site, in a window of its own: this shows it and changes
    nothing."""
    opens = headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest") == "document"
    return method in ("GET", "HEAD") and opens


def _check_content_type(method: str, headers: Mapping[bytes, str]) -> None:
    has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
    if method in ("POST", "PUT", "PATCH") and has_body:
        check_json(headers.get(b"content-type", ""))
