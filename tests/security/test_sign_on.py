"""Tokens of single sign-on: only the provider's own open a team, and nobody makes Dray hammer the provider."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey, RSAKey
from pydantic import ValidationError

from cluster.configuration import variable
from cluster.records.team_records import Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from cluster.settings import Settings
from deployments.common.errors import ApiError
from deployments.tenancy import provider as provider_module
from deployments.tenancy import sign_on as sign_on_module
from deployments.tenancy.provider import Provider
from deployments.tenancy.sign_on import MAX_TOKEN_CHARACTERS, SignOn
from tests.conftest import redis_server
from tests.deployments.routers import asking, chat
from tests.sign_on import FOREIGN_KEY, KEY, NEXT_KEY, KeyProvider, key_provider

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own, connect(own.url) as client:
        add_team(client, Team("support", 1.0))
        yield own


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def unsigned(provider: KeyProvider, algorithm: str) -> str:
    """A good token's claims, without a signature."""
    _, claims, _ = provider.token().split(".")
    return f"{encoded({'alg': algorithm, 'kid': 'first'})}.{claims}."


def changed(token: str) -> str:
    """A good token with the claims of another."""
    header, claims, signature = token.split(".")
    text = json.loads(base64.urlsafe_b64decode(claims + "=="))
    return f"{header}.{encoded({**text, 'sub': 'mallory'})}.{signature}"


def by_public_key(provider: KeyProvider, public: bytes) -> str:
    """A token whose secret is the public key."""
    _, claims, _ = provider.token().split(".")
    signed = f"{encoded({'alg': 'HS256', 'kid': 'first'})}.{claims}"
    code = hmac.digest(public, signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(code).decode().rstrip('=')}"


def nested_header() -> str:
    depth = 700
    header = base64.urlsafe_b64encode(b'{"alg":' + b"[" * depth + b"]" * depth + b"}").decode().rstrip("=")
    return f"{header}.e30.AAAA"


HOSTILE: dict[str, tuple[Callable[[KeyProvider], str], str]] = {
    "another issuer": (lambda p: p.token(iss="https://elsewhere.example"), "'iss'"),
    "an issuer with a slash": (lambda p: p.token(iss=f"{p.url}/"), "'iss'"),
    "no issuer": (lambda p: p.token(iss=None), "'iss'"),
    "another audience": (lambda p: p.token(aud="mail"), "'aud'"),
    "no audience": (lambda p: p.token(aud=None), "'aud'"),
    "an empty audience": (lambda p: p.token(aud=[]), "'aud'"),
    "expired": (lambda p: p.token(exp=int(time.time()) - 600), "expired"),
    "never ends": (lambda p: p.token(exp=None), "'exp'"),
    "ends at no number": (lambda p: p.token(exp="tomorrow"), "exp"),
    "ends at infinity": (lambda p: p.token(exp=float("inf")), "exp"),
    "not yet valid": (lambda p: p.token(nbf=int(time.time()) + 600), "not yet valid"),
    "issued in the future": (lambda p: p.token(iat=int(time.time()) + 600), "future"),
    "no subject": (lambda p: p.token(sub=None), "'sub'"),
    "an endless subject": (lambda p: p.token(sub="a" * 256), "`sub`"),
    "a subject of two lines": (lambda p: p.token(sub="a\nb"), "`sub`"),
    "the algorithm none": (lambda p: unsigned(p, "none"), "not allowed"),
    "the algorithm None": (lambda p: unsigned(p, "None"), "not allowed"),
    "a missing signature": (lambda p: unsigned(p, "RS256"), "signature"),
    "a secret that is the public key": (lambda p: by_public_key(p, KEY.as_pem(private=False)), "not allowed"),
    "a secret that is the public key's DER": (lambda p: by_public_key(p, KEY.as_der(private=False)), "not allowed"),
    "an algorithm that is not configured": (lambda p: p.token(header={"alg": "RS512"}), "not allowed"),
    "an attacker's key": (lambda p: p.token(FOREIGN_KEY), "signature"),
    "other claims": (lambda p: changed(p.token()), "signature"),
    "a key id that is a path": (lambda p: p.token(header={"kid": "../../../../dev/null"}), "does not have"),
    "a key id that is a list": (lambda p: f"{encoded({'alg': 'RS256', 'kid': ['first']})}.e30.AAAA", "malformed"),
    "a key in the header": (
        lambda p: p.token(FOREIGN_KEY, header={"kid": "own", "jwk": FOREIGN_KEY.as_dict(private=False)}),
        "does not have",
    ),
    "a known id and a key in the header": (
        lambda p: p.token(FOREIGN_KEY, header={"jwk": FOREIGN_KEY.as_dict(private=False)}),
        "signature",
    ),
    "a critical extension": (lambda p: f"{encoded({'alg': 'RS256', 'crit': ['x'], 'x': 1})}.e30.AAAA", "malformed"),
    "a logout": (lambda p: p.token(header={"typ": "logout+jwt"}), "identifies nobody"),
    "a logout without a type": (lambda p: p.token(events={"http://schemas.openid.net/event": {}}), "logout"),
    "too many characters": (lambda p: p.token(groups=["bots", "x" * MAX_TOKEN_CHARACTERS]), "characters"),
    "a header of lists in lists": (lambda p: nested_header(), "malformed"),
    "no JSON": (lambda p: "a.b.c", "malformed"),
    "empty parts": (lambda p: "..", "malformed"),
    "claims that are a list": (lambda p: f"{p.token().split('.')[0]}.{encoded([1])}.AAAA", "signature"),
}


