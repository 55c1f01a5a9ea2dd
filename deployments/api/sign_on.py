"""Single sign-on in a router: its parts, if the settings name an issuer, and the middleware in front of the routes."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.settings import CLIENT_SECRET_VARIABLE, SignOnSettings
from deployments.api.audit_trail import AuditTrail
from deployments.common.redis import RedisStore
from deployments.tenancy.auth import Authenticator
from deployments.tenancy.sessions import Sessions

if TYPE_CHECKING:
    from deployments.api.console_login import ConsoleLogin
    from deployments.tenancy.sign_on import SignOn


@dataclass(frozen=True, slots=True)
class SignOnParts:
    """What a router has of single sign-on; nothing without an issuer. sessions, login: of the console."""

    tokens: "SignOn | None" = None
    sessions: Sessions | None = None
    login: "ConsoleLogin | None" = None

    @classmethod
    def of(cls, settings: SignOnSettings, store: RedisStore, trail: AuditTrail) -> "SignOnParts":
        """store: of the teams. trail: where logins are recorded."""
        if not settings.issuer:
            return cls()
        # Their library takes 0.1 s of a router's start and some megabytes, which most routers have no use for.
        from deployments.api.console_login import ConsoleLogin
        from deployments.tenancy.sign_on import SignOn

        tokens = SignOn(settings)
        if not settings.client_id:
            return cls(tokens)
        sessions = Sessions(store, settings.session_s)
        secret = os.environ.get(CLIENT_SECRET_VARIABLE, "")
        return cls(tokens, sessions, ConsoleLogin(settings, tokens, sessions, secret, trail))

    def routes(self) -> list[Route]:
        """Of the console's login."""
        return self.login.routes() if self.login is not None else []

    async def close(self) -> None:
        """Ends what asks the provider."""
        if self.tokens is not None:
            await self.tokens.provider.close()


class SignOnMiddleware:
    """ASGI middleware that lets every route meet a token whose key is known: asking the provider for it takes time.

    It refuses no token: the routes do.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._authenticator.prepare(Headers(scope=scope))
        await self._app(scope, receive, send)
