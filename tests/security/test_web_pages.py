"""What a web page could make a browser send to a Dray without keys; every route refuses it, whoever sends it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, cast

import httpx
import pytest
import redis

from cluster.records.team_records import Team
from cluster.records.teams import add_team, create_key, read_registry, remove_team
from cluster.redis_server import OwnRedis
from deployments.pages.service import Page
from tests.conftest import redis_server
from tests.deployments.routers import chat, listening, running_router

READS = (
    *("/v1/models", "/v1/usage", "/metrics", "/status", "/status/machine", "/status/load"),
    *("/docs", "/openapi.json", "/health/live"),
)
GENERATES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
WRITES = (
    *GENERATES,
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/batches",
    "/tokenize",
    "/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
    "/detokenize",
    "/admin/teams",
    "/admin/keys",
    "/no/such/route",
)
JSON = {"Content-Type": "application/json"}
EVIL = "rebound.example"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.fixture
def store(server: OwnRedis) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


Send = Callable[..., Awaitable[httpx.Response]]


def with_router(
    monkeypatch: pytest.MonkeyPatch, url: str, work: Callable[[Send], Awaitable[None]], **more: Any
) -> None:
    """Runs the test against a router. Its `send` takes method, path, headers and a body."""

    async def run() -> None:
        async with (
            running_router(monkeypatch, url, **more) as running,
            httpx.AsyncClient(base_url=running.url, timeout=20) as client,
        ):

            async def send(
                method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
            ) -> httpx.Response:
                headers = {"Host": f"localhost:{running.port}"} | dict(headers or {})
                return await client.request(method, path, headers=headers, content=body or None)

            await work(send)

    asyncio.run(run())


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error; in Anthropic's shape, which has no code, what stands for it."""
    error = answer.json()["error"]
    assert error["message"]
    return answer.status_code, error.get("code") or error["type"]


@pytest.mark.parametrize("cached", [True, False])
def test_a_name_that_is_not_this_machines_is_refused_everywhere(
    server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    async def work(send: Send) -> None:
        for host in (
            EVIL,
            f"{EVIL}:80",
            "0.0.0.0:8000",
            "localhost.rebound.example",
            "127.0.0.1.rebound.example",
            "a@b",
        ):
            for path in READS:
                assert (await send("GET", path, {"Host": host})).status_code == 421, (host, path)
            for path in WRITES:
                answer = await send("POST", path, {"Host": host} | JSON, chat("hi"))
                assert answer.status_code == 421 and "server.allowed_hosts" in answer.text, (host, path)
        assert refusal(await send("GET", "/v1/models", {"Host": EVIL})) == (421, "host_not_allowed")
        for host in (
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]:8000",
            "ours.example",
            "ours.example.:9",
        ):
            assert (await send("GET", "/v1/models", {"Host": host})).status_code == 200, host
            assert (await send("POST", GENERATES[0], {"Host": host} | JSON, chat("hi"))).status_code == 200, host

    allowed = {"server": {"allowed_hosts": ("Ours.example",)}}
    with_router(monkeypatch, server.url, work, cache={"enabled": cached}, **allowed)