def test_only_the_providers_tokens_for_dray_open_anything(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with (
            key_provider() as provider,
            asking(server, monkeypatch, tmp_path, sign_on=provider.settings()) as client,
        ):
            opened = await client.post(CHAT, content=chat("hello"), headers=bearer(provider.token()))
            assert opened.status_code == 200, "the test's own tokens are good"
            for name, (make, reason) in HOSTILE.items():
                for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/admin/teams")):
                    body = chat("hello") if method == "POST" else b""
                    answer = await client.request(method, path, content=body, headers=bearer(make(provider)))
                    assert answer.status_code == 401, name
                    assert answer.json()["error"]["code"] == "invalid_token", name
                    assert reason in answer.json()["error"]["message"], (name, answer.json())
                    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
            assert provider.asked.count("/keys") <= 2, "unknown keys are asked for once in a while"

    asyncio.run(work())


def test_an_address_in_a_token_is_never_opened() -> None:
    async def work() -> None:
        async with key_provider() as provider, key_provider() as attacker:
            sign_on = SignOn(provider.checked())
            attacker.keys = [FOREIGN_KEY]
            for name in ("jku", "x5u"):
                token = provider.token(FOREIGN_KEY, header={"kid": "own", name: f"{attacker.url}/keys"})
                await sign_on.prepare(token)
                with pytest.raises(ApiError, match="does not have"):
                    sign_on.identity(token)
            assert attacker.asked == [] and provider.asked
            await sign_on.provider.close()

    asyncio.run(work())


def test_a_token_is_its_teams_and_the_audit_log_names_the_person(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with (
            key_provider() as provider,
            asking(server, monkeypatch, tmp_path, sign_on=provider.settings(admins=["admins"])) as client,
        ):

            async def asked(question: str, **claims: Any) -> httpx.Response:
                return await client.post(CHAT, content=chat(question), headers=bearer(provider.token(**claims)))

            assert (await asked("Who?")).headers["X-Dray-Cache"] == "miss"
            assert (await asked("Who?", sub="bob")).headers["X-Dray-Cache"] == "hit", "one team, one cache"
            with connect(server.url) as redis:
                key = create_key(redis, "support").secret
            hits = await client.post(CHAT, content=chat("Who?"), headers=bearer(key))
            while hits.status_code == 401:  # the router has not read the new key yet
                hits = await client.post(CHAT, content=chat("Who?"), headers=bearer(key))
            assert hits.headers["X-Dray-Cache"] == "hit", "keys are accepted beside tokens"

            unknown = await asked("Who?", groups=["others"])
            assert unknown.status_code == 403 and unknown.json()["error"]["code"] == "unknown_team"
            assert "dray teams add gone" in unknown.json()["error"]["message"]
            nobody = await asked("Who?", groups=["guests"])
            assert nobody.status_code == 403 and "sign_on.teams" in nobody.json()["error"]["message"]

            admin = bearer(provider.token(sub="carol", groups=["admins"]))
            assert (await client.post(CHAT, content=chat("Who?"), headers=admin)).status_code == 403
            body = {"name": "gone"}
            for headers, status in ((bearer(provider.token()), 403), (admin, 201)):
                assert (await client.post("/admin/teams", json=body, headers=headers)).status_code == status
            both = bearer(provider.token(groups=["admins", "bots"]))
            assert (await client.post(CHAT, content=chat("Who?"), headers=both)).status_code == 200
            assert (await client.get("/admin/teams", headers=both)).status_code == 200
            refused = await client.post(CHAT, content=chat("Who?"))
            assert refused.status_code == 401 and "sign-on token" in refused.json()["error"]["message"]
        [entry] = [json.loads(line) for line in (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()]
        assert (entry["actor"], entry["action"], entry["target"]) == ("sign-on:carol", "team.create", "gone")

    monkeypatch.setenv(variable("data_dir"), str(tmp_path))
    asyncio.run(work())


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def with_sign_on(work: Callable[[KeyProvider, SignOn, Clock], object], **settings: object) -> None:
    """Runs a coroutine function with a provider that answers, a check of its tokens, and the clock of both."""

    async def run() -> None:
        clock = Clock()
        async with key_provider() as provider:
            checked = provider.checked(**settings)
            sign_on = SignOn(checked, Provider(checked.issuer, clock), clock)
            try:
                await work(provider, sign_on, clock)  # type: ignore[misc]
            finally:
                await sign_on.provider.close()

    asyncio.run(run())


async def subject(sign_on: SignOn, token: str) -> str:
    await sign_on.prepare(token)
    return sign_on.identity(token).subject


def test_made_up_keys_do_not_make_dray_ask_the_provider_again_and_again() -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        assert await subject(sign_on, provider.token()) == "alice"
        clock.now += 60
        tokens = [provider.token(header={"kid": f"made-up-{number}"}) for number in range(200)]
        outcomes = await asyncio.gather(*(subject(sign_on, token) for token in tokens), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {ApiError}
        assert provider.asked.count("/keys") == 2, "once at first, and once for all of them"
        assert await subject(sign_on, provider.token()) == "alice"

    with_sign_on(work)


def test_a_new_key_is_found_and_a_withdrawn_one_refused_although_its_tokens_were_known() -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        old, new = provider.token(), provider.token(NEXT_KEY)
        assert await subject(sign_on, old) == "alice"
        provider.keys = [KEY, NEXT_KEY]
        clock.now += 11
        assert await subject(sign_on, new) == "alice"
        provider.keys = [NEXT_KEY]
        clock.now += 11
        with pytest.raises(ApiError):
            await subject(sign_on, provider.token(header={"kid": "makes the router ask"}))
        with pytest.raises(ApiError, match="does not have"):
            await subject(sign_on, old)
        assert await subject(sign_on, new) == "alice"

    with_sign_on(work)


def test_while_the_provider_is_away_known_keys_serve_for_some_hours() -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        later: dict[str, Any] = {"exp": int(clock.now) + 86_400}
        assert await subject(sign_on, provider.token(**later)) == "alice"
        provider.status = 500
        clock.now += 3600
        assert await subject(sign_on, provider.token(sub="bob", **later)) == "bob"
        with pytest.raises(ApiError) as away:
            await subject(sign_on, provider.token(NEXT_KEY, **later))
        assert away.value.status == 503 and "Try again" in away.value.message
        clock.now += 4 * 3600
        with pytest.raises(ApiError) as away:
            await subject(sign_on, provider.token(**later))
        assert away.value.status == 503, "also a token that was known, as its key may have been withdrawn"
        provider.status = 200
        clock.now += 60
        assert await subject(sign_on, provider.token(**later)) == "alice"

    with_sign_on(work)


def test_a_provider_that_hangs_holds_up_nobody_who_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        known = provider.token()
        assert await subject(sign_on, known) == "alice"
        clock.now += 60
        monkeypatch.setattr(provider_module, "_TIMEOUT_S", 1.0)
        provider.answering.clear()
        waiting = asyncio.create_task(subject(sign_on, provider.token(NEXT_KEY)))
        while len(provider.asked) < 3:
            await asyncio.sleep(0.01)
        assert await subject(sign_on, known) == "alice"
        assert await subject(sign_on, provider.token(sub="bob")) == "bob"
        assert len(provider.asked) == 3, "nobody who is known waits for it"
        with pytest.raises(ApiError) as away:
            await waiting
        assert away.value.status == 503

    with_sign_on(work)


def test_only_the_configured_issuer_is_believed() -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        provider.issuer = "https://elsewhere.example"
        with pytest.raises(ApiError) as refused:
            await subject(sign_on, provider.token())
        assert refused.value.status == 503

    with_sign_on(work)


def test_keys_that_protect_nothing_are_left_out() -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        with pytest.warns(SecurityWarning, match="2048"):
            short = RSAKey.generate_key(1024, {"kid": "short"})
            provider.keys = [short, KEY, OctKey.generate_key(256)]
            assert await subject(sign_on, provider.token()) == "alice"
        assert sign_on.provider.keys is not None and [key.kid for key in sign_on.provider.keys] == ["first"]

    with_sign_on(work)


def test_known_tokens_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        monkeypatch.setattr(sign_on_module, "_MAX_KNOWN", 10)
        tokens = [provider.token(sub=f"person-{number}") for number in range(30)]
        assert [await subject(sign_on, token) for token in tokens] == [f"person-{number}" for number in range(30)]
        assert len(sign_on._known) == 10
        clock.now += 700
        with pytest.raises(ApiError, match="expired"):
            await subject(sign_on, tokens[-1])

    with_sign_on(work)


def test_the_team_and_the_role_come_from_the_claims_that_the_settings_name() -> None:
    async def work(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        token = provider.token(realm={"roles": ["dray=x", "b"]}, roles="boss")
        await sign_on.prepare(token)
        identity = sign_on.identity(token)
        assert (identity.team, identity.admin) == ("second", True)
        dotted: dict[str, Any] = {"realm.roles": "a"}
        token = provider.token(**dotted)
        await sign_on.prepare(token)
        assert (sign_on.identity(token).team, sign_on.identity(token).admin) == ("first", False)

    teams = ["a=first", "dray=x=second", "b=third"]
    with_sign_on(work, team_claim="realm.roles", teams=teams, admin_claim="roles", admins=["boss"])

    async def names(provider: KeyProvider, sign_on: SignOn, clock: Clock) -> None:
        for groups, team in (("support", "support"), (["support"], "support"), (["a", "b"], ""), ({"a": 1}, "")):
            token = provider.token(groups=groups)
            await sign_on.prepare(token)
            assert sign_on.identity(token).team == team

    with_sign_on(names, teams=[])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"issuer": "http://sso.example.com", "audiences": ["dray"]}, "https"),
        ({"issuer": "https://sso.example.com?x=1", "audiences": ["dray"]}, "without a query"),
        ({"issuer": "https://sso.example.com"}, "audiences"),
        ({"issuer": "https://a.example", "audiences": ["d"], "algorithms": ["HS256"]}, "RS256"),
        ({"issuer": "https://a.example", "audiences": ["d"], "algorithms": ["none"]}, "RS256"),
        ({"issuer": "https://a.example", "audiences": ["d"], "algorithms": []}, "at least 1"),
        ({"issuer": "https://a.example", "audiences": ["d"], "teams": ["bots"]}, "VALUE=TEAM"),
    ],
)
def test_settings_that_open_too_much_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Settings(sign_on=settings)
