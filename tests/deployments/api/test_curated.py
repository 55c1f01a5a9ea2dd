"""Curated answers over HTTP, with a real router and a real Redis: who gets them, in which shape, and when not."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import redis

from cluster.audit import AUDIT_FOLDER, AuditLog
from cluster.configuration import variable
from cluster.records import curated
from cluster.records.curated import ANSWERS, CHANGES, FLOOR, VERSION, CuratedAnswer, new_answer
from cluster.records.team_records import ADMIN, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router
from tests.service.test_embeddings import make_model

QUESTION, ANSWER = "How do I reset my password?", "Open Settings, then Password."
GENERATED = "Ask Ben."
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[OwnRedis, OwnRedis]]:
    with redis_server(32) as answers, redis_server(32) as teams:
        yield answers, teams


@dataclass
class Bot:
    """A router and what is curated for it. store: the teams' Redis."""

    client: httpx.AsyncClient
    running: RunningRouter
    store: Any

    async def put(self, *answers: CuratedAnswer) -> None:
        """Stores answers and waits until the router has them."""
        curated.put_answers(self.store, answers)
        await self.followed()

    async def followed(self) -> None:
        """Waits until the router has read every change."""
        version = int(self.store.get(VERSION) or 0)
        async with asyncio.timeout(20):
            while self.running.router._curated._version != version:
                await asyncio.sleep(0.02)

    async def chat(self, question: str = QUESTION, key: str = "", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
        answer = await self.client.post(CHAT, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    async def how(self, question: str = QUESTION, **fields: Any) -> str:
        return (await self.chat(question, **fields)).headers["x-dray-cache"]


@asynccontextmanager
async def bot(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any
) -> AsyncIterator[Bot]:
    answers, teams = servers
    monkeypatch.setenv(variable("data_dir"), str(folder))
    with redis.Redis.from_url(answers.url) as cached, connect(teams.url) as store:
        cached.flushall()
        store.flushall()
        async with (
            running_router(monkeypatch, answers.url, teams.url, engines=Engines(), **settings) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30) as client,
        ):
            body = {"model": MODEL, "prompt": f"Thinking.</think>\n\n{GENERATED}", "add_special_tokens": False}
            running.engines.tokens = tuple((await client.post("/tokenize", json=body)).json()["tokens"])
            yield Bot(client, running, store)


def run(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, folder: Path, work: Any, **settings: Any
) -> None:
    async def with_bot() -> None:
        async with bot(servers, monkeypatch, folder, **settings) as started:
            await work(started)

    asyncio.run(with_bot())


def told(path: str, answer: httpx.Response, stream: bool) -> str:
    """The text of an answer in any of the APIs."""
    if not stream:
        body = answer.json()
        if path == CHAT:
            assert body["choices"][0]["finish_reason"] == "stop"
            return str(body["choices"][0]["message"]["content"])
        if path == "/v1/responses":
            return str(body["output"][-1]["content"][0]["text"])
        assert body["stop_reason"] == "end_turn"
        return str(body["content"][0]["text"])
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    if path == CHAT:
        return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    if path == "/v1/responses":
        return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")


def test_every_api_gives_it_whole_and_streamed(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        await bot.chat()  # a cached answer to the same question comes after it
        await bot.put(answer := new_answer("default", QUESTION, ANSWER, author="法务 Ann"))
        requests = bot.running.engines.requests
        messages = [{"role": "user", "content": QUESTION}]
        system = {"role": "system", "content": "Be kind."}
        for path, body in (
            (CHAT, {"messages": messages, "temperature": 0}),
            (CHAT, {"messages": [system, *messages], "temperature": 0.7, "max_tokens": 3}),
            (CHAT, {"messages": messages, "tools": [TOOL], "stop": ["\n"]}),
            ("/v1/responses", {"input": QUESTION}),
            ("/v1/responses", {"input": QUESTION, "instructions": "Be kind."}),
            ("/v1/messages", {"messages": messages, "max_tokens": 50, "system": "Be kind."}),
        ):
            for stream in (False, True):
                given = await bot.client.post(path, json={"model": MODEL, "stream": stream, **body})
                assert given.status_code == 200, given.text
                assert told(path, given, stream) == ANSWER
                assert given.headers["x-dray-cache"] == "curated"
                assert given.headers["x-dray-cache-key"] == answer.id
                assert unquote(given.headers["x-dray-curated-author"]) == "法务 Ann"
                assert 0 <= int(given.headers["age"]) < 60
        assert bot.running.engines.requests == requests
        counted = bot.running.router._metrics.answers
        assert sum(counter._value.get() for labels, counter in counted.items() if labels[2] == "curated") == 12

    run(servers, monkeypatch, tmp_path, work)


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


MORE_THAN_TEXT: tuple[dict[str, Any], ...] = (
    {"response_format": SCHEMA},
    {"response_format": {"type": "json_object"}},
    {"guided_choice": ["yes", "no"]},
    {"guided_regex": "[0-9]+"},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
    {"n": 2, "temperature": 1},
    {"logprobs": True},
    {"return_token_ids": True},
    {"stop": ["Password"]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]},
    {"messages": [{"role": "user", "content": "Hi"}]},
)


def test_a_request_that_wants_more_than_a_text_never_gets_it(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        await bot.put(new_answer("default", QUESTION, ANSWER))
        for fields in MORE_THAN_TEXT:
            messages = [*fields.get("messages", []), {"role": "user", "content": QUESTION}]
            body = {"model": MODEL, "temperature": 0, **fields, "messages": messages}
            given = await bot.client.post(CHAT, json=body)
            # What these engines say breaks a schema, which is an error only at the end.
            assert ANSWER not in given.text and given.headers.get("x-dray-cache") != "curated", fields
            assert await bot.how() == "curated"

    run(servers, monkeypatch, tmp_path, work)


def test_what_headers_say(servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        await bot.put(new_answer("default", QUESTION, ANSWER))
        for control, how in (
            ("no-store", "curated"),
            ("only-if-cached", "curated"),
            ("max-age=5", "curated"),
            ("no-cache", "miss"),
            ("no-cache, no-store", "bypass"),
            ("max-age=0", "miss"),
        ):
            assert await bot.how(headers={"Cache-Control": control}) == how, control
        assert await bot.how() == "curated", "the one that was generated is not in front of it"

    run(servers, monkeypatch, tmp_path, work)


def test_only_the_model_and_the_time_that_it_is_for(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = [{"name": MODEL, "aliases": ["bot"]}]

    async def work(bot: Bot) -> None:
        assert curated.served_models(bot.store) == {}, "nothing is written as long as nothing is curated"
        await bot.put(
            new_answer("default", QUESTION, ANSWER),
            new_answer("default", "past?", "x", valid_until=1.0),
            new_answer("default", "future?", "x", valid_until=2e9),
            new_answer("default", QUESTION, "for this one", model="bot"),
            new_answer("default", "other?", "x", model="another"),
        )
        assert told(CHAT, await bot.chat(), stream=False) == "for this one"
        assert [await bot.how(question) for question in ("past?", "future?", "other?")] == ["miss", "curated", "miss"]
        async with asyncio.timeout(20):
            while not curated.served_models(bot.store):
                await asyncio.sleep(0.02)
        assert curated.served_models(bot.store) == {"bot": 0, MODEL: 0}

    run(servers, monkeypatch, tmp_path, work, models=models)


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_questions_are_those_of_the_cache(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, normalize: bool
) -> None:
    async def work(bot: Bot) -> None:
        await bot.put(new_answer("default", "密码怎么重置?", "打开设置。"))
        assert await bot.how("密码怎么重置?") == "curated"
        assert await bot.how("密码怎么重置 ?") == ("curated" if normalize else "miss")
        assert await bot.how("密码怎么设置?") == "miss"

    run(servers, monkeypatch, tmp_path, work, cache={"normalize": normalize})


def test_the_same_question_in_other_words_gets_it_before_a_cached_answer(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_model(tmp_path / "tiny")
    models = [{"name": MODEL}, {"name": "vectors", "task": "embed", "source": str(tmp_path / "tiny")}]

    async def work(bot: Bot) -> None:
        assert await bot.how("how can I reset my password") == "miss"
        await bot.put(answer := new_answer("default", QUESTION, ANSWER))
        given = await bot.chat("how can I reset my password")
        assert told(CHAT, given, stream=False) == ANSWER
        assert (given.headers["x-dray-cache"], given.headers["x-dray-cache-match"]) == ("curated", "similar")
        assert await bot.how("How do I set my password?") == "miss"
        curated.remove_answer(bot.store, answer.id)
        await bot.followed()
        assert await bot.how("how can I reset my password") == "hit"

    run(servers, monkeypatch, tmp_path, work, models=models, cache={"similarity_model": "vectors"})


def test_a_router_follows_every_change(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        many = [new_answer("default", f"question {number}?", f"answer {number}") for number in range(250)]
        await bot.put(*many)
        for number in (0, 99, 100, 249):
            assert told(CHAT, await bot.chat(f"question {number}?"), stream=False) == f"answer {number}"
        curated.edit_answer(bot.store, many[7].id, {"answer": "another"})
        curated.remove_answer(bot.store, many[8].id)
        await bot.followed()
        assert told(CHAT, await bot.chat("question 7?"), stream=False) == "another"
        assert await bot.how("question 8?") == "miss"
        # Changes that are forgotten: a router that has not seen them reads everything.
        copy = bot.running.router._curated
        copy._version = 3
        bot.store.delete(CHANGES)
        bot.store.hdel(ANSWERS, many[9].id)
        bot.store.set(FLOOR, bot.store.get(VERSION))
        await bot.followed()
        assert await bot.how("question 9?") == "miss" and await bot.how("question 10?") == "curated"
        # An older state, as from a backup.
        bot.store.flushall()
        bot.store.set(VERSION, 1)
        await bot.followed()
        assert await bot.how("question 10?") == "miss" and copy._namespaces == {}

    run(servers, monkeypatch, tmp_path, work)


def test_without_the_teams_redis_the_router_gives_what_it_has(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        with redis_server(16) as teams:
            async with bot((servers[0], teams), monkeypatch, tmp_path) as one:
                await one.put(new_answer("default", QUESTION, ANSWER))
                teams.stop()
                assert await one.how() == "curated"
                assert await one.how("another?") == "miss"
                with contextlib.suppress(Exception):
                    one.store.close()

    asyncio.run(work())


def test_it_needs_no_answer_cache(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        await bot.put(new_answer("default", QUESTION, ANSWER))
        assert await bot.how() == "curated"
        assert await bot.how("another?") == "bypass"

    run(servers, monkeypatch, tmp_path, work, cache={"enabled": False})


def test_an_admin_key_manages_answers(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        add_team(bot.store, Team("support", 0.0))
        admin, team = create_key(bot.store, ADMIN), create_key(bot.store, "support")
        async with asyncio.timeout(20):
            while not bot.running.router._authenticator.needs_key:
                await asyncio.sleep(0.02)
        bot.client.headers["Authorization"] = f"Bearer {admin.secret}"
        ask, namespace = bot.client, "team.support"
        given = [
            {"question": QUESTION, "answer": ANSWER, "namespace": namespace, "author": "ann"},
            {"question": "密码?", "answer": "好。", "namespace": namespace, "valid_until": 2e9},
        ]
        added = await ask.post("/admin/answers", json={"answers": given})
        assert added.status_code == 201, added.text
        first, second = added.json()["data"]
        assert (first["author"], second["author"]) == ("ann", f"key:{admin.key.id}")
        page = (await ask.get("/admin/answers", params={"limit": 1})).json()
        assert [row["id"] for row in page["data"]] == [first["id"]] and page["has_more"]
        rest = (await ask.get("/admin/answers", params={"after": first["id"]})).json()
        assert [row["id"] for row in rest["data"]] == [second["id"]] and not rest["has_more"]
        found = (await ask.get("/admin/answers", params={"search": "密码"})).json()["data"]
        assert [row["question"] for row in found] == ["密码?"]
        assert (await ask.get("/admin/answers", params={"namespace": "default"})).json()["data"] == []
        path = f"/admin/answers/{first['id']}"
        edited = (await ask.patch(path, json={"answer": "Ask Ann."})).json()
        assert (edited["answer"], edited["question"]) == ("Ask Ann.", QUESTION)
        assert (await ask.get(path)).json() == edited
        await bot.followed()
        mine = await bot.chat(key=team.secret)
        assert told(CHAT, mine, stream=False) == "Ask Ann."
        exported = (await ask.get("/admin/answers/export")).text.splitlines()
        assert [json.loads(line)["question"] for line in exported] == [QUESTION, "密码?"]
        # A cached answer is pinned, and given after the cache has lost it.
        cached = await bot.chat("3+4?", key=team.secret)
        key = cached.headers["x-dray-cache-key"]
        pinned = await ask.post("/admin/answers/pin", json={"key": key})
        assert pinned.status_code == 201, pinned.text
        await bot.followed()
        with redis.Redis.from_url(servers[0].url) as cache:
            cache.flushall()
        again = await bot.chat("3+4?", key=team.secret)
        assert again.headers["x-dray-cache"] == "curated"
        assert told(CHAT, again, stream=False) == told(CHAT, cached, stream=False).strip() == GENERATED
        assert (await ask.delete(path)).json() == {"deleted": first["id"]}
        for method, where, body, status, code in (
            ("GET", path, None, 404, "answers_error"),
            ("DELETE", path, None, 404, "answers_error"),
            ("PATCH", path, {"answer": "x"}, 404, "answers_error"),
            ("POST", "/admin/answers/pin", {"key": key}, 404, "answers_error"),
            ("POST", "/admin/answers", {"answers": []}, 400, "invalid_value"),
            ("POST", "/admin/answers", {"answers": [{"question": "a"}]}, 400, "missing_required_parameter"),
            ("POST", "/admin/answers", {"answers": [{"question": "a", "answer": " "}]}, 400, "answers_error"),
            ("GET", "/admin/answers?limit=0", None, 400, "invalid_value"),
            ("GET", "/admin/answers?after=nothing", None, 400, "answers_error"),
        ):
            refused = await ask.request(method, where, json=body)
            assert refused.status_code == status, (where, refused.text)
            assert refused.json()["error"]["code"] == code
        log = [json.loads(line) for line in (tmp_path / AUDIT_FOLDER / "audit.jsonl").read_text().splitlines()]
        assert [(entry["actor"], entry["action"]) for entry in log] == [
            (f"key:{admin.key.id}", f"answer.{what}") for what in ("import", "edit", "pin", "remove")
        ]
        assert log[0]["details"]["ids"] == [first["id"], second["id"]] and "ann" in log[0]["details"]["authors"]
        assert AuditLog(tmp_path / AUDIT_FOLDER).verify().faults == []
        bot.client.headers["Authorization"] = f"Bearer {team.secret}"
        for where in ("/admin/answers", "/admin/answers/export", f"/admin/answers/{second['id']}"):
            assert (await ask.get(where)).status_code == 403

    run(servers, monkeypatch, tmp_path, work)


def test_what_cannot_be_pinned(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        admin = create_key(bot.store, ADMIN)
        add_team(bot.store, Team("support", 0.0))
        team = create_key(bot.store, "support").secret
        async with asyncio.timeout(20):
            while not bot.running.router._authenticator.needs_key:
                await asyncio.sleep(0.02)
        earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        later = await bot.chat(key=team, messages=[*earlier, {"role": "user", "content": QUESTION}])
        refused = await bot.client.post(
            "/admin/answers/pin",
            json={"key": later.headers["x-dray-cache-key"]},
            headers={"Authorization": f"Bearer {admin.secret}"},
        )
        assert refused.status_code == 400 and "first question of a conversation" in refused.json()["error"]["message"]

    run(servers, monkeypatch, tmp_path, work)


def test_changes_of_teams_and_keys_over_http_are_in_the_audit_log(
    servers: tuple[OwnRedis, OwnRedis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        admin = create_key(bot.store, ADMIN)
        async with asyncio.timeout(20):
            while not bot.running.router._authenticator.needs_key:
                await asyncio.sleep(0.02)
        bot.client.headers["Authorization"] = f"Bearer {admin.secret}"
        ask = bot.client
        team = {"name": "support", "models": [MODEL], "quota": {"tokens_per_minute": 100}}
        assert (await ask.post("/admin/teams", json=team)).status_code == 201
        assert (await ask.patch("/admin/teams/support", json={"weight": 2})).status_code == 200
        key = (await ask.post("/admin/keys", json={"team": "support"})).json()
        new = (await ask.post(f"/admin/keys/{key['id']}/rotate")).json()
        assert (await ask.delete(f"/admin/keys/{new['id']}")).status_code == 200
        assert (await ask.delete("/admin/teams/nobody")).status_code == 404
        login = await ask.post("/admin/logins", json={})
        assert (login.status_code, login.json()["actor"]) == (201, f"key:{admin.key.id}")
        folder = tmp_path / AUDIT_FOLDER
        text = (folder / "audit.jsonl").read_text()
        entries = [json.loads(line) for line in text.splitlines()]
        assert [(entry["action"], entry["target"]) for entry in entries] == [
            ("team.create", "support"),
            ("team.change", "support"),
            ("key.create", key["id"]),
            ("key.rotate", key["id"]),
            ("key.revoke", new["id"]),
            ("console.login", ""),
        ]
        assert {entry["actor"] for entry in entries} == {f"key:{admin.key.id}"}
        assert entries[0]["details"] == {
            "models": [MODEL],
            "weight": 1.0,
            "shares_answers": False,
            "cost_per_month": 0.0,
            "quota.requests_per_minute": 0,
            "quota.tokens_per_minute": 100,
            "quota.requests_at_a_time": 0,
            "quota.tokens_per_month": 0,
        }
        assert entries[1]["details"] == {"weight": 2.0}
        assert key["key"] not in text and AuditLog(folder).verify().faults == []
        # A log that cannot be written undoes nothing.
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.write_text("not a folder")
        assert (await ask.delete("/admin/teams/support")).status_code == 200

    run(servers, monkeypatch, tmp_path, work)
