"""Responses whose bytes never change: sent as they are, or not at all to a client that has them already."""

from collections.abc import Mapping
from hashlib import blake2b

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

ICON = """<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Cpath d='M1 4h11v6H1z' fill='%23b45309'/%3E%3Ccircle cx='4' cy='12' r='2.5'/%3E%3Ccircle cx='11' cy='12' r='2.5'/%3E\
%3C/svg%3E">"""
"""Dray's, for the head of an HTML page: a cart."""


class StaticBody:
    """A body with its ETag (RFC 9110, 8.8.3)."""

    def __init__(self, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        """headers: further ones of each response."""
        self._body = body
        self._headers = dict(headers or {})
        self._media_type = media_type
        self._etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'

    def answer(self, http: HttpRequest) -> Response:
        """The body, or 304 if the request's If-None-Match names it."""
        headers = {"ETag": self._etag, "Cache-Control": "no-cache", **self._headers}
        named = {tag.strip().removeprefix("W/") for tag in http.headers.get("if-none-match", "").split(",")}
        if self._etag in named or "*" in named:
            return Response(status_code=304, headers=headers)
        return Response(self._body, media_type=self._media_type, headers=headers)
