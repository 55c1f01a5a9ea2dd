"""Votes on answers over HTTP, with a real router and a real Redis: found, withheld, accepted, exported."""

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cluster.records import feedback
from cluster.records.curated import new_answer
from cluster.records.forget import forget, user_tag
from cluster.records.team_records import ADMIN, Quota, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.api.test_curated import QUESTION, Bot, bot, run, servers, told
from tests.service.test_embeddings import make_model

__all__ = ["servers"]

CHAT = "/v1/chat/completions"
Servers = tuple[OwnRedis, OwnRedis]
APIS: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}),
    ("/v1/completions", {"prompt": QUESTION, "temperature": 0}),
    ("/v1/responses", {"input": QUESTION, "temperature": 0}),
    ("/v1/messages", {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 50, "temperature": 0}),
)


def id_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    if not answer.text.startswith(("data:", "event:")):
        return str(answer.json()["id"])
    first = json.loads(next(line[6:] for line in answer.text.splitlines() if line.startswith("data: {")))
    return str((first.get("response") or first.get("message") or first)["id"])


async def vote(bot: Bot, rating: str = "down", key: str = "", **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await bot.client.post("/v1/feedback", json={"rating": rating, **fields}, headers=headers)


async def voted(bot: Bot, rating: str = "down", key: str = "", **fields: Any) -> dict[str, Any]:
    """The response to a vote on an answer, which is known a moment after it was complete."""
    async with asyncio.timeout(20):
        while (given := await vote(bot, rating, key, **fields)).status_code == 404:
            await asyncio.sleep(0.02)
    assert given.status_code == 201, given.text
    response: dict[str, Any] = given.json()
    return response


def test_an_answer_is_found_by_its_id_however_it_came(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        for place, ((path, body), stream) in enumerate(itertools.product(APIS, (False, True))):
            question, ids, numbers = f"question {place}?", set(), set()
            asked = json.loads(json.dumps(body).replace(QUESTION, question)) | {"model": MODEL, "stream": stream}
            for headers, how in (({}, "miss"), ({}, "hit"), ({"Cache-Control": "no-cache"}, "miss"), ({}, "hit")):
                answer = await bot.client.post(path, json=asked, headers=headers)
                assert answer.headers["x-dray-cache"] == how
                ids.add(id_of(answer))
                numbers.add((await voted(bot, id=id_of(answer)))["id"])
            # A prompt of /v1/completions is no question, so what the cache has of it does not say what was asked.
            assert len(ids) == 4 and len(numbers) == (2 if path == "/v1/completions" else 1), (path, stream)
            about = [one for one in feedback.list_feedback(bot.store) if one.id in numbers]
            assert sum(one.down for one in about) >= 4 and question in {one.question for one in about}

    run(servers, monkeypatch, tmp_path, work)


def test_votes_corrections_and_reasons_of_one_answer_come_together(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        answer = await bot.chat()
        key = answer.headers["x-dray-cache-key"]
        await bot.running.router._feedback.flush()  # of what nobody has voted on, nothing is counted
        for fields in (
            {"rating": "down", "reason": "old"},
            {"rating": "up"},
            {"rating": "down", "correction": "Ask Ann."},
        ):
            await voted(bot, cache_key=key, **fields)
        for _ in range(3):
            assert await bot.how() == "hit", "by default a vote changes nothing"
        await bot.running.router._feedback.flush()
        [one] = feedback.list_feedback(bot.store)
        assert (one.up, one.down, one.reasons, one.correction) == (1, 2, ("down: old",), "Ask Ann.")
        assert (one.question, one.asked) == (QUESTION, 3)

    run(servers, monkeypatch, tmp_path, work)


def test_an_answer_that_was_voted_down_leaves_the_cache_at_once_and_stays_out(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        answer = await bot.chat()
        assert await bot.how() == "hit"
        liked = await vote(bot, "up", cache_key=answer.headers["x-dray-cache-key"])
        assert liked.json()["withheld"] is False and await bot.how() == "hit"
        assert (await voted(bot, id=id_of(answer)))["withheld"] is True
        assert [await bot.how() for _ in range(3)] == ["miss"] * 3
        assert await bot.how("another?") == "miss" and await bot.how("another?") == "hit"
        await bot.put(new_answer("default", QUESTION, "Ask Ann."))
        curated = await bot.chat()
        assert curated.headers["x-dray-cache"] == "curated"
        assert (await voted(bot, id=id_of(curated)))["withheld"] is False, "people have approved it"
        assert await bot.how() == "curated"

    run(servers, monkeypatch, tmp_path, work, cache={"withhold_downvoted": True})


def test_an_answer_that_is_generated_during_the_vote_is_not_stored(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        key = (await bot.chat()).headers["x-dray-cache-key"]
        bot.running.engines.blocked = asyncio.Event()
        asked = bot.running.engines.requests
        again = asyncio.create_task(bot.chat(headers={"Cache-Control": "no-cache"}))
        async with asyncio.timeout(20):
            while bot.running.engines.requests == asked:
                await asyncio.sleep(0.02)
        assert (await voted(bot, cache_key=key))["withheld"] is True
        bot.running.engines.blocked.set()
        await again
        assert await bot.how() == "miss"

    run(servers, monkeypatch, tmp_path, work, cache={"withhold_downvoted": True})


def test_what_is_refused(servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        unstored = await bot.chat(headers={"Cache-Control": "no-store, no-cache"})
        key = "0" * 40
        for fields, status, param in (
            ({"id": "chatcmpl-" + "0" * 32}, 404, "id"),
            ({"id": "chatcmpl-" + "0" * 72}, 404, "id"),
            ({"id": "*"}, 404, "id"),
            ({"id": id_of(unstored)}, 404, "id"),
            ({"cache_key": key}, 404, "cache_key"),
            ({"cache_key": "*"}, 404, "cache_key"),
            ({"id": "a", "cache_key": key}, 400, "id"),
            ({}, 400, "id"),
            ({"id": "a", "rating": "bad"}, 400, "rating"),
            ({"id": "a", "reason": "x" * 501}, 400, "reason"),
            ({"id": "a", "correction": "x" * 32_001}, 400, "correction"),
            ({"id": "a", "who": "x"}, 400, "who"),
        ):
            refused = await vote(bot, **fields)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), fields
        assert feedback.list_feedback(bot.store) == []

    run(servers, monkeypatch, tmp_path, work)


def test_the_number_of_a_teams_records_is_limited(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(feedback, "MAX_PER_TEAM", 3)

    async def work(bot: Bot) -> None:
        for number in range(5):
            await voted(bot, id=id_of(await bot.chat(f"question {number}?")))
        assert {one.question for one in feedback.list_feedback(bot.store)} == {f"question {n}?" for n in (2, 3, 4)}
        assert bot.store.hlen(feedback.COUNTS) == bot.store.hlen(feedback.KEYS) == 3
        monkeypatch.setattr(feedback, "MAX_TEAM_BYTES", 6000)
        for number in range(5, 8):
            await voted(bot, id=id_of(await bot.chat(f"question {number}?")), correction="x" * 2500)
        assert {one.question for one in feedback.list_feedback(bot.store)} == {"question 6?", "question 7?"}

    run(servers, monkeypatch, tmp_path, work)


def test_another_vote_on_a_response_replaces_the_first(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A person who gives a reason, or thinks again, is still one person; whoever got the same answer is another."""

    async def work(bot: Bot) -> None:
        def counted() -> tuple[int, int, tuple[str, ...]]:
            [one] = feedback.list_feedback(bot.store)
            return one.up, one.down, one.reasons

        first, again = id_of(await bot.chat()), id_of(await bot.chat())
        await voted(bot, id=first)
        await voted(bot, id=first, reason="old")
        assert counted() == (0, 1, ("down: old",))
        await voted(bot, id=again)
        assert counted()[:2] == (0, 2)
        await voted(bot, "up", id=first)
        assert counted() == (1, 1, ("down: old",))
        bot.store.hdel(feedback.COUNTS, *bot.store.hkeys(feedback.COUNTS))
        await voted(bot, "down", id=first)
        assert counted()[:2] == (0, 1), "no count is below zero"

    run(servers, monkeypatch, tmp_path, work)


def test_corrections_are_accepted_and_exported_by_an_admin(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        add_team(bot.store, Team("support", 0.0, quota=Quota(requests_per_minute=50)))
        admin, team = create_key(bot.store, ADMIN).secret, create_key(bot.store, "support").secret
        async with asyncio.timeout(20):
            while not bot.running.router._authenticator.needs_key:
                await asyncio.sleep(0.02)
        first, second = await bot.chat(key=team), await bot.chat("VPN?", key=team)
        right = await voted(bot, key=team, id=id_of(first), correction="Ask Ann.")
        plain = await voted(bot, "up", team, id=id_of(second))
        left = int((await vote(bot, "up", team, id=id_of(second))).headers["x-ratelimit-remaining-requests"])
        assert left < 46, "a vote is a request"
        assert (await vote(bot, id=id_of(first))).status_code == 401
        assert (await vote(bot, key=admin, id=id_of(first))).status_code == 403
        for path in ("/admin/feedback", "/admin/feedback/export"):
            refused = await bot.client.get(path, headers={"Authorization": f"Bearer {team}"})
            assert refused.status_code == 403
        bot.client.headers["Authorization"] = f"Bearer {admin}"
        listed = (await bot.client.get("/admin/feedback")).json()
        assert [row["id"] for row in listed["data"]] == [right["id"], plain["id"]] and not listed["has_more"]
        assert len((await bot.client.get("/admin/feedback?limit=1&team=support")).json()["data"]) == 1
        assert (await bot.client.get("/admin/feedback?team=other")).json()["data"] == []
        path = "/admin/feedback/{}/accept"
        accepted = await bot.client.post(path.format(right["id"]), json={"author": "ann"})
        assert accepted.status_code == 201, accepted.text
        assert (accepted.json()["answer"], accepted.json()["namespace"]) == ("Ask Ann.", "team.support")
        for number, status in ((plain["id"], 400), ("0" * 40, 404)):
            refused = await bot.client.post(path.format(number), json={})
            assert refused.status_code == status and refused.json()["error"]["code"] == "feedback_error"
        await bot.followed()
        assert told(CHAT, await bot.chat(key=team), stream=False) == "Ask Ann."
        rows = [json.loads(line) for line in (await bot.client.get("/admin/feedback/export")).text.splitlines()]
        assert [row["messages"][0]["content"] for row in rows] == ["VPN?", QUESTION]
        assert rows[1]["messages"][1] == {"role": "assistant", "content": "Ask Ann."}
        assert rows[1]["rejected"] and "rejected" not in rows[0]

    run(servers, monkeypatch, tmp_path, work)


def test_a_conversation_is_kept_but_makes_no_curated_answer(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        answer = await bot.chat(messages=[*earlier, {"role": "user", "content": "and then?"}], temperature=1)
        assert answer.headers["x-dray-cache"] == "miss"
        number = (await voted(bot, id=id_of(answer), correction="Then Ann."))["id"]
        [one] = feedback.list_feedback(bot.store)
        assert one.question == "and then?"
        with pytest.raises(Exception, match="belongs to a conversation"):
            feedback.accept(bot.store, number, "ann")

    run(servers, monkeypatch, tmp_path, work)


NAMED: dict[str, dict[str, Any]] = {
    CHAT: {"safety_identifier": "ann", "user": "x"},
    "/v1/completions": {"user": "ann"},
    "/v1/responses": {"user": "ann"},
    "/v1/messages": {"metadata": {"user_id": "ann"}},
}


def test_a_user_is_forgotten_and_no_other(servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        for name in ("support", "sales"):
            add_team(bot.store, Team(name, 0.0))
        admin, team, other = (create_key(bot.store, name).secret for name in (ADMIN, "support", "sales"))
        async with asyncio.timeout(20):
            while not bot.running.router._authenticator.needs_key:
                await asyncio.sleep(0.02)

        async def ask(path: str, body: dict[str, Any], key: str, **fields: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            given = await bot.client.post(path, json={"model": MODEL, **body, **fields}, headers=headers)
            assert given.status_code == 200, given.text
            return given

        ids, asked = [], []
        for place, (path, body) in enumerate(APIS):  # of several APIs, equal requests have one answer
            asked.append((path, json.loads(json.dumps(body).replace(QUESTION, f"question {place}?"))))
        for path, body in asked:
            ids.append(id_of(await ask(path, body, team, **NAMED[path])))
            await voted(bot, key=team, id=ids[-1], correction=f"from {path}")
            assert (await ask(path, body, team)).headers["x-dray-cache"] == "hit"
            await ask(path, body, other, **NAMED[path])
        plain = {"messages": [{"role": "user", "content": "VPN?"}], "temperature": 0}
        by_another = await ask(CHAT, plain, team, user="ben")
        await voted(bot, key=team, id=id_of(by_another), user="ann", correction="by ann")
        unnamed = {"messages": [{"role": "user", "content": "Wifi?"}], "temperature": 0}
        await voted(bot, key=team, id=id_of(await ask(CHAT, unnamed, team)))
        assert len(feedback.list_feedback(bot.store)) > 2
        assert b"ann" not in b"".join(bot.store.hgetall(feedback.RECORDS).values()).replace(b"by ann", b"")
        headers = {"Authorization": f"Bearer {admin}"}
        body = {"user": "ann", "team": "support"}
        refused = await bot.client.post("/admin/forget", json=body, headers={"Authorization": f"Bearer {team}"})
        assert refused.status_code == 403
        forgotten = await bot.client.post("/admin/forget", json=body, headers=headers)
        assert forgotten.status_code == 200, forgotten.text
        assert forgotten.json()["answers"] == 4 and forgotten.json()["responses"] == 1
        assert [one.question for one in feedback.list_feedback(bot.store)] == ["Wifi?"]
        assert bot.store.hlen(feedback.COUNTS) == 1
        for path, body in asked:
            assert (await ask(path, body, team)).headers["x-dray-cache"] == "miss"
            assert (await ask(path, body, other)).headers["x-dray-cache"] == "hit", (
                "another team's ann is somebody else"
            )
        for kept in (plain, unnamed):
            assert (await ask(CHAT, kept, team)).headers["x-dray-cache"] == "hit"
        for number in ids:
            assert (await vote(bot, key=team, id=number)).status_code == 404
        again = await bot.client.post("/admin/forget", json={"user": "nobody"}, headers=headers)
        assert again.json() == {"answers": 0, "responses": 0, "feedback": 0, "batch_lines": 0}

    run(servers, monkeypatch, tmp_path, work)


def test_the_question_of_a_forgotten_user_leaves_the_near_tier_too(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_model(tmp_path / "tiny")
    models = [{"name": MODEL}, {"name": "vectors", "task": "embed", "source": str(tmp_path / "tiny")}]

    async def work(bot: Bot) -> None:
        for question, user in ((QUESTION, "ann"), ("VPN?", "ben")):
            await bot.chat(question, user=user)
        with redis.Redis.from_url(servers[0].url) as answers:
            [stream, *_] = answers.keys("dray:near:*")
            assert answers.xlen(stream) == 2
            done = forget(bot.store, answers, user_tag("default", "ann"))
            assert done.answers == 1
            assert [row[b"text"] for _, row in answers.xrange(stream)] == [b"VPN?"]
        assert await bot.how() == "miss"

    run(servers, monkeypatch, tmp_path, work, models=models, cache={"similarity_model": "vectors"})


def test_a_vote_while_a_redis_is_away_is_kept_or_refused_with_503(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A 404 would say that there is no such answer, and nobody would send the vote again."""

    async def work() -> None:
        with redis_server(16) as answers, redis_server(16) as teams:
            async with bot((answers, teams), monkeypatch, tmp_path) as one:
                generated, cached = id_of(await one.chat()), await one.chat()
                await one.put(new_answer("default", "curated?", "Ask Ann."))
                curated = id_of(await one.chat("curated?"))
                given = [{"id": generated}, {"id": id_of(cached)}, {"cache_key": cached.headers["x-dray-cache-key"]}]
                await voted(one, id=generated)
                answers.stop()
                for fields in given:
                    refused = await vote(one, **fields)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "feedback_unavailable")
                    assert refused.headers["retry-after"] == "1"
                await voted(one, id=curated)
                assert sum(vote.down for vote in feedback.list_feedback(one.store)) == 2
                teams.stop()
                assert (await vote(one, id=curated)).status_code == 503
                with contextlib.suppress(Exception):
                    one.store.close()

    asyncio.run(work())
