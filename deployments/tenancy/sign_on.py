"""Single sign-on: who a token of the OpenID Connect provider stands for.

A token is checked once (signature, issuer, audience, times) and then known by its hash until it ends, so a request with
one costs no more than a request with a key.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError

from cluster.settings import SignOnSettings
from deployments.common.errors import ApiError, shortened
from deployments.tenancy.identity import Identity
from deployments.tenancy.provider import Provider

MAX_TOKEN_CHARACTERS = 16_384
"""Of a token: with hundreds of groups it has some thousands."""
_MAX_HEADER = 2048
_MAX_KNOWN = 10_000
_MAX_KNOWN_S = 3600.0
"""How long a token is taken for valid before it is checked again."""
_MAX_SUBJECT = 255
_MAX_VALUES = 1000
_TYPES = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})
"""Types of tokens that say who somebody is. A provider signs others with the same keys, such as those of a logout."""


class SignOn:
    """One router's check of tokens."""

    def __init__(
        self, settings: SignOnSettings, provider: Provider | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """settings: with an issuer. clock: Unix time."""
        self.provider = provider or Provider(settings.issuer)
        self._settings = settings
        self._clock = clock
        self._teams = {value: team for value, _, team in (entry.rpartition("=") for entry in settings.teams)}
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._version = 0
        self._registry = _registry(settings)
        self._accepted = self._claims_for(settings.audiences)
        self._login = self._claims_for((settings.client_id,))

    async def prepare(self, token: str) -> None:
        """Asks the provider for the key of a new token, if it is not known. Refuses nothing: `identity` does."""
        if self._cached(_hash(token)) is None:
            with suppress(ApiError):
                await self.provider.load(self._key_id(token))

    def identity(self, token: str) -> Identity:
        """Who the token stands for. Raises ApiError 401, and 503 while its key cannot be had."""
        name = _hash(token)
        if (known := self._cached(name)) is not None:
            return known
        self._known[name] = identity = self._identity_of(self._claims(token, self._accepted))
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return identity

    async def logged_in(self, token: str, nonce: str) -> Identity:
        """Who has signed on to the console. token: the ID token that the provider gave for it. nonce: of the login.

        Raises ApiError 401, 503.
        """
        await self.provider.load(self._key_id(token))
        claims = self._claims(token, self._login)
        if claims.get("nonce") != nonce:
            raise invalid_token("It belongs to another login.")
        if claims.get("azp", self._settings.client_id) != self._settings.client_id:
            raise invalid_token("It was issued to another client.")
        return self._identity_of(claims)

    def _claims_for(self, audiences: Sequence[str]) -> jwt.JWTClaimsRegistry:
        return jwt.JWTClaimsRegistry(
            now=lambda: int(self._clock()),
            leeway=self._settings.clock_skew_s,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "values": list(audiences)},
            sub={"essential": True},
            exp={"essential": True},
        )

    def _claims(self, token: str, expected: jwt.JWTClaimsRegistry) -> Mapping[str, object]:
        """The claims of a valid token. Raises ApiError 401, and 503 while its key cannot be had."""
        kid, keys = self._key_id(token), self.provider.keys
        if keys is None or (self.provider.failing and not self.provider.knows(kid)):
            raise _unavailable()
        if not self.provider.knows(kid):
            raise invalid_token("It is signed with a key that its provider does not have.")
        try:
            decoded = jwt.decode(token, keys, registry=self._registry)
            expected.validate(decoded.claims)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise invalid_token(_reason(error)) from None
        if "events" in decoded.claims:
            raise invalid_token("It announces a logout.")
        return decoded.claims

    def _cached(self, name: bytes) -> Identity | None:
        if self._version != self.provider.version:
            # Perhaps a key was withdrawn.
            self._known.clear()
            self._version = self.provider.version
        if (known := self._known.get(name)) is None:
            return None
        if known.ends <= self._clock():
            del self._known[name]
            return None
        self._known.move_to_end(name)
        return known

    def _key_id(self, token: str) -> object:
        """The id of the key that a token names: a text to look up and nothing else. Raises ApiError 401."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise invalid_token(f"It has more than {MAX_TOKEN_CHARACTERS} characters.")
        try:
            header = jws.extract_compact(token.encode(), registry=self._registry).headers()
            self._registry.check_header(header)
            self._registry.get_alg(header["alg"])
            kind = header.get("typ", "")
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise invalid_token(_reason(error)) from None
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise invalid_token("It is of a type that identifies nobody.")
        return header.get("kid")

    def _identity_of(self, claims: Mapping[str, object]) -> Identity:
        settings, subject, ends = self._settings, claims["sub"], claims["exp"]
        assert isinstance(subject, str) and isinstance(ends, int | float)
        if not (0 < len(subject) <= _MAX_SUBJECT and subject.isprintable()):
            raise invalid_token(f"Its `sub` is not a text of 1 to {_MAX_SUBJECT} printable characters.")
        named = _values(claims, settings.team_claim)
        if self._teams:
            team = next((team for value, team in self._teams.items() if value in named), "")
        else:
            team = named[0] if len(named) == 1 else ""
        admin = not set(settings.admins).isdisjoint(_values(claims, settings.admin_claim or settings.team_claim))
        return Identity(subject, team, admin, min(ends + settings.clock_skew_s, self._clock() + _MAX_KNOWN_S))


def invalid_token(reason: str) -> ApiError:
    """401: the token is not accepted."""
    error = ApiError(401, f"The sign-on token is not accepted. {reason}", code="invalid_token")
    error.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    return error


def _unavailable() -> ApiError:
    message = "The sign-on token cannot be checked: its provider does not answer. Try again shortly, or use an API key."
    return ApiError(503, message, code="sign_on_unavailable", kind="server_error", retry_after_s=5)


def _registry(settings: SignOnSettings) -> jws.JWSRegistry:
    # Unknown header fields are ignored, as RFC 7515 (section 4) wants; keys in a header (`jwk`, `jku`, `x5u`) are too,
    # because only the provider's keys are ever tried.
    registry = jws.JWSRegistry(algorithms=list(settings.algorithms), strict_check_header=False)
    registry.max_header_length = _MAX_HEADER
    registry.max_payload_length = MAX_TOKEN_CHARACTERS
    return registry


def _hash(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=32).digest()


def _values(claims: Mapping[str, object], name: str) -> list[str]:
    """The texts of a claim. name: of the claim, or a path with dots into nested ones."""
    found: object = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    values = found if isinstance(found, list) else [found]
    return [value for value in values[:_MAX_VALUES] if isinstance(value, str)]


def _reason(error: Exception) -> str:
    if isinstance(error, ExpiredTokenError):
        return "It has expired: sign on again."
    if isinstance(error, BadSignatureError):
        return "Its signature is wrong."
    if isinstance(error, MissingClaimError):
        return f"It lacks a claim that is needed: {shortened(error.description)}."
    if isinstance(error, InvalidClaimError):
        return f"A claim is not what is expected here: {shortened(error.description)}."
    return f"It is malformed, or signed in a way that is not allowed ({type(error).__name__.removesuffix('Error')})."
