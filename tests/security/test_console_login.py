"""Signing on to the console: with a real provider, and with every part of the flow forged."""

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import flask
import httpx
import oidc_provider_mock
import pytest
import werkzeug.serving

from cluster.configuration import variable
from cluster.records.team_records import Team
from cluster.records.teams import add_team
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from cluster.settings import CLIENT_SECRET_VARIABLE
from deployments.tenancy.sessions import session_of_browser
from tests.conftest import redis_server
from tests.deployments.routers import asking, chat
from tests.sign_on import key_provider

# The provider is written for an older version of its library.
pytestmark = pytest.mark.filterwarnings("ignore:.*get_jwt_config:DeprecationWarning")
CLIENT, SECRET = "dray-console", "a secret: with %41 + and spaces"
PUBLIC = "http://127.0.0.1:9"
"""Where Dray says that it is. Nothing listens there: the test is the browser, and follows no redirect by itself."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own, connect(own.url) as client:
        add_team(client, Team("support", 1.0))
        yield own


@dataclass
class RealProvider:
    """A provider that also checks PKCE and the client's secret, which it leaves to others."""

    issuer: str
    challenges: dict[str, str]
    checked: int = 0


@pytest.fixture(scope="module")
def real_provider() -> Iterator[RealProvider]:
    groups = {"carol": ["admins", "bots"], "alice": ["bots"]}
    users = [oidc_provider_mock.User(sub=name, claims={"groups": of}) for name, of in groups.items()]
    app = oidc_provider_mock.app(require_nonce=True, user_claims=users)
    provider = RealProvider("", {})

    def remember(response: flask.Response) -> flask.Response:
        if flask.request.path == "/oauth2/authorize" and "code=" in response.headers.get("Location", ""):
            code = parse_qs(urlsplit(response.headers["Location"]).query)["code"][0]
            assert flask.request.args["code_challenge_method"] == "S256"
            provider.challenges[code] = flask.request.args["code_challenge"]
        return response

    def check() -> None:
        if flask.request.path == "/oauth2/token" and (code := flask.request.form["code"]) in provider.challenges:
            digest = hashlib.sha256(flask.request.form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == provider.challenges[code]
            login = flask.request.authorization
            assert login is not None and httpx.URL(f"http://x?{login.password}").query.decode() == login.password
            provider.checked += 1

    app.after_request(remember)
    app.before_request(check)
    http = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    provider.issuer = f"http://127.0.0.1:{http.server_port}"
    yield provider
    http.shutdown()
    thread.join()
    http.server_close()


@dataclass
class Browser:
    """A browser at Dray. It keeps its cookies itself, as the test's addresses are not those of Dray."""

    dray: httpx.AsyncClient
    cookies: dict[str, str]

    async def get(self, path: str, **query: str) -> httpx.Response:
        """Opens a page of Dray."""
        return self._keep(await self.dray.get(path, params=query, headers=self._sent))

    async def post(self, path: str, **headers: str) -> httpx.Response:
        """Sends a form of Dray's own page, or of the one that the headers name."""
        return self._keep(await self.dray.post(path, headers=self._sent | self._own | headers))

    @property
    def bearer(self) -> dict[str, str]:
        """What the console sends to the admin API for this browser."""
        secret = session_of_browser({"host": "dray", "origin": "http://dray", **self._sent})
        return {"Authorization": f"Bearer {secret}"} if secret else {}

    @property
    def _sent(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}

    @property
    def _own(self) -> dict[str, str]:
        return {"origin": str(self.dray.base_url).rstrip("/"), "content-type": "application/x-www-form-urlencoded"}

    def _keep(self, response: httpx.Response) -> httpx.Response:
        for line in response.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if "Max-Age=0" in line:
                del self.cookies[name]
        self.dray.cookies.clear()
        return response


@asynccontextmanager
async def dray(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, issuer: str, **more: object
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a Dray to whose console people sign on at this provider."""
    sign_on = {
        **{"issuer": issuer, "audiences": ["dray-api"], "client_id": CLIENT, "public_url": PUBLIC},
        **{"teams": ["bots=support"], "admins": ["admins"], **more},
    }
    monkeypatch.setenv(CLIENT_SECRET_VARIABLE, SECRET)
    async with asking(server, monkeypatch, folder, sign_on=sign_on) as client:
        yield client


async def sent_back(browser: Browser, person: str) -> dict[str, str]:
    """Begins a login, and signs on at the provider; returns what its redirect to Dray says."""
    begun = await browser.get("/console/login", next="https://evil.example")
    assert begun.status_code == 303
    async with httpx.AsyncClient() as at_provider:
        answer = await at_provider.post(begun.headers["Location"], data={"sub": person})
    assert answer.headers["Location"].startswith(f"{PUBLIC}/console/callback?"), answer.text
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()}


def test_an_admin_signs_on_works_and_signs_off(
    server: OwnRedis, real_provider: RealProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with dray(server, monkeypatch, tmp_path, real_provider.issuer) as client:
            browser = Browser(client, {})
            back = await sent_back(browser, "carol")
            ended = await browser.get("/console/callback", **back, next="https://evil.example")
            assert (ended.status_code, ended.headers["Location"]) == (303, f"{PUBLIC}/console"), ended.text
            session, login = ended.headers.get_list("set-cookie")
            assert {"HttpOnly", "SameSite=lax", "Path=/", "Max-Age=28800"} <= set(session.split("; "))
            assert "Max-Age=0" in login and real_provider.checked == 1
            assert list(browser.cookies) == ["dray-console"]

            added = await client.post("/admin/teams", json={"name": "sales"}, headers=browser.bearer)
            assert added.status_code == 201
            assert (await client.post("/v1/chat/completions", content=chat("?"), headers=browser.bearer)).is_success
            with connect(server.url) as redis:
                kept = list(redis.scan_iter("*session*"))
                assert len(kept) == 1 and 0 < redis.ttl(kept[0]) <= 28_800
                secret = browser.cookies["dray-console"].encode()
                assert secret not in kept[0] + redis.get(kept[0]), "who reads Redis does not get in"

            replayed = await Browser(client, {}).get("/console/callback", **back)
            assert replayed.status_code == 403 and "set-cookie" in replayed.headers
            bearer = browser.bearer
            assert (await browser.post("/console/logout", origin="https://evil.example")).status_code == 303
            assert (await client.get("/admin/teams", headers=bearer)).status_code == 200, (
                "another site's page ends none"
            )
            browser.cookies["dray-console"] = bearer["Authorization"].removeprefix("Bearer ")
            off = await browser.post("/console/logout")
            assert off.headers["Location"] == f"{PUBLIC}/console" and browser.cookies == {}
            refused = await client.get("/admin/teams", headers=bearer)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_session")
        entries = [json.loads(line) for line in (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()]
        assert [(entry["actor"], entry["action"]) for entry in entries] == [
            ("sign-on:carol", "console.login"),
            ("sign-on:carol", "team.create"),
        ]

    monkeypatch.setenv(variable("data_dir"), str(tmp_path))
    asyncio.run(work())


def test_the_console_opens_with_the_session_and_without_a_key(
    server: OwnRedis, real_provider: RealProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gr = pytest.importorskip("gradio", reason="the console needs the extra `page`")
    from deployments.pages.console.admin import AdminClient
    from deployments.pages.console.page import Console

    async def work() -> None:
        async with dray(server, monkeypatch, tmp_path, real_provider.issuer) as client:
            browser = Browser(client, {})
            await browser.get("/console/callback", **await sent_back(browser, "carol"))
            admin = AdminClient(f"{str(client.base_url).rstrip('/')}/v1")
            await admin._http.aclose()
            admin._http = client
            console = Console(admin, sign_on=True)
            assert "/console/login" in str(console.build().get_config_file())

            def opened(origin: str) -> Any:
                cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
                headers = {"host": "dray", "origin": origin, "cookie": cookie}
                return console.login.restore("", gr.Request(headers=headers, cookies={}))

            assert await opened("http://dray") == ("in", "", "")
            assert (await opened("http://evil.example"))[0] == "out", "the cookie of another site's page counts not"
            await browser.post("/console/logout", host="dray", origin="http://dray")
            assert (await opened("http://dray"))[0] == "out"

    asyncio.run(work())


def test_only_the_browser_that_began_a_login_ends_it_and_only_admins_get_a_session(
    server: OwnRedis, real_provider: RealProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with dray(server, monkeypatch, tmp_path, real_provider.issuer) as client:
            attacker, victim = Browser(client, {}), Browser(client, {})
            back = await sent_back(attacker, "carol")
            await victim.get("/console/login")
            for browser in (victim, Browser(client, {}), Browser(client, {"dray-login": "...9999999999"})):
                refused = await browser.get("/console/callback", **back)
                assert refused.status_code == 403 and browser.cookies == {}
            late = {"dray-login": attacker.cookies["dray-login"].rpartition(".")[0] + ".1"}
            assert (await Browser(client, late).get("/console/callback", **back)).status_code == 403

            alice = Browser(client, {})
            refused = await alice.get("/console/callback", **await sent_back(alice, "alice"))
            assert refused.status_code == 403 and "sign_on.admins" in refused.text and alice.cookies == {}

            denied = Browser(client, {})
            state = (await sent_back(denied, "carol"))["state"]
            error = "<script>alert(1)</script>"
            page = await denied.get("/console/callback", state=state, error=error)
            assert page.status_code == 403 and "&lt;script&gt;" in page.text and "<script>" not in page.text

    asyncio.run(work())


ID_TOKENS: list[tuple[dict[str, Any], int, str]] = [
    ({"nonce": "of another login"}, 401, "another login"),
    ({"nonce": None}, 401, "another login"),
    ({"aud": "dray-api"}, 401, "aud"),
    ({"azp": "another client"}, 401, "another client"),
    ({"iss": "https://evil.example"}, 401, "iss"),
    ({"exp": 1}, 401, "expired"),
    ({"groups": ["bots"]}, 403, "no admin"),
    ({}, 303, ""),
]
"""Changes of the token that a provider gives for a code, the status, and words of the refusal."""


def test_the_id_token_is_checked(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with key_provider() as provider, dray(server, monkeypatch, tmp_path, provider.url) as client:
            for claims, status, reason in ID_TOKENS:
                browser = Browser(client, {})
                asked = parse_qs(urlsplit((await browser.get("/console/login")).headers["Location"]).query)
                good = {"aud": CLIENT, "nonce": asked["nonce"][0], "groups": ["admins"]}
                provider.id_token = provider.token(**{**good, **claims})
                ended = await browser.get("/console/callback", state=asked["state"][0], code="any")
                assert ended.status_code == status, (claims, ended.text)
                assert reason in ended.text and bool(browser.bearer) == (not reason)
            assert provider.asked.count("/.well-known/openid-configuration") <= 2, "not for each login"

    asyncio.run(work())


def test_over_tls_no_other_host_of_the_domain_can_set_the_cookies(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        public = "https://dray.example.com/"
        async with (
            key_provider() as provider,
            dray(server, monkeypatch, tmp_path, provider.url, public_url=public) as client,
        ):
            browser = Browser(client, {})
            begun = await browser.get("/console/login")
            asked = parse_qs(urlsplit(begun.headers["Location"]).query)
            assert asked["redirect_uri"] == ["https://dray.example.com/console/callback"]
            assert list(browser.cookies) == ["__Host-dray-login"] and "Secure" in begun.headers["set-cookie"]
            provider.id_token = provider.token(aud=CLIENT, nonce=asked["nonce"][0], groups=["admins"])
            ended = await browser.get("/console/callback", state=asked["state"][0], code="any")
            assert ended.headers["set-cookie"].startswith("__Host-dray-console=")
            assert "Secure" in ended.headers["set-cookie"]

    asyncio.run(work())


def test_a_cookie_counts_only_in_a_request_of_the_consoles_own_page() -> None:
    secret = "dray-session-" + "a" * 43
    own = {"host": "dray.example", "origin": "https://dray.example", "cookie": f"x=1; __Host-dray-console={secret}"}
    assert session_of_browser(own) == secret
    assert session_of_browser({**own, "sec-fetch-site": "same-origin"}) == secret
    for foreign in (
        {"origin": "https://evil.example"},
        {"origin": "https://other.dray.example"},
        {"origin": "http://dray.example"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        {"cookie": f"dray-console={secret}"},
        {"cookie": "__Host-dray-console=dray-0123456789-key"},
        {"cookie": ""},
    ):
        assert session_of_browser({**own, **foreign}) == ""
    assert session_of_browser({name: value for name, value in own.items() if name != "origin"}) == ""


def test_a_provider_that_is_away_is_named(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with dray(server, monkeypatch, tmp_path, "http://127.0.0.1:1") as client:
            away = await client.get("/console/login")
            assert away.status_code == 503 and "does not answer" in away.text

    asyncio.run(work())
