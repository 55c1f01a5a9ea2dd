"""What administrators see over HTTP, with a real router and a real Redis."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
import redis

from cluster.audit import AUDIT_FOLDER
from cluster.configuration import variable
from cluster.records import curated
from cluster.records.activity import RequestRecord, read_activity
from cluster.records.cache import WITHHELD, key_of, pack
from cluster.records.cache_search import MAX_SCANNED, search
from cluster.records.curated import VERSION, new_answer
from cluster.records.team_records import ADMIN, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.common.messages import EngineState, ReplicaStats
from deployments.tenancy.activity import ActivityLog
from tests.conftest import MODEL, redis_server
from tests.deployments.cache.test_answers import closing, store_at
from tests.deployments.routers import Engines, RunningRouter, running_router
from tests.deployments.routing.clock import Clock
from tests.deployments.waiting import until

CHAT = "/v1/chat/completions"
PRICES = {"currency": "EUR", "models": [{"model": MODEL, "input": 1000, "output": 4000}]}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[OwnRedis, OwnRedis]]:
    with redis_server(32) as answers, redis_server(32) as teams:
        yield answers, teams


@dataclass
class Console:
    """A router, and two teams and an administrator who use it. store: the teams' Redis, at the url. folder:
    data_dir."""

    client: httpx.AsyncClient
    running: RunningRouter
    store: Any
    folder: Path
    url: str
    keys: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, **query: Any) -> Any:
        """What an administrator reads."""
        answer = await self.client.get(path, params=query, headers=self.as_("admin"))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self.client.request(method, path, json=body, headers=self.as_("admin"))

    async def ask(self, team: str, question: str, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
        return await self.client.post(CHAT, json=body, headers=self.as_(team))

    def as_(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[name]}"}


@asynccontextmanager
async def console(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any
) -> AsyncIterator[Console]:
    answers, teams = servers
    monkeypatch.setenv(variable("data_dir"), str(folder))
    with redis.Redis.from_url(answers.url) as cached, connect(teams.url) as store:
        cached.flushall()
        store.flushall()
        keys = {}
        for name in ("support", "sales"):
            add_team(store, Team(name, 0.0))
            keys[name] = create_key(store, name).secret
        keys["admin"] = create_key(store, ADMIN).secret
        async with (
            running_router(monkeypatch, answers.url, teams.url, engines=Engines(), **settings) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30) as client,
        ):
            shown = Console(client, running, store, folder, teams.url, keys)

            async def known() -> bool:
                return (await client.get("/admin/teams", headers=shown.as_("admin"))).status_code == 200

            await until(known)
            yield shown


@pytest.fixture
def run(servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs the work with a console."""

    def run_with(work: Callable[[Console], Awaitable[None]], **settings: Any) -> None:
        async def with_console() -> None:
            async with console(servers, monkeypatch, tmp_path, **settings) as started:
                await work(started)

        asyncio.run(closing(with_console()))

    return run_with


