"""Admins sign on to the console at the provider: the authorization code flow of OpenID Connect, with PKCE.

What a login needs to remember until the provider sends the browser back is in a cookie of that browser, so that nobody
can fill Redis with logins that nobody ends, and no other browser can end one.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from html import escape
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cluster.settings import SignOnSettings
from deployments.api.audit_trail import AuditTrail
from deployments.common.errors import ApiError
from deployments.common.redis import RedisUnavailable
from deployments.tenancy.provider import Endpoints, ProviderUnavailable
from deployments.tenancy.sessions import Sessions, cookie_name, cookies_of, session_of_browser
from deployments.tenancy.sign_on import SignOn

_CONSOLE, _LOGIN, _CALLBACK = "/console", "/console/login", "/console/callback"
_LOGIN_S = 600
_MAX_CODE = 4096


class _Tokens(msgspec.Struct, frozen=True):
    """What the provider gives for a code."""

    id_token: str


class LoginRefused(Exception):
    """Somebody could not sign on; the message says why, and to whom that matters."""


class ConsoleLogin:
    """The routes /console/login, /console/callback and /console/logout."""

    def __init__(
        self, settings: SignOnSettings, sign_on: SignOn, sessions: Sessions, client_secret: str, trail: AuditTrail
    ) -> None:
        """settings: with a client_id. client_secret: empty for a public client. trail: where logins are recorded."""
        self._settings = settings
        self._sign_on = sign_on
        self._sessions = sessions
        self._client_secret = client_secret
        self._trail = trail
        self._secure = urlsplit(settings.public_url).scheme == "https"
        self._login_cookie = "__Host-dray-login" if self._secure else "dray-login"

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route(_LOGIN, self.login),
            Route(_CALLBACK, self.callback),
            Route("/console/logout", self.logout, methods=["POST"]),
        ]

    async def login(self, http: HttpRequest) -> Response:
        """GET /console/login: sends the browser to the provider."""
        try:
            address = (await self._sign_on.provider.endpoints()).authorization_endpoint
        except ProviderUnavailable as error:
            return self._failed(f"The provider does not answer: {error}.", 503)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        response = _redirect(f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(query)}")
        ends = int(time.time()) + _LOGIN_S
        self._set(response, self._login_cookie, f"{state}.{nonce}.{verifier}.{ends}", _LOGIN_S)
        return response

    async def callback(self, http: HttpRequest) -> Response:
        """GET /console/callback: the provider sends the browser back here, with a code."""
        try:
            secret = await self._signed_on(http)
        except LoginRefused as error:
            response = self._failed(str(error), 403)
        except ApiError as error:
            response = self._failed(error.message, error.status)
        except (ProviderUnavailable, RedisUnavailable) as error:
            response = self._failed(f"Something that a login needs does not answer: {error}.", 503)
        else:
            # Only ever to the console: whatever the address says, nobody is sent elsewhere from here.
            response = _redirect(f"{self._settings.public_url}{_CONSOLE}")
            self._set(response, cookie_name(secure=self._secure), secret, self._settings.session_s)
        self._set(response, self._login_cookie, "", 0)
        return response

    async def logout(self, http: HttpRequest) -> Response:
        """POST /console/logout: ends the session. The one at the provider goes on."""
        response = _redirect(f"{self._settings.public_url}{_CONSOLE}")
        if secret := session_of_browser(http.headers):
            try:
                await self._sessions.end(secret)
            except RedisUnavailable:
                return self._failed("The session could not be ended: its Redis does not answer. Try again.", 503)
            self._set(response, cookie_name(secure=self._secure), "", 0)
        return response

    @property
    def _redirect_uri(self) -> str:
        return f"{self._settings.public_url}{_CALLBACK}"

    async def _signed_on(self, http: HttpRequest) -> str:
        """The secret of a new session. Raises LoginRefused, ApiError, ProviderUnavailable, RedisUnavailable."""
        state, _, rest = cookies_of(http.headers).get(self._login_cookie, "").partition(".")
        nonce, _, rest = rest.partition(".")
        verifier, _, ends = rest.partition(".")
        begun = ends.isascii() and ends.isdigit() and len(ends) < 12 and time.time() < int(ends)
        answered = http.query_params.get("state", "")
        if not (begun and state and hmac.compare_digest(state.encode(), answered.encode())):
            raise LoginRefused("This login was not begun in this browser, or it took too long.")
        if error := http.query_params.get("error"):
            about = http.query_params.get("error_description", "")
            raise LoginRefused(f"The provider refused: {error[:100]} {about[:300]}".rstrip())
        code = http.query_params.get("code", "")
        if not 0 < len(code) <= _MAX_CODE:
            raise LoginRefused("The provider sent no code.")
        endpoints = await self._sign_on.provider.endpoints()
        identity = await self._sign_on.logged_in(await self._id_token(endpoints, code, verifier), nonce)
        actor = f"sign-on:{identity.subject}"
        if not identity.admin:
            await self._trail.record(actor, "console.refuse", "", reason="no admin")
            raise LoginRefused("You are signed on, but you are no admin of Dray (the setting sign_on.admins).")
        secret = await self._sessions.create(identity)
        await self._trail.record(actor, "console.login", "")
        return secret

    async def _id_token(self, endpoints: Endpoints, code: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        client, secret, login = self._settings.client_id, self._client_secret, None
        if secret and "client_secret_basic" in endpoints.token_endpoint_auth_methods_supported:
            login = httpx.BasicAuth(quote(client, safe=""), quote(secret, safe=""))  # RFC 6749, section 2.3.1
        else:
            form |= {"client_id": client} | ({"client_secret": secret} if secret else {})
        try:
            answer = await self._sign_on.provider.send("POST", endpoints.token_endpoint, form, login)
            return msgspec.json.decode(answer, type=_Tokens).id_token
        except msgspec.MsgspecError:
            raise ProviderUnavailable("it gave no ID token for the code") from None

    def _set(self, response: Response, name: str, value: str, seconds: int) -> None:
        response.set_cookie(name, value, max_age=seconds, path="/", secure=self._secure, httponly=True, samesite="lax")

    def _failed(self, message: str, status: int) -> Response:
        """A page for the person at the browser."""
        again = f'<a href="{escape(self._settings.public_url + _LOGIN)}">Sign on again</a>'
        page = f"<!doctype html><meta charset=utf-8><title>Dray</title><p>{escape(message)}</p><p>{again}</p>"
        return HTMLResponse(page, status, _PRIVATE)


_PRIVATE: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def _redirect(url: str) -> Response:
    return RedirectResponse(url, 303, dict(_PRIVATE))
