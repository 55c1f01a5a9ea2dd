"""Routed models and fallbacks through a real router with a real Redis: who answers, and how a client sees it."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from cluster.records.curated import VERSION, new_answer, put_answers
from cluster.records.team_records import Team
from cluster.records.teams import add_team, create_key
from cluster.redis_client import connect
from cluster.redis_server import OwnRedis
from deployments.common.messages import ReplicaStats
from deployments.routing.registry import registry
from tests.conftest import redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router
from tests.deployments.waiting import until

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SHORT, LONG = "1 + 1?", "Explain in detail: " + "why? " * 20
TARGET_WAIT_S = 0.001
ROUTE: list[dict[str, Any]] = [{"to": "small", "max_chars": 40, "max_turns": 1, "tools": False}, {"to": "large"}]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


@dataclass
class Bot:
    """A router with a small and a large model, and their engines. Each has a name of its own in every test, because the
    registry of replicas outlives a router."""

    client: httpx.AsyncClient
    running: RunningRouter
    small: str
    large: str
    engines: dict[str, Engines]
    store: Any

    async def ask(self, text: str, path: str = CHAT, model: str = "auto", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {})
        body = {"model": model, "temperature": 0} | _body(path, text) | fields
        return await self.client.post(path, json=body, headers=headers)

    async def who(self, text: str, path: str = CHAT, model: str = "auto", **fields: Any) -> str:
        """The model that answers: in the header where another one was asked, and in the answer."""
        answer = await self.ask(text, path, model, **fields)
        assert answer.status_code == 200, answer.text
        named = _named(answer)
        assert answer.headers.get("x-dray-model") == (named if named != model else None)
        return {self.small: "small", self.large: "large"}[named]

    def set_replicas(self, name: str, count: int) -> None:
        registry().replicas_of(name).update({f"{name}-{number}": ReplicaStats() for number in range(count)})

    def routed(self) -> dict[tuple[str, str, str], float]:
        """The metric, with the models' own names."""
        plain = {self.small: "small", self.large: "large"}
        counters = self.running.router._metrics.routed.items()
        return {
            (plain.get(asked, asked), plain[target], reason): counter._value.get()
            for (asked, target, reason), counter in counters
        }

    @asynccontextmanager
    async def busy(self, name: str) -> AsyncIterator[None]:
        """Keeps the model's engine working, with a request waiting that is more than it bears.

        Each request is sent when the one before is where it belongs: of several at once, those that are late would find
        a busy model and go to its fallback.
        """
        queue = self.running.router._inference._models._generators[name].queue
        engines = self.engines[name]
        await self.ask(secrets.token_hex(4), model=name)  # so that the pace is known
        engines.blocked = asyncio.Event()
        before = engines.requests
        tasks = [asyncio.create_task(self.ask(secrets.token_hex(4), model=name))]
        await until(lambda: engines.requests > before)
        tasks.append(asyncio.create_task(self.ask(secrets.token_hex(4), model=name)))
        await until(lambda: queue.queued == 1)
        assert queue.wait_s() > TARGET_WAIT_S
        try:
            yield
        finally:
            engines.blocked.set()
            await asyncio.gather(*tasks)
            engines.blocked = None


def _body(path: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": messages},
        COMPLETIONS: {"prompt": text, "max_tokens": 5},
        RESPONSES: {"input": text},
        MESSAGES: {"messages": messages, "max_tokens": 50},
    }
    return bodies[path]