def test_usage_is_summed_up_and_priced(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        first = (await console.ask("support", "What is a dray?")).json()["usage"]
        assert (await console.ask("support", "What is a dray?")).headers["x-dray-cache"] == "hit"
        await console.ask("sales", "What is a dray?")
        curated.put_answers(console.store, [new_answer("team.sales", "Where?", "Here.")])
        version = int(console.store.get(VERSION))
        router = console.running.router

        async def followed() -> bool:
            return bool(router._curated._version == version)

        await until(followed)
        assert (await console.ask("sales", "Where?")).headers["x-dray-cache"] == "curated"

        prompt, completion = first["prompt_tokens"], first["completion_tokens"]
        cost = (prompt * 1000 + completion * 4000) / 1_000_000
        rows = {row["team"]: row for row in (await console.get("/admin/usage"))["data"]}
        assert rows.keys() == {"support", "sales"}
        support = rows["support"]
        assert (support["requests"], support["hits"], support["curated"], support["joins"]) == (2, 1, 0, 0)
        assert support["cost"] == pytest.approx(cost) and support["saved_cost"] == pytest.approx(cost)
        assert (rows["sales"]["hits"], rows["sales"]["curated"]) == (1, 1)

        report = await console.get("/admin/usage", by="model")
        [row] = report["data"]
        assert (row["day"], row["team"], row["model"], row["requests"]) == ("", "", MODEL, 4)
        assert report["currency"] == "EUR" and report["total"]["cost"] == pytest.approx(2 * cost)
        assert (await console.get("/admin/usage", team="support"))["total"]["requests"] == 2
        assert (await console.get("/admin/usage", model="another"))["data"] == []

        for query in ("by=week", "by=", "days=401", "days=0"):
            refused = await console.send("GET", f"/admin/usage?{query}")
            assert refused.status_code == 400 and refused.json()["error"]["param"] == query.partition("=")[0]
        assert (await console.client.get("/admin/usage", headers=console.as_("support"))).status_code == 403

    run(work, prices=PRICES)


def test_without_a_price_no_money_is_shown(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        await console.ask("support", "What is a dray?")
        total = (await console.get("/admin/usage"))["total"]
        assert total["prompt"] > 0 and total["cost"] is None and total["saved_cost"] is None

    run(work)


async def set_budget(console: Console, cost: float) -> None:
    """Limits the money of the team `support`, and waits until the router knows."""
    changed = await console.send("PATCH", "/admin/teams/support", {"cost_per_month": cost})
    assert changed.status_code == 200 and changed.json()["cost_per_month"] == cost

    async def known() -> bool:
        teams = console.running.router._authenticator.check_loaded().teams
        return bool(teams["support"].cost_per_month == cost)

    await until(known)


def test_a_budget_in_money_is_warned_of_and_then_refuses(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(console: Console) -> None:
        monkeypatch.setattr(logging.getLogger("dray"), "propagate", True)  # the router has turned it off
        used = (await console.ask("support", "Question 1?", max_tokens=5)).json()["usage"]
        cost = (used["prompt_tokens"] * 1000 + used["completion_tokens"] * 4000) / 1_000_000
        [unlimited] = [row for row in (await console.get("/admin/budgets"))["data"] if row["team"] == "support"]
        assert unlimited["cost"] == pytest.approx(cost)
        assert (unlimited["cost_limit"], unlimited["used"], unlimited["state"]) == (0, 0, "ok")

        await set_budget(console, 1.5 * cost)
        refused = await console.ask("support", "Question 2?", max_tokens=5)
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, *["insufficient_quota"] * 2)
        assert "EUR a month" in error["message"], "what was used before there was a budget counts"
        assert (await console.ask("support", "Question 1?", max_tokens=5)).headers["x-dray-cache"] == "hit"

        await set_budget(console, 2.4 * cost)
        for number in (2, 2):
            assert (await console.ask("support", f"Question {number}?", max_tokens=5)).status_code == 200
        assert (await console.ask("support", "Question 3?", max_tokens=5)).status_code == 429

        async def warned() -> bool:
            rows = {row["team"]: row for row in (await console.get("/admin/budgets"))["data"]}
            return bool(rows["support"]["state"] == "warning" and rows["sales"]["state"] == "ok")

        await until(warned)
        gauge = console.running.router._metrics.budget_used.labels("support", "cost")

        async def shown() -> bool:
            return bool(gauge._value.get() == pytest.approx(2 / 2.4))

        await until(shown)
        await set_budget(console, 1.9 * cost)
        again = await console.ask("support", "Question 1?", max_tokens=5)
        assert again.status_code == 429, "nothing more, not even from the cache"
        rows = {row["team"]: row for row in (await console.get("/admin/budgets"))["data"]}
        assert rows["support"]["state"] == "exceeded"
        assert (await console.ask("sales", "Question 1?", max_tokens=5)).status_code == 200
        for wrong in (-1, 1e12, "much"):
            assert (await console.send("PATCH", "/admin/teams/support", {"cost_per_month": wrong})).status_code == 400

    run(work, prices=PRICES)
    warnings = [record for record in caplog.records if "of the month" in record.message]
    assert [(record.name, record.levelname) for record in warnings] == [("dray.teams", "WARNING")]


def test_a_model_without_a_price_costs_no_budget(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        await set_budget(console, 0.000001)
        for number in range(3):
            assert (await console.ask("support", f"Question {number}?")).status_code == 200

    run(work)


def test_the_last_requests_and_errors_of_all_routers(
    run: Callable[..., None], servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(console: Console) -> None:
        secret = "What is my password?"
        asked = await console.ask("support", secret, max_tokens=5)
        await console.ask("support", secret, max_tokens=5)
        streamed = await console.ask("sales", secret, stream=True)
        assert streamed.status_code == 200
        await console.ask("sales", "Hi", model="unknown")
        console.running.engines.error = RuntimeError("broken")
        failed = await console.ask("sales", "Another question?")
        assert failed.status_code >= 500
        for _ in range(5):
            assert (await console.client.post(CHAT, json={}, headers={"x-api-key": "dray-x"})).status_code == 401

        shown = (await console.get("/admin/requests"))["data"]
        broken, wrong, stream, hit, miss = shown
        assert [each["cache"] for each in (miss, hit, stream)] == ["miss", "hit", "miss"]
        assert miss["id"] == asked.headers["x-request-id"] and miss["model"] == MODEL and miss["api"] == CHAT
        usage = asked.json()["usage"]
        for each in (miss, hit):
            assert (each["team"], each["status"], each["code"]) == ("support", 200, "")
            assert (each["prompt"], each["completion"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert 0 <= miss["queue_s"] <= miss["first_token_s"] <= miss["total_s"]
        assert hit["queue_s"] is None and hit["first_token_s"] is None and hit["total_s"] > 0
        assert stream["stream"] and not miss["stream"] and stream["first_token_s"] > 0
        assert (wrong["status"], wrong["code"], wrong["cache"]) == (404, "model_not_found", "")
        assert (broken["status"], broken["code"]) == (failed.status_code, failed.json()["error"]["code"])
        assert secret not in str(shown), "nothing of the text"

        only = await console.get("/admin/requests", team="sales", errors="true", limit=1)
        assert [each["id"] for each in only["data"]] == [broken["id"]]
        assert (await console.get("/admin/requests", model="another"))["data"] == []
        for query in ("limit=0", "limit=1001", "errors=yes"):
            assert (await console.send("GET", f"/admin/requests?{query}")).status_code == 400

        errors = (await console.get("/admin/errors"))["data"]
        assert (errors[0]["status"], errors[0]["code"], errors[0]["count"]) == (401, "invalid_api_key", 5)
        kinds = {(each["code"], each["team"]): each for each in errors}
        assert kinds["model_not_found", "sales"]["advice"].endswith("(model.aliases).")
        assert kinds[broken["code"], "sales"]["model"] == MODEL and kinds[broken["code"], "sales"]["last"] > 0
        for path in ("/admin/requests", "/admin/errors", "/admin/budgets"):
            assert (await console.client.get(path, headers=console.as_("sales"))).status_code == 403

        another = ActivityLog(store_at(servers[1].url, timeout_s=10), "another")
        another.add(msgspec.structs.replace(RECORD, time=miss["time"] + 1000))
        another.count_error(401, "invalid_api_key", "", "")
        await another.publish()
        assert (await console.get("/admin/requests", limit=1))["data"][0]["router"] == "another"
        assert (await console.get("/admin/errors"))["data"][0]["count"] == 6

    run(work)


RECORD = RequestRecord("id", 0.0, "support", MODEL, CHAT, 200, "", "hit", False, None, None, 0.1, 10, 5)


def test_cached_answers_are_found_corrected_and_deleted(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        keys = {}
        for team, question in (("support", "Where is the VPN?"), ("support", "Is 7 prime?"), ("sales", "Which vpn?")):
            keys[team, question] = (await console.ask(team, question)).headers["x-dray-cache-key"]

        async def found(**query: Any) -> set[str]:
            return {answer["key"] for answer in (await console.get("/admin/cache", **query))["data"]}

        assert await found() == set(keys.values())
        support, prime, sales = keys.values()
        assert await found(search="VPN") == {support, sales}
        assert await found(search="vpn", team="support") == {support}
        assert await found(namespace="team.sales", model=MODEL) == {sales}
        assert await found(model="another") == set() == await found(search="no such text")
        [listed] = (await console.get("/admin/cache", search="prime"))["data"]
        assert (listed["question"], listed["namespace"], listed["model"]) == ("Is 7 prime?", "team.support", MODEL)
        whole = await console.get(f"/admin/cache/{prime}")
        assert whole["choices"][0]["text"].startswith(listed["answer"]) and whole["usage"]["prompt"] > 0
        for wrong in ("7", "a.b", "1.2.3", "-1.0", "0.", "0." + "9" * 30, f"0.{2**64}", "٣.٣"):
            refused = await console.client.get("/admin/cache", params={"cursor": wrong}, headers=console.as_("admin"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "cache_error"), wrong

        pin = {"key": support, "answer": "In the menu."}
        pinned = await console.send("POST", "/admin/answers/pin", pin)
        assert pinned.status_code == 201, pinned.text
        assert (pinned.json()["answer"], pinned.json()["namespace"]) == ("In the menu.", "team.support")

        async def corrected() -> bool:
            return (await console.ask("support", "Where is the VPN?")).headers["x-dray-cache"] == "curated"

        await until(corrected)
        for pattern in ("*", f"{prime[:-1]}?", f"{prime[:-1]}[{prime[-1]}]", "0" * 40):
            for method in ("GET", "DELETE"):
                assert (await console.send(method, f"/admin/cache/{quote(pattern, safe='')}")).status_code == 404
        assert len(await found()) == 3, "a pattern deletes nothing"
        deleted = await console.send("DELETE", f"/admin/cache/{prime}")
        assert deleted.json() == {"deleted": prime} and await found() == {support, sales}
        assert (await console.ask("support", "Is 7 prime?")).headers["x-dray-cache"] == "miss"
        for method, path in (("GET", "/admin/cache"), ("DELETE", f"/admin/cache/{sales}")):
            assert (await console.client.request(method, path, headers=console.as_("sales"))).status_code == 403
        lines = (console.folder / AUDIT_FOLDER / "audit.jsonl").read_text().splitlines()
        entries = [msgspec.json.decode(line) for line in lines]
        assert [(entry["action"], entry["details"].get("namespace")) for entry in entries] == [
            ("answer.pin", "team.support"),
            ("cache.delete", "team.support"),
        ]
        assert entries[0]["details"]["corrected"] is True and entries[1]["target"] == prime

    run(work)


def test_the_cache_is_searched_a_page_at_a_time(servers: tuple[OwnRedis, OwnRedis]) -> None:
    body = (["", "An answer.", "stop"],), (10, 5, 0, 0), 1.0, "", "A question?"
    with connect(servers[0].url) as client:
        client.flushall()
        for number in range(3 * MAX_SCANNED):
            key = key_of("m", "n", f"{number:040x}")
            client.set(key, pack(msgspec.msgpack.encode(body), key))
        rare, other = key_of("m", "n", "f" * 40), key_of("m", "n", "e" * 40)
        client.set(rare, pack(msgspec.msgpack.encode((*body[:-1], "The rare one?")), rare))
        client.set(other, pack(b"not an answer", other))
        client.set(key_of("m", "n", "d" * 40), WITHHELD)
        cursor, pages, found = "", 0, set()
        while cursor or not pages:
            page = search(client, "RARE", cursor=cursor)
            assert page.scanned < 2 * MAX_SCANNED and len(page.data) <= 1
            found |= {answer.key for answer in page.data}
            cursor, pages = page.next, pages + 1
        assert found == {"f" * 40} and pages > 1
        first = search(client, limit=10)
        assert 10 <= len(first.data) < 10 + MAX_SCANNED and first.next and first.scanned < MAX_SCANNED
        client.flushall()


def test_models_are_listed_with_their_replicas_and_speed(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        [model] = (await console.get("/admin/models"))["data"]
        assert (model["model"], model["task"], model["waiting"], model["replicas"]) == (MODEL, "generate", 0, [])
        assert model["first_token_s"] is None and model["context_tokens"] > 0 and model["changes"] == []
        dispatcher = next(iter(console.running.router._inference._models._generators.values())).dispatcher
        dispatcher.replicas.update({"r1": ReplicaStats(engine=EngineState("0,2", 1, 41.5, 0.25, 2))})
        await console.ask("support", "What is a dray?", max_tokens=5)
        [model] = (await console.get("/admin/models"))["data"]
        assert model["replicas"] == [
            {"replica": "r1", "cpus": "0,2", "running": 1, "tokens_per_s": 41.5, "kv_used": 0.25, "restarts": 2}
        ]
        first, each = model["first_token_s"], model["per_token_s"]
        assert first["samples"] == 1 and 0 < first["p50"] == first["p99"]
        assert each["p50"] >= 0
        assert (await console.client.get("/admin/models", headers=console.as_("support"))).status_code == 403

    run(work)


def test_texts_of_requests_are_shown_for_as_long_as_the_settings_allow(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        clock = Clock(1_000_000.0)
        activity = console.running.router._activity
        activity._clock = clock
        body = {"model": MODEL, "prompt": "Thinking.</think>\n\nA cart.", "add_special_tokens": False}
        tokenized = await console.client.post("/tokenize", json=body, headers=console.as_("support"))
        console.running.engines.tokens = tuple(tokenized.json()["tokens"])
        for fields in ({}, {}, {"stream": True}, {"user": "ann"}):
            await console.ask("support", "What is a dray?" + "!" * 1000 * bool(fields), **fields)
        await console.ask("support", "What is 2 + 2?", user="ann")

        def texts() -> list[tuple[str, str]]:
            return [(request.question, request.answer) for request in activity.report().requests[1:]]

        assert texts()[0] == ("What is a dray?", "A cart.")
        assert texts()[1] == texts()[0], "one from the cache has them too"
        assert texts()[2][0].startswith("What is a dray?!!") and len(texts()[2][0]) < 510
        assert texts()[3] == texts()[4] == ("", ""), "they name a user"
        clock.now += 59
        await activity.publish()
        with connect(console.url) as store:
            [report] = read_activity(store, clock.now)
            assert [request.question for request in report.requests][1:3] == ["What is a dray?"] * 2
            [report] = read_activity(store, clock.now + 2)
            assert {(request.question, request.answer) for request in report.requests} == {("", "")}
        clock.now += 2
        assert set(texts()) == {("", "")}
        assert {request.question for request in activity._requests} == {""}, "it has forgotten them itself"

    run(work, admin={"request_texts_s": 60})


def test_a_stream_that_fails_midway_is_an_error(run: Callable[..., None]) -> None:
    async def work(console: Console) -> None:
        console.running.engines.blocked = asyncio.Event()
        headers = console.as_("support") | {"x-request-timeout-seconds": "3"}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        failed = await console.client.post(CHAT, json=body, headers=headers)
        assert failed.status_code == 200 and "request_timeout" in failed.text
        [shown] = (await console.get("/admin/requests", errors="true"))["data"]
        assert (shown["status"], shown["code"], shown["stream"]) == (200, "request_timeout", True)
        assert shown["first_token_s"] is None and shown["total_s"] > 0
        [error] = (await console.get("/admin/errors"))["data"]
        assert (error["status"], error["code"], error["team"]) == (200, "request_timeout", "support")

    run(work)
