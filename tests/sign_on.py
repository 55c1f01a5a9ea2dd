"""A provider of single sign-on whose keys and answers the test decides, and tokens of every kind."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, RSAKey
from starlette.types import Receive, Scope, Send

from cluster.settings import SignOnSettings
from tests.deployments.routers import listening

AUDIENCE = "dray"
KEY = RSAKey.generate_key(2048, {"kid": "first"})
NEXT_KEY = ECKey.generate_key("P-256", {"kid": "second"})
FOREIGN_KEY = RSAKey.generate_key(2048, {"kid": "first"})
"""An attacker's, under the name of a real one."""


@dataclass
class KeyProvider:
    """The documents of a provider. answering: while it is clear, nothing is answered. asked: the paths so far."""

    keys: list[Key] = field(default_factory=lambda: [KEY])
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200
    asked: list[str] = field(default_factory=list)
    url: str = ""
    issuer: str = ""
    """What discovery says; empty: its URL."""
    id_token: str = ""
    """What it gives for any code."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        await self.answering.wait()
        documents: dict[str, object] = {
            "/.well-known/openid-configuration": {
                "issuer": self.issuer or self.url,
                "jwks_uri": f"{self.url}/keys",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
            },
            "/token": {"id_token": self.id_token},
            "/keys": KeySet(self.keys).as_dict(private=False),
        }
        body = json.dumps(documents[scope["path"]]).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def settings(self, **more: object) -> dict[str, object]:
        """The settings of a Dray whose people sign on here."""
        return {"issuer": self.url, "audiences": [AUDIENCE], "teams": ["bots=support", "others=gone"], **more}

    def checked(self, **more: object) -> SignOnSettings:
        return SignOnSettings.model_validate(self.settings(**more))

    def token(self, key: Key = KEY, header: dict[str, object] | None = None, **claims: object) -> str:
        """A token of Alice. A claim that is None is left out."""
        kid = {"kid": key.kid} if key.kid else {}
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA", "oct": "HS256"}[key.key_type]
        now = int(time.time())
        times = {"iat": now, "exp": now + 600}
        about = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "groups": ["bots"], **times, **claims}
        chosen = {name: value for name, value in about.items() if value is not None}
        every = ["RS256", "RS512", "ES256", "HS256", "EdDSA", "none"]
        return jwt.encode({"alg": algorithm, **kid, **(header or {})}, chosen, key, algorithms=every)


@asynccontextmanager
async def key_provider() -> AsyncIterator[KeyProvider]:
    """A provider that answers on loopback."""
    provider = KeyProvider()
    provider.answering.set()
    async with listening(provider) as port:
        provider.url = f"http://127.0.0.1:{port}"
        yield provider
        provider.answering.set()