def _named(answer: httpx.Response) -> str:
    """The model that an answer says, whole or streamed."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["model"])
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    inner = [event.get("response") or event.get("message") or event for event in events]
    [name] = {one["model"] for one in inner if isinstance(one, dict) and "model" in one}
    return str(name)


def run(
    server: OwnRedis,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    work: Callable[[Bot], Awaitable[None]],
    route: list[dict[str, Any]] | None = None,
    small: dict[str, Any] | None = None,
    large: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Runs a test with a router. route, small, large: settings of the models, in which these are called so."""
    names = {name: f"{name}-{secrets.token_hex(4)}" for name in ("small", "large")}

    def renamed(fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {field: names[fields[field]] for field in ("to", "fallback") if field in fields}

    bears: dict[str, Any] = {"max_num_seqs": 1, "target_wait_s": TARGET_WAIT_S}
    models = [
        {"name": names["small"], **bears, **renamed(small or {})},
        {"name": names["large"], **bears, **renamed(large or {})},
        {"name": "auto", "aliases": ["bot"], "route": [renamed(rule) for rule in route or ROUTE]},
    ]

    async def with_bot() -> None:
        engines = {name: Engines() for name in names.values()}
        with connect(server.url) as store:
            store.flushall()
            async with (
                running_router(
                    monkeypatch, server.url, others=engines, data_dir=folder, models=models, **settings
                ) as one,
                httpx.AsyncClient(base_url=one.url, timeout=60) as client,
            ):
                await work(Bot(client, one, names["small"], names["large"], engines, store))

    try:
        asyncio.run(with_bot())
    finally:
        for name in names.values():
            registry()._applications.pop(name, None)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
def test_every_api_says_who_answers_whole_streamed_and_from_the_cache(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    async def work(bot: Bot) -> None:
        for stream in (False, True):
            for text, expected in ((f"{stream}?", "small"), (f"{stream} {LONG}", "large")):
                for result in ("miss", "hit"):
                    for name in ("auto", "bot"):
                        answer = await bot.ask(text, path, name, stream=stream)
                        assert answer.status_code == 200, answer.text
                        assert answer.headers["x-dray-cache"] == result
                        named = {"small": bot.small, "large": bot.large}[expected]
                        assert (_named(answer), answer.headers["x-dray-model"]) == (named, named)
                        result = "hit"
                # The same question to the model itself has the same answer, without the header.
                itself = await bot.ask(text, path, named, stream=stream)
                assert itself.headers["x-dray-cache"] == "hit" and "x-dray-model" not in itself.headers
        assert {name: engines.requests for name, engines in bot.engines.items()} == {bot.small: 2, bot.large: 2}
        assert bot.routed() == {("auto", "small", "rule"): 8, ("auto", "large", "rule"): 8}
        counted = bot.running.router._metrics.requests
        assert {model for _, _, model, _ in counted} == {bot.small, bot.large}

    run(server, monkeypatch, tmp_path, work)


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def test_rules_see_what_a_request_is(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    system = [{"role": "system", "content": LONG}, {"role": "user", "content": SHORT}]
    json_format: dict[str, Any] = {"response_format": {"type": "json_object"}}
    thinking_message = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    asked: list[tuple[list[dict[str, Any]], str, dict[str, Any], str]] = [
        (ROUTE, CHAT, {}, "small"),
        (ROUTE, CHAT, {"tools": [TOOL]}, "large"),
        (ROUTE, CHAT, {"tools": [TOOL], "tool_choice": "none"}, "small"),
        (ROUTE, CHAT, {"messages": turns}, "large"),
        (ROUTE, CHAT, {"messages": system}, "small"),
        ([{"to": "large", "structured": True}, {"to": "small"}], CHAT, {}, "small"),
        ([{"to": "large", "structured": True}, {"to": "small"}], CHAT, {"guided_choice": ["a", "b"]}, "large"),
        ([{"to": "large", "keywords": ["one +", "plus"]}, {"to": "small"}], CHAT, {}, "small"),
        ([{"to": "large", "keywords": ["1 + 1"]}, {"to": "small"}], CHAT, {}, "large"),
        ([{"to": "large", "language": "chinese"}, {"to": "small"}], CHAT, {}, "small"),
        ([{"to": "large", "thinking": True}, {"to": "small"}], CHAT, {}, "small"),
        ([{"to": "large", "thinking": True}, {"to": "small"}], CHAT, {"reasoning_effort": "low"}, "large"),
        ([{"to": "large", "thinking": True}, {"to": "small"}], CHAT, {"reasoning_effort": "none"}, "small"),
        ([{"to": "large", "thinking": True}, {"to": "small"}], CHAT, {"enable_thinking": True}, "large"),
        ([{"to": "large", "thinking": True}, {"to": "small"}], MESSAGES, thinking_message, "large"),
        ([{"to": "large", "thinking": True}, {"to": "small"}], RESPONSES, {"reasoning": {"effort": "high"}}, "large"),
    ]
    routes = {json.dumps(route): route for route, *_ in asked}
    for name, route in routes.items():

        async def work(bot: Bot, name: str = name) -> None:
            for own, path, fields, expected in asked:
                if json.dumps(own) == name:
                    assert await bot.who(SHORT, path, **fields) == expected, (own, fields)
            if "structured" in name:
                # What these engines say is no JSON, so the answer is an error.
                before = {model: engines.requests for model, engines in bot.engines.items()}
                await bot.ask(SHORT, **json_format)
                assert bot.engines[bot.small].requests == before[bot.small]
                assert bot.engines[bot.large].requests > before[bot.large]

        run(server, monkeypatch, tmp_path, work, route=route)


def test_a_stored_or_curated_answer_does_not_wait_for_a_busy_model(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        assert await bot.who(SHORT) == "small"
        put_answers(bot.store, [new_answer("default", "curated?", "for auto", model="auto")])
        put_answers(bot.store, [new_answer("default", "own?", "for small", model=bot.small)])
        async with asyncio.timeout(30):
            while bot.running.router._curated._version != int(bot.store.get(VERSION)):
                await asyncio.sleep(0.02)
        async with bot.busy(bot.small):
            before = bot.engines[bot.large].requests
            assert (await bot.ask(SHORT)).headers["x-dray-cache"] == "hit"
            for question, text in (("curated?", "for auto"), ("own?", "for small")):
                answer = await bot.ask(question)
                assert answer.headers["x-dray-cache"] == "curated"
                assert answer.json()["choices"][0]["message"]["content"] == text
                assert answer.headers["x-dray-model"] == bot.small
            assert bot.engines[bot.large].requests == before
        assert (await bot.ask("curated?", model=bot.small)).headers["x-dray-cache"] == "miss"

    run(server, monkeypatch, tmp_path, work)


def test_a_busy_model_is_passed_over_and_not_while_all_are(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        async with bot.busy(bot.small):
            assert await bot.who("2 + 2?") == "large"
            assert (await bot.ask("2 + 2?")).headers["x-dray-cache"] == "hit"
            assert await bot.who("3 + 3?", stream=True) == "large"
            waiting = asyncio.create_task(bot.who("4 + 4?", model=bot.small))
            async with bot.busy(bot.large):
                both = asyncio.create_task(bot.who("5 + 5?"))
                queue = bot.running.router._inference._models._generators[bot.small].queue
                await until(lambda: queue.queued == 3)
        assert (await waiting, await both) == ("small", "small")
        assert bot.routed() == {("auto", "large", "busy"): 3, ("auto", "small", "rule"): 1}
        # It is only the load: the same question goes to the small one afterwards.
        assert await bot.who("2 + 2?") == "small"

    run(server, monkeypatch, tmp_path, work)


def test_a_question_that_is_being_answered_is_joined_where_it_is(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        engines = bot.engines[bot.small]
        engines.blocked = asyncio.Event()
        first = asyncio.create_task(bot.ask(SHORT))
        async with asyncio.timeout(30):
            while not engines.requests:
                await asyncio.sleep(0.01)
        bot.set_replicas(bot.small, 0)
        second = asyncio.create_task(bot.ask(SHORT))
        jobs = bot.running.router._inference._answers._jobs
        async with asyncio.timeout(30):
            while [len(job._requesters._all) for job in jobs.values()] != [2]:
                await asyncio.sleep(0.01)
        engines.blocked.set()
        for answer, result in zip(await asyncio.gather(first, second), ("miss", "join"), strict=True):
            assert (answer.headers["x-dray-cache"], answer.headers["x-dray-model"]) == (result, bot.small)

    run(server, monkeypatch, tmp_path, work)


def test_a_fallback_answers_while_a_model_is_down_or_busy(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        # Before Serve has said which replicas there are, none is known to be gone.
        assert await bot.who(SHORT, model=bot.large) == "large"
        bot.set_replicas(bot.large, 1)
        assert await bot.who("1?", model=bot.large) == "large"
        bot.set_replicas(bot.large, 0)
        for stream in (False, True):
            for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
                assert await bot.who(f"{stream} {path}?", path, bot.large, stream=stream) == "small"
        assert await bot.who(LONG) == "small", "a routed model's targets have their fallbacks too"
        # Whatever is stored under its name is still given by it.
        assert (await bot.ask(SHORT, model=bot.large)).headers["x-dray-cache"] == "hit"
        bot.set_replicas(bot.large, 1)
        assert await bot.who(LONG) == "large"
        async with bot.busy(bot.large):
            assert await bot.who("busy?", model=bot.large) == "small"
        assert bot.routed() == {
            ("large", "small", "down"): 8,
            ("large", "small", "busy"): 1,
            ("auto", "small", "down"): 1,
            ("auto", "large", "rule"): 1,
        }

    run(server, monkeypatch, tmp_path, work, large={"fallback": "small"})


def test_a_model_that_sleeps_is_not_down(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        bot.set_replicas(bot.large, 0)
        assert await bot.who(SHORT, model=bot.large) == "large"

    run(server, monkeypatch, tmp_path, work, large={"fallback": "small", "sleep_after_s": 60})


def test_a_prompt_goes_to_a_model_whose_context_holds_it(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        long = "word " * 100
        for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
            assert await bot.who(SHORT, path) == "small"
            assert await bot.who(long, path) == "large"
        assert bot.routed()["auto", "large", "long"] == 4
        listed = (await bot.client.get("/v1/models/auto")).json()
        assert listed["max_model_len"] == 2048
        # A busy model is better than one that cannot take it; and one that nobody can take is refused.
        async with bot.busy(bot.large):
            waiting = asyncio.create_task(bot.who(f"{long} more"))
            queue = bot.running.router._inference._models._generators[bot.large].queue
            await until(lambda: queue.queued == 2)
        assert await waiting == "large"
        refused = await bot.ask("word " * 3000)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"

    route: list[dict[str, Any]] = [{"to": "small", "max_turns": 5}, {"to": "large"}]
    run(server, monkeypatch, tmp_path, work, route=route, small={"context_tokens": 64})


def test_an_idempotency_key_stands_for_the_answer_that_it_got(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        repeated: dict[str, Any] = {"headers": {"Idempotency-Key": "one"}, "temperature": 0.9}
        async with bot.busy(bot.small):
            first = await bot.ask("6 + 6?", **repeated)
        second = await bot.ask("6 + 6?", **repeated)
        assert second.headers["x-dray-cache"] == "hit"
        assert second.headers["x-dray-model"] == first.headers["x-dray-model"] == bot.large

    run(server, monkeypatch, tmp_path, work)


@pytest.mark.parametrize(
    ("path", "param", "fields"),
    [
        (COMPLETIONS, "prompt", {"prompt": [40, 41]}),
        (COMPLETIONS, "prompt", {"prompt": ["a", [40]]}),
        (COMPLETIONS, "logit_bias", {"logit_bias": {"40": 5}}),
        (CHAT, "logit_bias", {"logit_bias": {"40": 5}}),
        (CHAT, "stop_token_ids", {"stop_token_ids": [40]}),
    ],
)
def test_token_ids_need_a_model_of_their_own(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, param: str, fields: dict[str, Any]
) -> None:
    async def work(bot: Bot) -> None:
        refused = await bot.ask(SHORT, path, **fields)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, param) and bot.small in error["message"], error
        if param != "prompt":
            assert await bot.who(SHORT, path, bot.small, **fields) == "small"

    run(server, monkeypatch, tmp_path, work)


def test_routes_that_need_one_tokenizer_say_which_models_there_are(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [40]})):
            refused = await bot.client.post(path, json={"model": "auto", **body})
            assert refused.status_code == 404 and f"{bot.small} or {bot.large}" in refused.json()["error"]["message"]
        refused = await bot.client.post("/v1/embeddings", json={"model": "auto", "input": "a"})
        assert refused.status_code == 404 and "not an embedding model" in refused.json()["error"]["message"]
        for path in ("/v1/messages/count_tokens", "/v1/responses/input_tokens"):
            body = {"model": "auto"} | _body(path.rpartition("/")[0], SHORT)
            counted = await bot.client.post(path, json=body)
            assert counted.json()["input_tokens"] > 3 and counted.headers["x-dray-model"] == bot.small

    run(server, monkeypatch, tmp_path, work)


def test_a_stored_response_is_gone_on_from(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        first = (await bot.ask(SHORT, RESPONSES)).json()
        assert (await bot.client.get(f"{RESPONSES}/{first['id']}")).json() == first
        second = await bot.ask("And 2?", RESPONSES, previous_response_id=first["id"])
        assert (_named(second), second.json()["previous_response_id"]) == (bot.large, first["id"]), "the second turn"
        async with bot.busy(bot.small):
            placed = (await bot.ask("7?", RESPONSES)).json()
        assert placed["model"] == bot.large
        assert (await bot.client.get(f"{RESPONSES}/{placed['id']}")).json() == placed

    run(server, monkeypatch, tmp_path, work)


def test_a_team_needs_the_name_that_it_asks_for(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A routed model leads to all of its targets; a fallback only to what the team may use by itself."""

    async def work(bot: Bot) -> None:
        secrets_of = {}
        for name, models in (("routed", ("auto",)), ("small", (bot.small,)), ("large", (bot.large,))):
            add_team(bot.store, Team(name, 0.0, models=models))
            secrets_of[name] = {"Authorization": f"Bearer {create_key(bot.store, name).secret}"}
        both = Team("both", 0.0, models=(bot.small, bot.large))
        add_team(bot.store, both)
        secrets_of["both"] = {"Authorization": f"Bearer {create_key(bot.store, 'both').secret}"}
        async with asyncio.timeout(30):
            for headers in secrets_of.values():
                while (await bot.client.get("/v1/models", headers=headers)).status_code != 200:
                    await asyncio.sleep(0.02)
            while not bot.running.router._authenticator.needs_key:
                await asyncio.sleep(0.02)

        async def status(team: str, model: str, text: str = SHORT) -> int:
            return (await bot.ask(text, model=model, headers=secrets_of[team])).status_code

        async def listed(team: str) -> list[str]:
            entries = (await bot.client.get("/v1/models", headers=secrets_of[team])).json()["data"]
            return [entry["id"] for entry in entries]

        assert [await status("routed", name) for name in ("auto", "bot", bot.small, bot.large)] == [200, 200, 403, 403]
        assert await status("routed", "auto", LONG) == 200
        assert [await status("small", name) for name in ("auto", "bot", bot.small)] == [403, 403, 200]
        assert await status("both", "auto") == 403
        assert await listed("routed") == ["auto"] and await listed("small") == [bot.small]
        assert (await bot.client.get("/v1/models/auto", headers=secrets_of["both"])).status_code == 404
        bot.set_replicas(bot.large, 0)
        assert await bot.who("8?", model=bot.large, headers=secrets_of["both"]) == "small"
        assert await bot.who("8?", model=bot.large, headers=secrets_of["large"]) == "large"
        assert await bot.who(f"8 {LONG}", headers=secrets_of["routed"]) == "small"

    run(server, monkeypatch, tmp_path, work, large={"fallback": "small"})


def test_the_list_of_models_has_it(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work(bot: Bot) -> None:
        listed = (await bot.client.get("/v1/models")).json()["data"]
        assert [entry["id"] for entry in listed] == [bot.small, bot.large, "auto"]
        entry = listed[-1]
        assert (entry["aliases"], entry["routes_to"]) == (["bot"], [bot.small, bot.large])
        assert "routes_to" not in listed[0]
        for name in ("auto", "bot"):
            assert (await bot.client.get(f"/v1/models/{name}")).json() == entry

    run(server, monkeypatch, tmp_path, work)


def test_votes_are_about_the_model_that_answered(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work(bot: Bot) -> None:
        for result in ("miss", "hit"):
            answer = await bot.ask(SHORT)
            assert answer.headers["x-dray-cache"] == result
            vote = await bot.client.post("/v1/feedback", json={"id": answer.json()["id"], "rating": "down"})
            assert vote.status_code == 201, vote.text

    run(server, monkeypatch, tmp_path, work)


def test_a_name_that_no_header_can_have_is_encoded_there(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = [{"name": "小 模型"}, {"name": "自动", "route": [{"to": "小 模型"}]}]

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url, data_dir=tmp_path, models=models) as one,
            httpx.AsyncClient(base_url=one.url, timeout=60) as client,
        ):
            for stream in (False, True):
                answer = await client.post(CHAT, json={"model": "自动", "stream": stream} | _body(CHAT, SHORT))
                assert answer.status_code == 200, answer.text
                assert unquote(answer.headers["x-dray-model"]) == _named(answer) == "小 模型"

    asyncio.run(work())