@pytest.mark.parametrize("cached", [True, False])
def test_a_page_of_another_site_is_refused_everywhere(
    server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    foreign = (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    )

    async def work(send: Send) -> None:
        for headers in foreign:
            for path in READS:
                assert (await send("GET", path, headers)).status_code == 403, (headers, path)
            for path in WRITES:
                assert (await send("POST", path, headers | JSON, chat("hi"))).status_code == 403, (headers, path)
            # A form is what an upload is, and a browser sends one without asking first: but never without its origin.
            form = {"Content-Type": "multipart/form-data; boundary=x"}
            assert (await send("POST", "/v1/files", headers | form, b"--x--")).status_code == 403, headers
        assert refusal(await send("GET", "/v1/models", foreign[0])) == (403, "origin_not_allowed")
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert (await send("GET", "/status", link)).status_code == 200, "a person may follow a link to a page"
        assert (await send("POST", "/tokenize", link | JSON, b"{}")).status_code == 403, "but not submit a form to it"
        own = {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}
        trusted = {"Origin": "https://ours.example", "Sec-Fetch-Site": "cross-site"}
        for headers in (own, trusted, {"Sec-Fetch-Site": "none"}):
            assert (await send("GET", "/status/machine", headers)).status_code == 200
            assert (await send("POST", GENERATES[0], headers | JSON, chat("hi"))).status_code == 200

    allowed = {"server": {"allowed_hosts": ("ours.example",)}}
    with_router(monkeypatch, server.url, work, cache={"enabled": cached}, **allowed)


@pytest.mark.parametrize("cached", [True, False])
def test_a_body_must_be_declared_as_json(
    server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """What a browser sends to other sites without asking first, and what curl -d sends."""

    async def work(send: Send) -> None:
        forms = (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain;json",
            "",
        )
        for headers in ({}, *({"Content-Type": form} for form in forms)):
            for path in WRITES:
                answer = await send("POST", path, headers, chat("hi"))
                assert answer.status_code == 415, (headers, path)
                assert "-H 'Content-Type: application/json'" in answer.text
            assert (await send("PATCH", "/admin/teams/x", headers, b"{}")).status_code == 415
        assert refusal(await send("POST", "/tokenize", {}, b"{}")) == (415, "unsupported_media_type")
        for good in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"):
            assert (await send("POST", GENERATES[0], {"Content-Type": good}, chat("hi"))).status_code == 200, good
        assert (await send("POST", GENERATES[0])).status_code == 400, "without a body there is nothing to declare"

    with_router(monkeypatch, server.url, work, cache={"enabled": cached})


def test_administration_needs_an_admin_key_even_where_no_key_exists(
    server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_team(store, Team("support", 0.0))
    requests = (
        ("GET", "/admin/teams", b""),
        ("GET", "/admin/keys", b""),
        ("POST", "/admin/teams", b'{"name": "mine"}'),
        ("POST", "/admin/keys", b'{"team": ""}'),
        ("POST", "/admin/keys", b'{"team": "support"}'),
        ("POST", "/admin/keys/x/rotate", b"{}"),
        ("PATCH", "/admin/teams/support", b'{"weight": 2}'),
        ("DELETE", "/admin/teams/support", b""),
        ("DELETE", "/admin/keys/x", b""),
    )

    async def work(send: Send) -> None:
        for method, path, body in requests:
            answer = await send(method, path, JSON, body)
            assert refusal(answer) == (403, "admin_key_needed"), (method, path)
            assert "dray keys create --admin" in answer.text
        registry = read_registry(store)
        assert set(registry.teams) == {"support"} and registry.keys == {} and not registry.locked

    with_router(monkeypatch, server.url, work)


def test_with_keys_the_rules_for_browsers_are_off(
    server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may send any Host, and a trusted page of another site may have a key."""
    add_team(store, Team("support", 0.0))
    key = create_key(store, "support").secret

    async def work(send: Send) -> None:
        headers = {"Host": "dray.example.com", "Origin": "https://bots.example.com", "Authorization": f"Bearer {key}"}
        assert (await send("GET", "/v1/models", headers)).status_code == 200
        assert (await send("POST", GENERATES[0], headers | JSON, chat("hi"))).status_code == 200
        assert (
            await send("POST", GENERATES[0], headers | {"Content-Type": "text/plain"}, chat("hi"))
        ).status_code == 415
        for path in READS[:2]:
            assert (await send("GET", path)).status_code == 401
        remove_team(store, "support")
        async with asyncio.timeout(60):
            while (await send("GET", "/v1/models", headers)).status_code == 200:
                await asyncio.sleep(0.05)
        for path in ("/v1/models", "/admin/keys"):
            assert refusal(await send("GET", path)) == (401, "invalid_api_key"), (
                "the last key is gone, and all stays shut"
            )
        assert (
            json.loads((await send("POST", GENERATES[0], JSON, chat("hi"))).content)["error"]["code"]
            == "invalid_api_key"
        )

    with_router(monkeypatch, server.url, work)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3"])
def test_where_others_can_connect_any_name_may_be_used(
    server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async def work(send: Send) -> None:
        answer = await send("GET", "/v1/models", {"Host": "dray.example.com"})
        assert refusal(answer) == (401, "invalid_api_key")
        assert (await send("GET", "/health/live", {"Host": "dray.example.com"})).status_code == 200

    with_router(monkeypatch, server.url, work, host=host)


def test_the_chat_page_follows_the_same_rules(server: OwnRedis, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    args = {"api_url": "http://127.0.0.1:1/v1", "body_bytes": 1000, "receive_timeout_s": 20, "log_level": "info"}
    args |= {"host": "127.0.0.1", "allowed_hosts": [], "teams_url": server.url}

    class InProcessPage(Page):
        """As InProcessRouter."""

        def __del__(self) -> None:
            pass

    async def work() -> None:
        page = object.__new__(InProcessPage)
        await cast(Any, Page.__init__)(page, args)
        app = page.__serve_build_asgi_app__()
        async with (
            app.router.lifespan_context(app),
            listening(app) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        ):
            async with asyncio.timeout(20):
                while (await client.get("/", headers={"Host": EVIL})).status_code == 503:
                    await asyncio.sleep(0.05)

            async def sent(path: str, **headers: str) -> int:
                given = {name.replace("_", "-"): value for name, value in headers.items()}
                return (await client.post(path, headers=given, content=b"{}")).status_code

            assert (await client.get("/")).status_code == 200
            for path in ("/", "/config", "/gradio_api/app_id", "/console/", "/console/config"):
                assert (await client.get(path, headers={"Host": EVIL})).status_code == 421
                assert (await client.get(path, headers={"Origin": "http://evil.example"})).status_code == 403
            for path in (
                "/gradio_api/queue/join",
                "/gradio_api/run/predict",
                "/console/gradio_api/run/predict",
                "/file",
            ):
                assert await sent(path, Host=EVIL) == 421
                assert await sent(path, Content_Type="application/json", Origin="null") == 403
                assert await sent(path) == await sent(path, Content_Type="text/plain") == 415
                own = {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}
                assert await sent(path, Content_Type="application/json", **own) not in (403, 415, 421)
            add_team(store, Team("support", 0.0))
            create_key(store, "support")
            async with asyncio.timeout(60):
                while (await client.get("/", headers={"Host": "dray.example.com"})).status_code != 200:
                    await asyncio.sleep(0.05)

    asyncio.run(work())
