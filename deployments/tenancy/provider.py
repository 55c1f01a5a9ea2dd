"""The provider of single sign-on: its addresses, by OpenID discovery, and the keys that sign its tokens.

A key that is not known makes a router ask the provider, but at most once in a while, so that made-up keys cost the
provider nothing. While it is away, the keys that are known stay usable for some hours.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet

log = logging.getLogger("dray.sign_on")

_DISCOVERY = "/.well-known/openid-configuration"
_TIMEOUT_S = 5.0
"""For the whole of one document, however slowly it comes."""
_MAX_BYTES = 512 * 1024
_MAX_KEYS = 100
_PAUSE_S = 10.0
"""Least time between two questions for unknown keys."""
_REFRESH_S = 300.0
_RETRY_S = 30.0
_USABLE_S = 4 * 3600.0
"""How long known keys are used without a word of the provider."""
_ASYMMETRIC = ("RSA", "EC", "OKP")
_MIN_RSA_BITS = 2048


class ProviderUnavailable(Exception):
    """The provider does not answer, or what it answers cannot be used; the message says why."""


class Endpoints(msgspec.Struct, frozen=True):
    """What discovery tells. The names are those of OpenID Connect Discovery 1.0, section 3."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class _KeyDocument(msgspec.Struct, frozen=True):
    keys: list[dict[str, object]]


class Provider:
    """One router's knowledge of the provider."""

    def __init__(self, issuer: str, clock: Callable[[], float] = time.monotonic) -> None:
        """issuer: its URL. clock: in seconds."""
        self._issuer = issuer
        self._clock = clock
        self._keys: KeySet | None = None
        self._published: list[dict[str, object]] = []
        self._read_at = 0.0
        self._next_question = 0.0
        self._endpoints: Endpoints | None = None
        self._reason = "it was not asked yet"
        self._refreshing: asyncio.Task[None] | None = None
        self._http: httpx.AsyncClient | None = None
        self.failing = False
        """Whether the last question was not answered."""
        self.version = 0
        """Changes whenever the keys do."""

    @property
    def keys(self) -> KeySet | None:
        """The keys that sign tokens; None while none are known, or where the provider has been away for too long."""
        return self._keys if self._clock() - self._read_at < _USABLE_S else None

    def knows(self, kid: object) -> bool:
        """Whether a key of this id is known; with several keys, a token must name one."""
        keys = self.keys
        return keys is not None and (kid is None or any(key.kid == kid for key in keys))

    async def load(self, kid: object) -> None:
        """Asks the provider for its keys if this one is not known, unless that was done a moment ago."""
        if not self.knows(kid) and self._clock() >= self._next_question:
            await self._refresh_once()

    async def refresh_forever(self) -> None:
        """Asks for the keys now and then, so that withdrawn ones go and new ones are there before they are used."""
        while True:
            await self._refresh_once()
            await asyncio.sleep(_RETRY_S if self.failing else _REFRESH_S)

    async def endpoints(self) -> Endpoints:
        """The provider's addresses, as it was asked for them last. Raises ProviderUnavailable."""
        if self._endpoints is None and self._clock() >= self._next_question:
            await self._refresh_once()
        if self._endpoints is None:
            raise ProviderUnavailable(self._reason)
        return self._endpoints

    async def _discover(self) -> Endpoints:
        url = f"{self._issuer.rstrip('/')}{_DISCOVERY}"
        try:
            found = msgspec.json.decode(await self.get(url), type=Endpoints)
        except msgspec.MsgspecError as error:
            raise ProviderUnavailable(f"{url} is no OpenID configuration: {error}") from None
        if found.issuer != self._issuer:
            raise ProviderUnavailable(f"{url} names the issuer {found.issuer!r}, not {self._issuer!r}")
        for address in (found.jwks_uri, found.authorization_endpoint, found.token_endpoint):
            if address and urlsplit(address).scheme not in ("https", urlsplit(self._issuer).scheme):
                raise ProviderUnavailable(f"{url} names an address without TLS: {address!r}")
        return found

    async def get(self, url: str) -> bytes:
        """What is at this address, within limits. Raises ProviderUnavailable."""
        return await self.send("GET", url)

    async def send(
        self, method: str, url: str, data: dict[str, str] | None = None, login: httpx.BasicAuth | None = None
    ) -> bytes:
        """The body of the answer, within limits. data: of a form. Raises ProviderUnavailable."""
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=_TIMEOUT_S)
        body = bytearray()
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._http.stream(method, url, data=data, auth=login) as answer:
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _MAX_BYTES:
                        raise ProviderUnavailable(f"{url} answers with more than {_MAX_BYTES} bytes")
        except TimeoutError:
            raise ProviderUnavailable(f"{url} did not answer within {_TIMEOUT_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ProviderUnavailable(f"{url} cannot be reached: {error or type(error).__name__}") from None
        if answer.status_code != 200:
            raise ProviderUnavailable(f"{url} answers with status {answer.status_code}")
        return bytes(body)

    async def close(self) -> None:
        """Ends what runs."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._http is not None:
            await self._http.aclose()

    async def _refresh_once(self) -> None:
        """Reads the keys; those who ask at the same time wait for the same answer."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        try:
            self._endpoints = await self._discover()
            url = self._endpoints.jwks_uri
            try:
                published = msgspec.json.decode(await self.get(url), type=_KeyDocument).keys[:_MAX_KEYS]
            except msgspec.MsgspecError as error:
                raise ProviderUnavailable(f"{url} is no set of keys: {error}") from None
            if not (keys := [key for entry in published if (key := _usable(entry)) is not None]):
                raise ProviderUnavailable(f"{url} has no key with which tokens may be signed")
        except ProviderUnavailable as error:
            if not self.failing:
                log.warning("the provider of single sign-on does not answer", extra={"reason": str(error)})
            self.failing, self._reason = True, str(error)
        else:
            if published != self._published:
                self._keys, self._published, self.version = KeySet(keys), published, self.version + 1
                log.info("keys of single sign-on loaded", extra={"keys": len(keys)})
            self._read_at, self.failing = self._clock(), False
        finally:
            self._next_question = self._clock() + _PAUSE_S


def _usable(entry: dict[str, object]) -> Key | None:
    """A public key for signatures; None for keys of other kinds, and for those that are too short to protect."""
    if entry.get("kty") not in _ASYMMETRIC or entry.get("use", "sig") != "sig":
        return None
    try:
        key = JWKRegistry.import_key(entry)  # type: ignore[arg-type]  # each of its fields is checked there
        size = getattr(key.public_key, "key_size", _MIN_RSA_BITS)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return key if entry["kty"] != "RSA" or size >= _MIN_RSA_BITS else None
